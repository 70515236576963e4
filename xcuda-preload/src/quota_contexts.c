/* Contexts: the memory that each costs, and what ends with it. */
#include <pthread.h>
#include <string.h>

#include "account.h"
#include "context.h"
#include "driver.h"
#include "gate.h"
#include "group.h"
#include "job.h"
#include "launch.h"
#include "quota.h"
#include "quota_pools.h"
#include "warden.h"

/* What a context is taken to cost when job control does not say and there is no other context
 * through which the driver could be asked before and after. */
#define CONTEXT_BYTES (UINT64_C(384) << 20)

/* A difference above this is other processes' doing. */
#define MOST_CONTEXT_BYTES (UINT64_C(2) << 30)

static uint64_t free_bytes(void) {
    size_t free = 0, total = 0;
    return driver.mem_get_info(&free, &total) == CUDA_SUCCESS ? free : 0;
}

/* What is known before a context is made. */
struct birth {
    uint64_t bytes;        /* taken */
    uint64_t before_bytes; /* free on the device; 0: cannot be asked */
};

static bool announce(struct birth *birth) {
    birth->bytes = gate_context_bytes();
    birth->before_bytes = 0;
    if (birth->bytes == 0) {
        birth->bytes = CONTEXT_BYTES;
        birth->before_bytes = quota_current_context() == NULL ? 0 : free_bytes();
    }
    return quota_take(birth->bytes);
}

/* A context that turns out to cost more than was left is kept: it is there, and the next allocation
 * will be refused. */
static void correct(struct birth *birth) {
    uint64_t after_bytes = birth->before_bytes == 0 ? 0 : free_bytes();
    if (after_bytes == 0 || after_bytes >= birth->before_bytes ||
        birth->before_bytes - after_bytes > MOST_CONTEXT_BYTES)
        return;
    uint64_t cost_bytes = birth->before_bytes - after_bytes;
    if (cost_bytes > birth->bytes && !quota_take(cost_bytes - birth->bytes))
        return;
    if (cost_bytes < birth->bytes)
        quota_give(birth->bytes - cost_bytes);
    birth->bytes = cost_bytes;
}

static void know(CUcontext context) {
    account_lock();
    context_of(context);
    if (context_several())
        atomic_fetch_or(&attention, ATTENTION_CONTEXTS);
    account_unlock();
}

static CUresult settle(enum hook_index hook, CUresult result, CUcontext *context,
                       struct birth *birth) {
    if (result == CUDA_SUCCESS) {
        correct(birth);
        know(*context);
    }
    struct ledger_entry entry = {.kind = LEDGER_CONTEXT, .bytes = birth->bytes};
    if (result == CUDA_SUCCESS) {
        entry.key = (uint64_t)(uintptr_t)*context;
        entry.context = *context;
    }
    return quota_settle_taken(hook, result, &entry);
}

CUresult on_ctx_create(enum hook_index hook, CUcontext *context, unsigned int flags,
                       CUdevice device) {
    struct birth birth;
    if (!launch_gated())
        return REAL_OF(hook, cuCtxCreate_v2)(context, flags, device);
    if (!announce(&birth))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return settle(hook, REAL_OF(hook, cuCtxCreate_v2)(context, flags, device), context, &birth);
}

CUresult on_ctx_create_v3(enum hook_index hook, CUcontext *context, void *affinity, int count,
                          unsigned int flags, CUdevice device) {
    struct birth birth;
    if (!launch_gated())
        return REAL_OF(hook, cuCtxCreate_v3)(context, affinity, count, flags, device);
    if (!announce(&birth))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return settle(hook, REAL_OF(hook, cuCtxCreate_v3)(context, affinity, count, flags, device),
                  context, &birth);
}

CUresult on_ctx_create_v4(enum hook_index hook, CUcontext *context, void *parameters,
                          unsigned int flags, CUdevice device) {
    struct birth birth;
    if (!launch_gated())
        return REAL_OF(hook, cuCtxCreate_v4)(context, parameters, flags, device);
    if (!announce(&birth))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return settle(hook, REAL_OF(hook, cuCtxCreate_v4)(context, parameters, flags, device), context,
                  &birth);
}

/* Nothing of the context may be touched any more: its events are gone with it. */
static void abandon_in(struct lane *lane, void *context) {
    if (lane->context == context) {
        lane->context = NULL;
        group_abandon(lane);
    }
}

/* Returns whether another one is left. */
static bool leave(CUcontext context) {
    warden_keep_off();
    lane_each(abandon_in, context, true);
    account_lock();
    context_forget(context);
    if (!context_several())
        atomic_fetch_and(&attention, ~(uint32_t)ATTENTION_CONTEXTS);
    bool others = context_any();
    account_unlock();
    warden_let_in();
    pool_current_changed(); /* the one that is left may be another device's */
    return others;
}

CUresult on_ctx_destroy(enum hook_index hook, CUcontext context) {
    bool gated = launch_gated();
    if (gated && context != NULL)
        leave(context);
    CUresult result = REAL_OF(hook, cuCtxDestroy_v2)(context);
    if (gated && result == CUDA_SUCCESS)
        quota_context_gone(context);
    return result;
}

/* ---- primary contexts: one per device, there while somebody retains it
 * --------------------------- */

enum { DEVICES = 64 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static CUcontext primary[DEVICES]; /* NULL: not there, or not ours to count */
static bool being_made[DEVICES];
static unsigned retained[DEVICES]; /* times, as far as was seen */

void quota_forget_contexts(void) {
    pthread_mutex_init(&lock, NULL);
    memset(primary, 0, sizeof primary);
    memset(being_made, 0, sizeof being_made);
    memset(retained, 0, sizeof retained);
}

static bool is_active(CUdevice device) {
    unsigned int flags;
    int active = 0;
    return driver.primary_ctx_state(device, &flags, &active) == CUDA_SUCCESS && active;
}

/* Whether this call makes the context; threads may race for it. */
static bool makes(CUdevice device) {
    pthread_mutex_lock(&lock);
    bool first = !being_made[device] && !is_active(device);
    being_made[device] |= first;
    pthread_mutex_unlock(&lock);
    return first;
}

static void made(CUdevice device, CUcontext context) {
    pthread_mutex_lock(&lock);
    being_made[device] = false;
    primary[device] = context;
    pthread_mutex_unlock(&lock);
}

static CUresult count_retained(CUdevice device, CUresult result) {
    pthread_mutex_lock(&lock);
    retained[device] += result == CUDA_SUCCESS;
    pthread_mutex_unlock(&lock);
    return result;
}

CUresult on_primary_ctx_retain(enum hook_index hook, CUcontext *context, CUdevice device) {
    if (!launch_gated() || device < 0 || device >= DEVICES)
        return REAL_OF(hook, cuDevicePrimaryCtxRetain)(context, device);
    if (!makes(device))
        return count_retained(device, REAL_OF(hook, cuDevicePrimaryCtxRetain)(context, device));
    struct birth birth;
    if (!announce(&birth)) {
        made(device, NULL);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult result =
        settle(hook, REAL_OF(hook, cuDevicePrimaryCtxRetain)(context, device), context, &birth);
    made(device, result == CUDA_SUCCESS ? *context : NULL);
    return count_retained(device, result);
}

/* The context that will be gone after this call, as far as was seen; NULL: none. */
static CUcontext expected_to_go(enum hook_index hook, CUdevice device) {
    bool resets = hook == HOOK_cuDevicePrimaryCtxReset || hook == HOOK_cuDevicePrimaryCtxReset_v2;
    pthread_mutex_lock(&lock);
    CUcontext goes = resets || retained[device] <= 1 ? primary[device] : NULL;
    pthread_mutex_unlock(&lock);
    return goes;
}

/* Release and reset alike: what counts is whether the context is still there. Before it goes
 * nobody may look at it any more. */
CUresult on_primary_ctx_release(enum hook_index hook, CUdevice device) {
    bool gated = launch_gated() && device >= 0 && device < DEVICES;
    CUcontext left = gated ? expected_to_go(hook, device) : NULL;
    if (left != NULL)
        leave(left);
    CUresult result = REAL_OF(hook, cuDevicePrimaryCtxRelease)(device);
    if (!gated)
        return result;
    bool is_gone = result == CUDA_SUCCESS && !is_active(device);
    pthread_mutex_lock(&lock);
    CUcontext gone = is_gone ? primary[device] : NULL;
    if (is_gone) {
        primary[device] = NULL;
        retained[device] = 0;
    } else if (result == CUDA_SUCCESS && retained[device] > 0) {
        retained[device]--;
    }
    pthread_mutex_unlock(&lock);
    if (gone == NULL && left != NULL)
        know(left);
    if (gone != NULL) {
        bool others = leave(gone);
        quota_context_gone(gone);
        if (!others)
            pool_contexts_gone(device);
    }
    return result;
}
