#include "quota.h"

#include <pthread.h>

#include "clock.h"
#include "driver.h"
#include "gate.h"
#include "job.h"
#include "launch.h"
#include "log.h"
#include "quota_graphs.h"
#include "quota_pools.h"
#include "warden.h"

/* Freed memory that stays published until the warden comes by: a program that frees and allocates
 * by turns then does not write to the job page each time. */
#define UNTRIMMED_BYTES (UINT64_C(32) << 20)

/* When the quota is used up, other processes may have trimmings of that kind: they are given time
 * for them. */
enum { ATTEMPTS = 5 };
#define BETWEEN_ATTEMPTS_NS INT64_C(20000000)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* before the job's */
static struct ledger ledger;
static uint64_t held_bytes;
static uint64_t published_bytes; /* never less than what is held */

static bool publish(uint64_t bytes) {
    if (!job_charge(bytes))
        return false;
    published_bytes = bytes;
    return true;
}

bool quota_try(uint64_t bytes) {
    uint64_t wanted_bytes;
    if (__builtin_add_overflow(held_bytes, bytes, &wanted_bytes))
        return false;
    if (wanted_bytes > published_bytes && !publish(wanted_bytes))
        return false;
    held_bytes = wanted_bytes;
    return true;
}

bool quota_take(uint64_t bytes) {
    uint64_t quota_bytes = gate_quota_bytes();
    bool hopeless = quota_bytes != 0 && bytes > quota_bytes;
    for (int attempt = 0; attempt < ATTEMPTS && !hopeless; attempt++) {
        if (attempt > 1) /* at first it is our own pools that may have let go of something */
            clock_doze(BETWEEN_ATTEMPTS_NS);
        pthread_mutex_lock(&lock);
        bool taken = quota_try(bytes);
        pthread_mutex_unlock(&lock);
        if (taken)
            return true;
        pool_look_at_all();
    }
    log_line("refused %llu bytes: the job's quota is %llu", (unsigned long long)bytes,
             (unsigned long long)quota_bytes);
    job_note_refusal(bytes);
    return false;
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
    pthread_mutex_lock(&lock);
    give(bytes);
    pthread_mutex_unlock(&lock);
    warden_wake();
}

static void remember(const struct ledger_entry *entry) {
    pthread_mutex_lock(&lock);
    bool added = ledger_add(&ledger, entry);
    pthread_mutex_unlock(&lock);
    if (!added) /* stays charged: too strict rather than too lax */
        log_line("no memory to note an allocation of %llu bytes", (unsigned long long)entry->bytes);
}

CUresult quota_settle_taken(enum hook_index hook, CUresult result,
                            const struct ledger_entry *entry) {
    if (result == CUDA_SUCCESS) {
        remember(entry);
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
        remember(entry);
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
    pthread_mutex_lock(&lock);
    bool found = ledger_take(&ledger, kind, key, entry);
    pthread_mutex_unlock(&lock);
    return found;
}

void quota_context_gone(CUcontext context) {
    pthread_mutex_lock(&lock);
    give(ledger_take_context(&ledger, context));
    pthread_mutex_unlock(&lock);
    warden_wake();
}

struct ledger *quota_lock(void) {
    pthread_mutex_lock(&lock);
    return &ledger;
}

void quota_unlock(void) {
    pthread_mutex_unlock(&lock);
}

bool quota_trim(void) {
    bool looked = pool_look_at_all();
    pthread_mutex_lock(&lock);
    bool trimmed = published_bytes > held_bytes && publish(held_bytes);
    pthread_mutex_unlock(&lock);
    return trimmed || looked;
}

void quota_forget_all(void) {
    pthread_mutex_init(&lock, NULL);
    ledger_clear(&ledger);
    held_bytes = published_bytes = 0;
    pool_forget_all();
    quota_graphs_forget_all();
}
