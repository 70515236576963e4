/* A lane is what one thread launches into one stream: in order on both sides, so that an event
 * which the thread records after its launches comes after them on the device. Launches of a lane
 * come in groups. A group is granted some device time at once; while that lasts, a launch costs a
 * few instructions and shares no cache line with other threads. When it is used up, an event is
 * recorded behind the group, and when that has happened, the group is complete.
 *
 * A lane is held (`held`) by its thread from the look at the gate until the driver has taken the
 * launch: who holds a lane knows that nothing of it is being launched. Others hold it to see
 * whether its groups are complete. It is never waited for with another lock or lane in hand, and
 * let go before any wait.
 *
 * Locks, in the order in which they may be taken: lane (held) > job (job.c) > account (account.c);
 * the registry of lanes (lane.c) before a lane that is only tried. */
#ifndef XCUDA_LANE_H
#define XCUDA_LANE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "context.h"
#include "cuda_types.h"
#include "estimate.h"
#include "visibility.h"

enum {
    LANE_SETS = 64,
    LANE_WAYS = 16,
    LANE_GROUPS = 8,  /* in flight, per lane */
    THREAD_LANES = 8, /* remembered by a thread */
};

/* Who holds a lane. */
enum lane_holder {
    LANE_FREE,
    LANE_LAUNCHING, /* its thread */
    LANE_VISITED,   /* somebody who looks after its groups */
};

/* Launches between two marks in a stream. */
struct group {
    struct estimate *only; /* what all of its launches are alike to; NULL: various */
    CUevent start;         /* NULL: see `follows` */
    CUevent end;
    int64_t cost_ns;    /* of its launches, held against the window */
    int64_t mean_ns;    /* expected in all */
    int64_t charged_ns; /* to the budget, in advance */
    int64_t opened_ns, closed_ns;
    int64_t due_ns; /* when it is expected to be complete */
    uint32_t launches;
    bool follows;    /* it began when the group before it ended, which was not over then */
    bool backlogged; /* nor when the last launch was made: the stream was never idle in between */
    bool sample;     /* one launch between two marks of its own: teaches what it takes */
};

/* No stream in particular. */
#define STREAM_ALL ((CUstream) ~(uintptr_t)0)

/* A lane as a thread remembers it: by the stream as the program names it. */
struct memory {
    struct lane *lane;
    uint64_t life;   /* the lane's, then */
    CUstream stream; /* STREAM_ALL: nothing remembered */
};

struct thread {
    struct memory memories[THREAD_LANES];
    uint32_t in_callback; /* of the driver: depth */
    uint32_t on_the_way;  /* past the gate (passage.h): depth */
};

struct lane {
    _Atomic uint32_t held;
    uint32_t since_sample; /* launches in closed groups since one was measured alone */

    _Atomic uint64_t life; /* how often it was given to somebody; 0: never */

    /* Whose it is. Changes only while it is held, and idle. */
    _Atomic(const struct thread *) owner;
    _Atomic(CUstream) stream;

    /* The words of the gate under which the open group was granted. */
    uint64_t device_word, job_word;

    /* The open group, as far as launches touch it. */
    int64_t credit_ns; /* of the grant, not yet used; below 0: no group is open */
    int64_t mean_ns;
    struct estimate *only;
    uint32_t launches;
    bool close_now; /* the launch that is being made is the last of its group */

    bool open;
    uint32_t reported; /* launches of the open group that the account knows of, and their cost */
    int64_t reported_ns;
    uint32_t seen_launches; /* at the last look of somebody else */
    int64_t quiet_since_ns; /* when they were first seen to be so many */
    int64_t granted_ns;
    struct group group; /* the rest of the open group */

    CUcontext context;
    struct moment last_end; /* of the last complete group */
    bool last_end_known;
    unsigned first, count;
    struct group groups[LANE_GROUPS]; /* closed, in flight: a ring */
} __attribute__((aligned(64)));

extern HIDDEN _Thread_local struct thread self;

static inline CUstream stream_named(CUstream stream, CUstream if_null) {
    return stream == NULL ? if_null : stream;
}

static inline struct memory *lane_memory(CUstream stream) {
    uintptr_t bits = (uintptr_t)stream;
    return &self.memories[(bits >> 5 ^ bits >> 12) % THREAD_LANES];
}

/* Sequentially consistent: who has the lane after the gate was closed sees no launch that passed
 * the gate before. */
static inline bool lane_try(struct lane *lane, enum lane_holder holder) {
    uint32_t free = LANE_FREE;
    return atomic_compare_exchange_strong_explicit(&lane->held, &free, holder, memory_order_seq_cst,
                                                   memory_order_relaxed);
}

static inline void lane_release(struct lane *lane) {
    atomic_store_explicit(&lane->held, LANE_FREE, memory_order_release);
}

static inline bool lane_is(const struct lane *lane, const struct thread *owner, CUstream stream) {
    return atomic_load_explicit(&lane->owner, memory_order_relaxed) == owner &&
           atomic_load_explicit(&lane->stream, memory_order_relaxed) == stream;
}

/* This thread's lane for the stream, which has a name (no NULL), held; made if there is none. NULL
 * if the thread is launching into that very lane: from a handler of a signal, or because a driver
 * calls itself by name. */
struct lane *lane_hold(CUstream stream);

/* This thread's lane for the stream, held, if there is one. */
struct lane *lane_hold_known(CUstream stream);

/* Calls `visit` with each lane in turn, held, of any thread; one that is being launched into is
 * left out, or waited for. */
void lane_each(void (*visit)(struct lane *lane, void *context), void *context, bool wait);

/* Forgets all lanes: in a child after fork. */
void lane_forget_all(void);

#endif
