#include "lane.h"

#include <pthread.h>
#include <sched.h>

#include "clock.h"
#include "group.h"

#define NOTHING_YET {.stream = STREAM_ALL}
#define NOBODY                                                           \
    {                                                                    \
        .memories = {NOTHING_YET, NOTHING_YET, NOTHING_YET, NOTHING_YET, \
                     NOTHING_YET, NOTHING_YET, NOTHING_YET, NOTHING_YET} \
    }
_Static_assert(THREAD_LANES == 8, "one NOTHING_YET for each");

_Thread_local struct thread self = NOBODY;

static struct lane lanes[LANE_SETS][LANE_WAYS];

/* Lanes that have ever been used, in the order of their first use. Grows only, under the lock. */
static struct lane *used[LANE_SETS * LANE_WAYS];
static _Atomic unsigned used_count;
static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER;

static struct lane *set_of(const struct thread *owner, CUstream stream) {
    uint64_t key = ((uint64_t)(uintptr_t)owner ^ (uint64_t)(uintptr_t)stream << 7) *
                   UINT64_C(0x9e3779b97f4a7c15);
    return lanes[key >> 58];
}

static struct lane *find(const struct thread *owner, CUstream stream) {
    struct lane *set = set_of(owner, stream);
    for (unsigned way = 0; way < LANE_WAYS; way++) {
        if (lane_is(&set[way], owner, stream))
            return &set[way];
    }
    return NULL;
}

/* Waits while somebody else looks at the lane, which is never for long. False if it is this very
 * thread that holds it. */
static bool hold(struct lane *lane) {
    while (!lane_try(lane, LANE_LAUNCHING)) {
        if (atomic_load_explicit(&lane->held, memory_order_relaxed) == LANE_LAUNCHING &&
            atomic_load_explicit(&lane->owner, memory_order_relaxed) == &self)
            return false;
        sched_yield();
    }
    return true;
}

static void take(struct lane *lane, CUstream stream) {
    atomic_store_explicit(&lane->owner, &self, memory_order_relaxed);
    atomic_store_explicit(&lane->stream, stream, memory_order_relaxed);
    atomic_fetch_add_explicit(&lane->life, 1, memory_order_relaxed);
    lane->context = NULL;
    lane->last_end_known = false;
    lane->credit_ns = -1;
}

/* A lane of this set that nobody uses, or that is idle, or else one that is made so. Held. */
static struct lane *claim(CUstream stream) {
    struct lane *set = set_of(&self, stream);
    for (unsigned way = 0; way < LANE_WAYS; way++) {
        if (atomic_load_explicit(&set[way].owner, memory_order_relaxed) == NULL &&
            lane_try(&set[way], LANE_LAUNCHING)) {
            unsigned count = atomic_load_explicit(&used_count, memory_order_relaxed);
            used[count] = &set[way];
            take(&set[way], stream);
            atomic_store_explicit(&used_count, count + 1, memory_order_release);
            return &set[way];
        }
    }
    for (int forced = 0; forced <= 1; forced++) {
        for (unsigned way = 0; way < LANE_WAYS; way++) {
            struct lane *lane = &set[way];
            if (!lane_try(lane, LANE_LAUNCHING))
                continue;
            if (forced)
                group_abandon(lane);
            if (!lane->open && lane->count == 0) {
                take(lane, stream);
                return lane;
            }
            lane_release(lane);
        }
    }
    return NULL;
}

struct lane *lane_hold_known(CUstream stream) {
    struct lane *lane = find(&self, stream);
    if (lane == NULL || !hold(lane))
        return NULL;
    if (lane_is(lane, &self, stream))
        return lane;
    lane_release(lane);
    return NULL;
}

struct lane *lane_hold(CUstream stream) {
    for (;;) {
        struct lane *lane = find(&self, stream);
        if (lane != NULL && !hold(lane))
            return NULL;
        if (lane == NULL) {
            pthread_mutex_lock(&registry);
            lane = claim(stream);
            pthread_mutex_unlock(&registry);
        }
        if (lane != NULL && lane_is(lane, &self, stream))
            return lane;
        if (lane != NULL)
            lane_release(lane); /* it was given away before we held it */
        else
            sched_yield(); /* each lane of the set is being launched into at this moment */
    }
}

void lane_each(void (*visit)(struct lane *lane, void *context), void *context, bool wait) {
    unsigned count = atomic_load_explicit(&used_count, memory_order_acquire);
    for (unsigned i = 0; i < count; i++) {
        struct lane *lane = used[i];
        while (!lane_try(lane, LANE_VISITED)) {
            if (!wait) {
                lane = NULL;
                break;
            }
            clock_doze(50000);
        }
        if (lane == NULL)
            continue;
        visit(lane, context);
        lane_release(lane);
    }
}

void lane_forget_all(void) {
    pthread_mutex_init(&registry, NULL);
    unsigned count = atomic_load_explicit(&used_count, memory_order_relaxed);
    for (unsigned i = 0; i < count; i++)
        *used[i] = (struct lane){.held = 0};
    atomic_store_explicit(&used_count, 0, memory_order_relaxed);
    self = (struct thread)NOBODY;
}
