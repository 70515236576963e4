#include "quota.h"

#include "clock.h"
#include "driver.h"
#include "gate.h"
#include "job.h"
#include "launch.h"
#include "lock.h"
#include "log.h"
#include "quota_graphs.h"
#include "quota_pools.h"
#include "warden.h"

/* Freed memory that stays published until the warden comes by: a program that frees and allocates
 * by turns then does not write to the job page each time. */
#define UNTRIMMED_BYTES (UINT64_C(32) << 20)

/* What is published ahead of need, if there is so much: small allocations do not write to the job
 * page each time either. */
#define AHEAD_BYTES (UINT64_C(2) << 20)

/* When the quota is used up, other processes may have trimmings of that kind: they are given time
 * for them. */
enum { ATTEMPTS = 4 };
#define BETWEEN_ATTEMPTS_NS INT64_C(20000000)

static struct lock lock; /* before the job's */
static struct ledger ledger;
static uint64_t held_bytes;
static uint64_t published_bytes; /* never less than what is held */

static bool publish(uint64_t bytes) {
    if (!job_charge(bytes))
        return false;
    published_bytes = bytes;
    return true;
}

/* The warden takes back what nothing came of. */
static bool publish_ahead(uint64_t bytes) {
    uint64_t ahead_bytes;
    if (bytes - held_bytes < AHEAD_BYTES &&
        !__builtin_add_overflow(bytes, AHEAD_BYTES, &ahead_bytes) && publish(ahead_bytes)) {
        warden_wake();
        return true;
    }
    return publish(bytes);
}

bool quota_try(uint64_t bytes) {
    uint64_t wanted_bytes;
    if (__builtin_add_overflow(held_bytes, bytes, &wanted_bytes))
        return false;
    if (wanted_bytes > published_bytes && !publish_ahead(wanted_bytes))
        return false;
    held_bytes = wanted_bytes;
    return true;
}

static bool take_now(uint64_t bytes) {
    lock_take(&lock);
    bool taken = quota_try(bytes);
    lock_release(&lock);
    return taken;
}

/* Rounded up: nothing that was refused is none. */
static unsigned long long in_mib(uint64_t bytes) {
    return bytes / (1 << 20) + (bytes % (1 << 20) != 0);
}

/* Our own pools may have let go of something; then others' may, in a while. */
static bool take_with_patience(uint64_t bytes) {
    uint64_t quota_bytes = gate_quota_bytes();
    bool hopeless = quota_bytes != 0 && bytes > quota_bytes;
    for (int attempt = 0; attempt < ATTEMPTS && !hopeless; attempt++) {
        if (attempt > 0)
            clock_doze(BETWEEN_ATTEMPTS_NS);
        pool_look_at_all();
        if (take_now(bytes))
            return true;
    }
    log_line("refused %llu MiB: %llu of the job's %llu MiB are left", in_mib(bytes),
             in_mib(job_left_bytes(quota_bytes)), in_mib(quota_bytes));
    job_note_refusal(bytes);
    return false;
}

bool quota_take(uint64_t bytes) {
    return take_now(bytes) || take_with_patience(bytes);
}

static void give(uint64_t bytes) {
    held_bytes -= bytes < held_bytes ? bytes : held_bytes;
    if (published_bytes - held_bytes > UNTRIMMED_BYTES)
        publish(held_bytes);
}

bool quota_replace(uint64_t before_bytes, uint64_t after_bytes) {
    if (after_bytes <= before_bytes) {
        give(before_bytes - after_bytes);
        return true;
    }
    uint64_t more_bytes = after_bytes - before_bytes;
    if (quota_try(more_bytes))
        return true;
    held_bytes += more_bytes;
    published_bytes = held_bytes;
    job_charge_anyway(held_bytes);
    return false;
}

void quota_give(uint64_t bytes) {
    lock_take(&lock);
    give(bytes);
    lock_release(&lock);
    warden_wake();
}

void quota_remember(const struct ledger_entry *entry) {
    struct ledger_entry gone;
    lock_take(&lock);
    bool added = ledger_add(&ledger, entry, &gone);
    if (gone.kind != LEDGER_NOTHING && gone.kind <= LEDGER_CONTEXT)
        give(gone.bytes);
    lock_release(&lock);
    if (gone.kind > LEDGER_CONTEXT)
        quota_pooled_gone(&gone);
    if (!added) /* stays charged: too strict rather than too lax */
        log_line("no memory to note an allocation of %llu bytes", (unsigned long long)entry->bytes);
}

void quota_pooled_gone(const struct ledger_entry *entry) {
    int pool = (int)entry->object;
    if (pool == POOL_UNKNOWN)
        quota_give(entry->bytes);
    pool_left(pool, entry->bytes);
    warden_wake();
}

CUresult quota_settle_taken(enum hook_index hook, CUresult result,
                            const struct ledger_entry *entry) {
    if (result == CUDA_SUCCESS) {
        quota_remember(entry);
        return result;
    }
    quota_give(entry->bytes);
    job_note_result(hook, result);
    return result;
}

CUresult quota_settle_freed(enum hook_index hook, CUresult result, bool known,
                            const struct ledger_entry *entry) {
    if (known && result == CUDA_SUCCESS)
        quota_give(entry->bytes);
    else if (known)
        quota_remember(entry);
    if (result != CUDA_SUCCESS)
        job_note_result(hook, result);
    return result;
}

CUcontext quota_current_context(void) {
    CUcontext context = NULL;
    driver.ctx_get_current(&context);
    return context;
}

bool quota_forget(enum ledger_kind kind, uint64_t key, struct ledger_entry *entry) {
    lock_take(&lock);
    bool found = ledger_take(&ledger, kind, key, entry);
    lock_release(&lock);
    return found;
}

void quota_context_gone(CUcontext context) {
    lock_take(&lock);
    give(ledger_take_context(&ledger, context));
    lock_release(&lock);
    warden_wake();
}

struct ledger *quota_lock(void) {
    lock_take(&lock);
    return &ledger;
}

void quota_unlock(void) {
    lock_release(&lock);
}

bool quota_trim(void) {
    bool looked = pool_look_at_all();
    lock_take(&lock);
    bool trimmed = published_bytes > held_bytes && publish(held_bytes);
    lock_release(&lock);
    return trimmed || looked;
}

void quota_forget_all(void) {
    lock = (struct lock){LOCK_FREE};
    ledger_clear(&ledger);
    held_bytes = published_bytes = 0;
    pool_forget_all();
    quota_graphs_forget_all();
}
