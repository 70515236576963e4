#include "lane.h"

#include <pthread.h>
#include <sched.h>

#include "clock.h"
#include "group.h"

/* Each of these names has its place elsewhere. */
#define NOBODY                                                    \
    {                                                             \
        .names = {STREAM_ALL, STREAM_ALL, STREAM_ALL, NULL,       \
                  STREAM_ALL, STREAM_ALL, STREAM_ALL, STREAM_ALL} \
    }
_Static_assert(THREAD_LANES == 8 && (uint32_t)-1 * LANE_FACTOR >> 29 == 3, "NULL is in that place");

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

static bool mine(const struct lane *lane) {
    return atomic_load_explicit(&lane->owner, memory_order_relaxed) == &self;
}

/* Whether this very thread is launching into the lane, and a handler of a signal has come in
 * between, or the driver calls itself by name. */
static bool interrupted(const struct lane *lane) {
    return atomic_load_explicit(&lane->holder, memory_order_relaxed) == &self ||
           (mine(lane) && atomic_load_explicit(&lane->launching, memory_order_relaxed) != 0);
}

/* Shuts the short way, unless somebody else has done so. */
static bool shut(struct lane *lane) {
    const struct thread *nobody = NULL;
    if (!atomic_compare_exchange_strong(&lane->holder, &nobody, &self))
        return false;
    atomic_store(&lane->open_to, 0);
    return true;
}

bool lane_try(struct lane *lane) {
    if (atomic_load_explicit(&lane->launching, memory_order_relaxed) != 0 || !shut(lane))
        return false;
    if (atomic_load(&lane->launching) == 0)
        return true;
    lane_release(lane);
    return false;
}

void lane_release(struct lane *lane) {
    atomic_store_explicit(&lane->open_to, lane->life, memory_order_release);
    atomic_store_explicit(&lane->holder, NULL, memory_order_release);
}

/* Waits while somebody else looks at the lane, which is never for long. False if it is this very
 * thread that has it. */
static bool hold(struct lane *lane) {
    while (!lane_try(lane)) {
        if (interrupted(lane))
            return false;
        sched_yield();
    }
    return true;
}

/* The same for a visitor. Once the short way is shut, the thread itself waits for him. */
static bool wait_to_hold(struct lane *lane) {
    while (!shut(lane)) {
        if (interrupted(lane))
            return false;
        clock_doze(50000);
    }
    while (atomic_load(&lane->launching) != 0) {
        if (mine(lane)) {
            lane_release(lane);
            return false;
        }
        clock_doze(50000);
    }
    lane->life++;
    return true;
}

static void take(struct lane *lane, CUstream stream) {
    atomic_store_explicit(&lane->owner, &self, memory_order_relaxed);
    atomic_store_explicit(&lane->stream, stream, memory_order_relaxed);
    lane->life++;
    lane->context = NULL;
    lane->last_end_known = false;
    lane->credit_ns = -1;
}

/* A lane of this set that nobody uses, or that is idle, or else one that is made so. Held. */
static struct lane *claim(CUstream stream) {
    struct lane *set = set_of(&self, stream);
    for (unsigned way = 0; way < LANE_WAYS; way++) {
        if (atomic_load_explicit(&set[way].owner, memory_order_relaxed) == NULL &&
            lane_try(&set[way])) {
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
            if (!lane_try(lane))
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

void lane_remember(struct lane *lane, CUstream name) {
    unsigned place = lane_place(name);
    self.names[place] = name;
    self.lanes[place] = lane;
    self.lives[place] = lane->life;
}

struct lane *lane_try_own(unsigned place) {
    struct lane *lane = self.lanes[place];
    if (lane == NULL || !mine(lane) || !lane_try(lane))
        return NULL;
    if (mine(lane))
        return lane;
    lane_release(lane);
    return NULL;
}

bool lane_interrupted(void) {
    for (unsigned place = 0; place < THREAD_LANES; place++) {
        if (self.lanes[place] != NULL && interrupted(self.lanes[place]))
            return true;
    }
    return false;
}

unsigned lane_each(void (*visit)(struct lane *lane, void *context), void *context, bool wait) {
    unsigned left_out = 0, count = atomic_load_explicit(&used_count, memory_order_acquire);
    for (unsigned i = 0; i < count; i++) {
        struct lane *lane = used[i];
        if (wait ? wait_to_hold(lane) : lane_try(lane)) {
            visit(lane, context);
            lane_release(lane);
        } else if (!interrupted(lane)) {
            left_out++;
        }
    }
    return left_out;
}

void lane_each_in(CUstream stream, void (*visit)(struct lane *lane, void *context), void *context) {
    unsigned count = atomic_load_explicit(&used_count, memory_order_acquire);
    for (unsigned i = 0; i < count; i++) {
        struct lane *lane = used[i];
        if (atomic_load_explicit(&lane->stream, memory_order_relaxed) == stream &&
            wait_to_hold(lane)) {
            visit(lane, context);
            lane_release(lane);
        }
    }
}

void lane_await_looks(void) {
    unsigned count = atomic_load_explicit(&used_count, memory_order_acquire);
    for (unsigned i = 0; i < count; i++) {
        while (atomic_load(&used[i]->holder) != NULL && !atomic_load(&used[i]->in_driver) &&
               !interrupted(used[i]))
            clock_doze(50000);
    }
}

void lane_forget_all(void) {
    pthread_mutex_init(&registry, NULL);
    unsigned count = atomic_load_explicit(&used_count, memory_order_relaxed);
    for (unsigned i = 0; i < count; i++)
        *used[i] = (struct lane){.life = 0};
    atomic_store_explicit(&used_count, 0, memory_order_relaxed);
    self = (struct thread)NOBODY;
}
