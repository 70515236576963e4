#include "quota_pools.h"

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "capture.h"
#include "clock.h"
#include "driver.h"
#include "gate.h"
#include "job.h"
#include "quota.h"
#include "warden.h"

/* What a pool gives out is a multiple of this. */
#define UNIT_BYTES UINT64_C(512)

/* Whoever asks about a pool has the answer at once, unless the thread was cancelled meanwhile. */
#define ASKING_PATIENCE_NS INT64_C(1000000000)
#define ASKING_DOZE_NS     INT64_C(50000)

/* What the driver says, and what was known before it was asked. */
struct reading {
    uint64_t reserved_bytes, used_bytes;
    uint64_t own_bytes;  /* of what is used, the program's */
    uint64_t left_bytes; /* `left_bytes` of the pool */
};

struct pool {
    CUmemoryPool handle; /* NULL: of graphs, or going */
    CUdevice device;     /* of graphs */
    enum { POOL_FREE, POOL_HANDLE, POOL_GRAPHS, POOL_CLOSED, POOL_GONE, POOL_EXCUSED } state;
    bool changed;            /* since the last look */
    bool overdrawn;          /* it was seen to hold more than the quota allowed for */
    uint64_t charged_bytes;  /* what it held at the last look */
    uint64_t promised_bytes; /* charged on top of that, by wishes that are not settled */
    uint64_t used_bytes;     /* what the program has of it, or will have in a moment: */
    uint64_t coming_bytes;   /* wishes that are not settled */
    uint64_t leaving_bytes;  /* freed, but not known to be free yet */
    uint64_t left_bytes;     /* all that was ever freed */
    uint64_t look;           /* number of the look that told: */
    struct reading seen;
    unsigned asked; /* threads that ask the driver; of the place, not of the pool */
};

enum { POOLS = 256 };

/* All under the ledger's lock. */
static struct pool pools[POOLS];
static int known; /* no record lies behind */
static uint64_t looks;

/* Of the only context's device: its record, and in the upper half how often it may have changed. */
static _Atomic uint64_t current = (uint32_t)POOL_UNKNOWN;

/* ---- records -----------------------------------------------------------------------------------
 */

static int find(CUmemoryPool handle, CUdevice device) {
    for (int i = 0; i < known; i++) {
        bool wanted = handle != NULL ? pools[i].handle == handle
                                     : pools[i].state == POOL_GRAPHS && pools[i].device == device;
        if (wanted)
            return i;
    }
    return POOL_UNKNOWN;
}

static int add(struct pool pool) {
    int place = 0;
    while (place < POOLS && pools[place].state != POOL_FREE)
        place++;
    if (place == POOLS)
        return POOL_UNKNOWN;
    pool.asked = pools[place].asked;
    pools[place] = pool;
    if (place >= known)
        known = place + 1;
    return place;
}

static void clear(struct pool *pool) {
    *pool = (struct pool){.state = POOL_FREE, .asked = pool->asked};
}

static int visible(int pool) {
    return pool >= 0 && pools[pool].state == POOL_EXCUSED ? POOL_NONE : pool;
}

int pool_of(CUmemoryPool handle) {
    if (handle == NULL)
        return POOL_UNKNOWN;
    quota_lock();
    int pool = find(handle, 0);
    if (pool == POOL_UNKNOWN)
        pool = add((struct pool){.handle = handle, .state = POOL_HANDLE});
    pool = visible(pool);
    quota_unlock();
    return pool;
}

int pool_known(CUmemoryPool handle) {
    quota_lock();
    int pool = handle == NULL ? POOL_UNKNOWN : find(handle, 0);
    quota_unlock();
    return pool;
}

int pool_of_graphs(CUdevice device) {
    quota_lock();
    int pool = find(NULL, device);
    if (pool == POOL_UNKNOWN)
        pool = add((struct pool){.device = device, .state = POOL_GRAPHS});
    quota_unlock();
    return pool;
}

void pool_excuse(CUmemoryPool handle) {
    quota_lock();
    add((struct pool){.handle = handle, .state = POOL_EXCUSED});
    quota_unlock();
}

/* ---- the current one ---------------------------------------------------------------------------
 */

static bool several_contexts(void) {
    return atomic_load(&attention) & ATTENTION_CONTEXTS;
}

/* A stream of another context than the current one may be another device's. */
static bool device_of(CUstream stream, CUdevice *device) {
    CUcontext here = NULL, its = NULL;
    bool asks = several_contexts() && stream != CU_STREAM_LEGACY &&
                stream != CU_STREAM_PER_THREAD && driver.ctx_get_current(&here) == CUDA_SUCCESS &&
                driver.stream_get_ctx(stream, &its) == CUDA_SUCCESS && its != here;
    if (asks)
        driver.ctx_set_current(its);
    bool told = driver.ctx_get_device(device) == CUDA_SUCCESS;
    if (asks)
        driver.ctx_set_current(here);
    return told;
}

int pool_of_stream(CUstream stream) {
    uint64_t before = atomic_load_explicit(&current, memory_order_relaxed);
    int pool = (int)(uint32_t)before;
    if (pool != POOL_UNKNOWN && !several_contexts())
        return pool;
    CUdevice device;
    CUmemoryPool handle = NULL;
    int mode = capture_relax();
    bool told =
        device_of(stream, &device) && driver.device_get_pool(&handle, device) == CUDA_SUCCESS;
    capture_restore(mode);
    pool = told ? pool_of(handle) : POOL_UNKNOWN;
    if (!several_contexts()) /* and if it has not changed since the driver was asked */
        atomic_compare_exchange_strong(&current, &before, before >> 32 << 32 | (uint32_t)pool);
    return pool;
}

void pool_current_changed(void) {
    uint64_t before = atomic_load(&current), after;
    do
        after = ((before >> 32) + 1) << 32 | (uint32_t)POOL_UNKNOWN;
    while (!atomic_compare_exchange_weak(&current, &before, after));
}

/* ---- looking -----------------------------------------------------------------------------------
 */

static bool ask(const struct pool *pool, struct reading *told) {
    bool graphs = pool->state == POOL_GRAPHS;
    int mode = capture_relax();
    bool answered =
        graphs ? driver.graph_memory_get(pool->device, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT,
                                         &told->reserved_bytes) == CUDA_SUCCESS &&
                     driver.graph_memory_get(pool->device, CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT,
                                             &told->used_bytes) == CUDA_SUCCESS
               : driver.pool_get(pool->handle, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT,
                                 &told->reserved_bytes) == CUDA_SUCCESS &&
                     driver.pool_get(pool->handle, CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
                                     &told->used_bytes) == CUDA_SUCCESS;
    capture_restore(mode);
    return answered;
}

static uint64_t minus(uint64_t bytes, uint64_t less) {
    return bytes > less ? bytes - less : 0;
}

static uint64_t total(const struct pool *pool) {
    return pool->charged_bytes + pool->promised_bytes;
}

/* Charges what the pool was seen to hold. Of what wishes have promised, nobody knows how much is in
 * that already: it is kept on top as long as it was charged anyway. If the quota is too small, it
 * is charged all the same, as it is there; whose wish that was will see to it. */
static void take_over(struct pool *pool, const struct reading *told) {
    uint64_t before_bytes = total(pool);
    uint64_t held_bytes = told->reserved_bytes;
    if (held_bytes < pool->used_bytes) /* what is coming; graphs take theirs when they run */
        held_bytes = pool->used_bytes;
    uint64_t after_bytes = held_bytes;
    if (held_bytes < before_bytes && before_bytes - held_bytes > pool->promised_bytes)
        after_bytes = held_bytes + pool->promised_bytes;
    else if (held_bytes < before_bytes)
        after_bytes = before_bytes;
    pool->overdrawn |= !quota_replace(before_bytes, after_bytes);
    pool->charged_bytes =
        after_bytes > pool->promised_bytes ? after_bytes - pool->promised_bytes : 0;
    pool->promised_bytes = after_bytes - pool->charged_bytes;
    /* What was freed since is not in the first part: it was the program's then. */
    pool->leaving_bytes =
        minus(told->used_bytes, told->own_bytes) + pool->left_bytes - told->left_bytes;
    /* What it keeps may go whenever the program waits for something; graphs come and go. */
    pool->changed |= told->reserved_bytes > pool->used_bytes || pool->leaving_bytes > 0 ||
                     pool->state == POOL_GRAPHS;
}

/* `promised_bytes` of a wish that is settled are no longer promised. A look that began after others
 * shows all that was allocated before: of two that overlap, the later one counts. */
static void look(int index, uint64_t promised_bytes) {
    quota_lock();
    struct pool *pool = &pools[index];
    struct pool seen = *pool;
    uint64_t number = ++looks;
    bool asks = pool->state == POOL_HANDLE || pool->state == POOL_GRAPHS;
    pool->changed = false;
    pool->asked += asks;
    quota_unlock();

    struct reading told = {.own_bytes = minus(seen.used_bytes, seen.coming_bytes),
                           .left_bytes = seen.left_bytes};
    bool answered = asks && ask(&seen, &told);

    quota_lock();
    pool->asked -= asks;
    uint64_t settled_bytes =
        promised_bytes < pool->promised_bytes ? promised_bytes : pool->promised_bytes;
    bool same = pool->state == seen.state && pool->handle == seen.handle;
    pool->promised_bytes -= settled_bytes;
    if (!same) {
        quota_replace(settled_bytes, 0);
    } else {
        pool->charged_bytes += settled_bytes;
        if (!answered) /* then what the program has is what counts */
            told = (struct reading){.left_bytes = pool->left_bytes};
        if (number > pool->look) {
            pool->look = number;
            pool->seen = told;
        }
        take_over(pool, &pool->seen);
        if (!answered && pool->state == POOL_HANDLE && total(pool) == 0)
            clear(pool); /* it never was a pool */
    }
    quota_unlock();
}

void pool_look(int pool) {
    if (pool >= 0)
        look(pool, 0);
}

bool pool_look_at_all(void) {
    bool any = false;
    for (int i = 0; i < POOLS; i++) {
        quota_lock();
        bool all = i >= known;
        bool changed = !all && pools[i].changed;
        uint64_t before_bytes = pools[i].charged_bytes;
        quota_unlock();
        if (all)
            break;
        if (!changed)
            continue;
        look(i, 0);
        quota_lock();
        any |= pools[i].charged_bytes != before_bytes;
        quota_unlock();
    }
    return any;
}

/* ---- wishes ------------------------------------------------------------------------------------
 */

/* What the pool must grow by, if nothing of what is leaving can be used again. */
static uint64_t shortage(const struct pool *pool, uint64_t bytes) {
    return minus(pool->used_bytes + pool->leaving_bytes + bytes, total(pool));
}

static void expect(struct pool *pool, const struct pool_wish *wish) {
    pool->used_bytes += wish->bytes;
    pool->coming_bytes += wish->bytes;
}

/* Takes the wish on if the quota allows for the growth. Under the lock. */
static bool take_on(struct pool_wish *wish, struct pool *pool) {
    uint64_t growth_bytes = shortage(pool, wish->bytes);
    if (growth_bytes > 0 && !quota_try(growth_bytes))
        return false;
    wish->promised_bytes = growth_bytes;
    wish->look = growth_bytes > 0;
    pool->promised_bytes += growth_bytes;
    expect(pool, wish);
    pool->changed = true;
    return true;
}

/* What is leaving may be used again by the same stream, or once it is reached: only the driver
 * knows. If there is so much, it is asked without a promise, and the pool looked at afterwards. */
static bool take_on_approval(struct pool_wish *wish, struct pool *pool) {
    if (pool->used_bytes + wish->bytes > total(pool))
        return false;
    wish->look = true;
    expect(pool, wish);
    return true;
}

bool pool_wish(struct pool_wish *wish, int index, uint64_t bytes) {
    *wish = (struct pool_wish){.pool = index};
    if (index < 0)
        return true;
    if (bytes > UINT64_MAX / 4)
        return false;
    wish->bytes = (bytes + UNIT_BYTES - 1) / UNIT_BYTES * UNIT_BYTES;
    struct pool *pool = &pools[index];
    quota_lock();
    bool taken = take_on(wish, pool);
    quota_unlock();
    if (taken)
        return true;

    pool_look_at_all();
    quota_lock();
    taken = take_on(wish, pool) || take_on_approval(wish, pool);
    uint64_t growth_bytes = taken ? 0 : shortage(pool, wish->bytes);
    quota_unlock();
    if (taken)
        return true;
    if (!quota_take(growth_bytes)) /* with patience: what is leaving may be gone soon */
        return false;
    quota_lock();
    wish->promised_bytes = growth_bytes;
    wish->look = true;
    pool->promised_bytes += growth_bytes;
    expect(pool, wish);
    quota_unlock();
    return true;
}

/* Whoever has looked, the warden or another thread, may have been the one to see it. */
static bool is_within_quota(struct pool *pool) {
    quota_lock();
    if (pool->overdrawn)
        pool->overdrawn = !job_fits();
    bool within = !pool->overdrawn;
    quota_unlock();
    return within;
}

bool pool_settle(const struct pool_wish *wish, bool made) {
    if (wish->pool < 0)
        return true;
    quota_lock();
    struct pool *pool = &pools[wish->pool];
    pool->coming_bytes = minus(pool->coming_bytes, wish->bytes);
    if (!made)
        pool->used_bytes = minus(pool->used_bytes, wish->bytes);
    quota_unlock();
    if (!wish->look)
        return true;
    look(wish->pool, wish->promised_bytes);
    return !made || is_within_quota(pool);
}

/* ---- what goes ---------------------------------------------------------------------------------
 */

static void give_up(struct pool *pool) {
    quota_replace(pool->charged_bytes, pool->used_bytes);
    pool->charged_bytes = pool->used_bytes;
    if (pool->used_bytes == 0)
        clear(pool);
}

void pool_left(int index, uint64_t bytes) {
    if (index < 0)
        return;
    quota_lock();
    struct pool *pool = &pools[index];
    bytes = (bytes + UNIT_BYTES - 1) / UNIT_BYTES * UNIT_BYTES;
    pool->used_bytes = minus(pool->used_bytes, bytes);
    pool->leaving_bytes += bytes;
    pool->left_bytes += bytes;
    pool->changed = true;
    if (pool->state == POOL_GONE)
        give_up(pool);
    quota_unlock();
}

void pool_gone(int index) {
    if (index < 0)
        return;
    quota_lock();
    struct pool *pool = &pools[index];
    if (pool->state == POOL_EXCUSED)
        clear(pool);
    if (pool->state == POOL_CLOSED) {
        pool->state = POOL_GONE;
        give_up(pool);
    }
    quota_unlock();
}

static bool is_asked(const struct pool *pool) {
    quota_lock();
    bool asked = pool->asked > 0;
    quota_unlock();
    return asked;
}

/* The driver may not be asked about a pool that is no more: from here on nobody begins to, and who
 * has begun is waited for. */
void pool_close(int index) {
    if (index < 0)
        return;
    quota_lock();
    struct pool *pool = &pools[index];
    pool->handle = NULL;
    if (pool->state == POOL_HANDLE)
        pool->state = POOL_CLOSED;
    quota_unlock();
    int64_t until_ns = clock_now_ns() + ASKING_PATIENCE_NS;
    while (is_asked(pool) && clock_now_ns() < until_ns)
        clock_doze(ASKING_DOZE_NS);
}

void pool_reopen(int index, CUmemoryPool handle) {
    if (index < 0)
        return;
    quota_lock();
    struct pool *pool = &pools[index];
    pool->handle = handle;
    if (pool->state == POOL_CLOSED)
        pool->state = POOL_HANDLE;
    pool->changed = true;
    quota_unlock();
}

struct dropped {
    bool pools, graphs;
};

static struct dropped drop_all(void) {
    struct dropped dropped = {false, false};
    struct ledger *ledger = quota_lock();
    uint64_t bytes = ledger_take_pooled(ledger, (uint64_t)POOL_UNKNOWN);
    for (int i = 0; i < known; i++) {
        if (pools[i].state == POOL_FREE || pools[i].state == POOL_EXCUSED)
            continue;
        dropped.pools |= pools[i].state != POOL_GRAPHS;
        dropped.graphs |= pools[i].state == POOL_GRAPHS;
        bytes += total(&pools[i]);
        clear(&pools[i]);
    }
    quota_replace(bytes, 0);
    quota_unlock();
    return dropped;
}

/* What the device's own pool and its graphs still have of it, the driver tells. Of a pool that the
 * program made, nobody knows whether it is still there: it counts again once it is used again. */
void pool_contexts_gone(CUdevice device) {
    struct dropped dropped = drop_all();
    pool_current_changed();
    CUmemoryPool handle = NULL;
    if (dropped.pools && driver.device_get_pool(&handle, device) == CUDA_SUCCESS)
        pool_look(pool_of(handle));
    if (dropped.graphs)
        pool_look(pool_of_graphs(device));
    warden_wake();
}

void pool_forget_all(void) {
    memset(pools, 0, sizeof pools);
    known = 0;
    looks = 0;
    pool_current_changed();
}
