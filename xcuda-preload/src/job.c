#include "job.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#include "account.h"
#include "budget.h"
#include "cancel.h"
#include "clock.h"
#include "driver.h"
#include "gate.h"
#include "log.h"
#include "pages.h"
#include "settings.h"

/* Processes that race for the last bytes may all be refused. */
enum { CHARGE_ATTEMPTS = 4 };

#define WANTING_NS INT64_C(100000000)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int cancel_before; /* whether the thread that has the lock could be cancelled before */
static struct mux_job page;
static struct mux_process_slot slot; /* what is published, but for the account's part */
static struct mux_spending spending; /* of the others */
static struct job_others others;
static int64_t others_at_ns;
static struct {
    uint64_t sum;
    int64_t changed_ns;
} seen[MUX_JOB_SLOTS];
static int claim_error = -1;

static void acquire(void) {
    int before = cancel_forbid();
    pthread_mutex_lock(&lock);
    cancel_before = before;
}

static void release(void) {
    int before = cancel_before;
    pthread_mutex_unlock(&lock);
    cancel_restore(before);
}

static bool have_slot(void) {
    return page.owner != 0;
}

static void claim(void) {
    int error = mux_job_claim(&page, settings()->job_dir);
    if (error != claim_error && error != 0)
        log_line("no slot in the job page (%s): this process is not seen", strerror(error));
    if (error != claim_error && error == 0 && page.copy_error != 0)
        log_line("the job page is opened for each look (%s)", strerror(page.copy_error));
    claim_error = error;
    if (error == 0 && slot.memory_bytes > 0)
        mux_job_charge(&page, 0, slot.memory_bytes, 0);
}

void job_claim(void) {
    acquire();
    if (!have_slot())
        claim();
    release();
}

/* A slot that is lost (the page was truncated) is claimed anew by the warden. */
static void lose_slot(int error) {
    log_line("lost the slot in the job page (%s)", strerror(error));
    mux_job_release(&page);
}

static void publish(void) {
    account_lock();
    slot.launches = account.launches;
    slot.busy_ns = account.busy_ns;
    slot.inflight = account.in_flight;
    /* What is charged will be in flight in a moment. */
    slot.inflight_ns = (uint64_t)(account.charged_ns > account.in_flight_ns ? account.charged_ns
                                                                            : account.in_flight_ns);
    slot.inflation_permille = inflation_permille(&account.inflation, clock_now_ns());
    slot.throttled_ns = atomic_load_explicit(&account.throttled_ns, memory_order_relaxed);
    slot.frozen_ns = atomic_load_explicit(&account.frozen_ns, memory_order_relaxed);
    account_unlock();
    slot.gate_epoch = gate_epoch();
    slot.updated_boottime_ns = clock_boottime_ns();
    if (!have_slot())
        return;
    int error = mux_job_publish(&page, &slot);
    if (error != 0)
        lose_slot(error);
}

void job_publish(void) {
    acquire();
    publish();
    release();
}

/* Whether the process in this slot has got on, or waited to, within the last moments: its counters
 * are published every 20 ms then. */
static bool is_wanting(unsigned i, const struct mux_process_slot *other, int64_t now_ns) {
    uint64_t sum = other->busy_ns + other->throttled_ns + other->inflight_ns;
    if (other->owner == 0 || sum == seen[i].sum)
        return other->owner != 0 && now_ns - seen[i].changed_ns < WANTING_NS;
    bool first = seen[i].sum == 0;
    seen[i].sum = sum;
    seen[i].changed_ns = first ? 0 : now_ns;
    return !first;
}

/* What others have in flight counts as spent: otherwise each would launch at the same moment. */
static void read_others(int64_t now_ns) {
    struct mux_process_slot slots[MUX_JOB_SLOTS];
    if (!have_slot() || mux_job_read(&page, slots) != 0)
        return;
    slots[page.slot] = (struct mux_process_slot){.owner = 0};
    mux_spending_update(&spending, slots);
    int64_t in_flight_ns = 0;
    others.wanting = 0;
    for (unsigned i = 0; i < MUX_JOB_SLOTS; i++) {
        bool sane = slots[i].owner != 0 && slots[i].inflight_ns < (uint64_t)BUDGET_MOST_DEBT_NS;
        in_flight_ns += sane ? (int64_t)slots[i].inflight_ns : 0;
        others.wanting += is_wanting(i, &slots[i], now_ns);
    }
    others.spent_ns = (int64_t)spending.total_ns + in_flight_ns;
    others_at_ns = now_ns;
}

void job_look_at_others(struct job_others *answer, int64_t now_ns, int64_t age_ns) {
    acquire();
    if (now_ns - others_at_ns >= age_ns)
        read_others(now_ns);
    *answer = others;
    release();
}

static int charge(uint64_t bytes, uint64_t quota_bytes) {
    int error = have_slot() ? mux_job_charge(&page, slot.memory_bytes, bytes, quota_bytes) : ESTALE;
    if (error == 0 || error == EDQUOT)
        return error;
    if (have_slot())
        lose_slot(error);
    /* Without the page the process at least keeps to the quota by itself. */
    bool fits = quota_bytes == 0 || bytes <= quota_bytes || bytes <= slot.memory_bytes;
    return fits ? 0 : EDQUOT;
}

bool job_charge(uint64_t bytes) {
    int error = EDQUOT;
    for (int attempt = 0; error == EDQUOT && attempt < CHARGE_ATTEMPTS; attempt++) {
        if (attempt > 0)
            sched_yield();
        acquire();
        error = charge(bytes, gate_quota_bytes());
        if (error == 0)
            slot.memory_bytes = bytes;
        release();
    }
    return error == 0;
}

void job_charge_anyway(uint64_t bytes) {
    acquire();
    charge(bytes, 0);
    slot.memory_bytes = bytes;
    release();
}

/* By all living processes. Nothing overflows: a sum that would is more than any quota. */
static uint64_t held_by_all(void) {
    struct mux_process_slot slots[MUX_JOB_SLOTS];
    acquire();
    uint64_t used_bytes = slot.memory_bytes;
    bool read = have_slot() && mux_job_read(&page, slots) == 0;
    for (unsigned i = 0; read && i < MUX_JOB_SLOTS; i++) {
        bool other = i != page.slot && slots[i].owner != 0 && slots[i].memory_bytes != 0;
        if (other && mux_owner_lives(slots[i].owner) &&
            __builtin_add_overflow(used_bytes, slots[i].memory_bytes, &used_bytes))
            used_bytes = UINT64_MAX;
    }
    release();
    return used_bytes;
}

uint64_t job_left_bytes(uint64_t quota_bytes) {
    uint64_t used_bytes = held_by_all();
    return used_bytes < quota_bytes ? quota_bytes - used_bytes : 0;
}

bool job_fits(void) {
    uint64_t quota_bytes = gate_quota_bytes();
    return quota_bytes == 0 || held_by_all() <= quota_bytes;
}

void job_note_refusal(uint64_t bytes) {
    acquire();
    slot.refused_bytes += bytes;
    publish();
    release();
}

/* Errors after which every call in the context fails. */
static bool is_sticky(CUresult result) {
    switch (result) {
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_CONTAINED:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_TENSOR_MEMORY_LEAK:
    case CUDA_ERROR_MPS_RPC_FAILURE:
    case CUDA_ERROR_MPS_CLIENT_TERMINATED:
    case CUDA_ERROR_EXTERNAL_DEVICE:
    case CUDA_ERROR_UNKNOWN:
        return true;
    default:
        return false;
    }
}

void job_note_result(enum hook_index hook, CUresult result) {
    if (!is_sticky(result))
        return;
    acquire();
    if (slot.last_error == 0) {
        slot.last_error = (uint32_t)result;
        slot.last_error_call = hook;
        slot.last_error_boottime_ns = clock_boottime_ns();
        log_line("%s gave error %d: the context is lost", hook_table[hook].name, result);
        publish();
    }
    release();
}

void job_note_drained(bool drained) {
    acquire();
    if (slot.drained != drained) {
        slot.drained = drained;
        publish();
    }
    release();
}

/* The slot stays: what the process did can be read until another one needs the place. */
void job_end(void) {
    acquire();
    slot.drained = 1;
    slot.memory_bytes = 0;
    publish();
    release();
}

void job_forget_all(void) {
    pthread_mutex_init(&lock, NULL);
    page = (struct mux_job){.owner = 0};
    slot = (struct mux_process_slot){.owner = 0};
    spending = (struct mux_spending){.total_ns = 0};
    others = (struct job_others){.wanting = 0};
    others_at_ns = 0;
    memset(seen, 0, sizeof seen);
    claim_error = -1;
}
