/* A lane is what one thread launches into one stream: in order on both sides, so that an event
 * which the thread records after its launches comes after them on the device. Launches of a lane
 * come in groups. A group is granted some device time at once; while that lasts, a launch costs a
 * few instructions and shares no cache line with other threads. When it is used up, an event is
 * recorded behind the group, and when that has happened, the group is complete.
 *
 * From the look at the gate until the driver has taken the launch a lane is its thread's, so that
 * who else has it knows that nothing of it is being launched. There are two ways to have it:
 *
 *   launching  the short way of its own thread (launch_enter in launch.h; stub.h): adds
 *              LANE_ONCE to `launching`, then looks whether `open_to` is the life that it remembers
 *   held       everybody else, the thread itself on the long way, too: takes `holder`, stores 0
 *              into `open_to`, then looks whether `launching` is 0
 *
 * Each stores before it looks, both sequentially consistent: of two at the same moment one, at
 * least, sees the other, and lets go. What the other has done before is seen: `launching` falls,
 * and `open_to` rises, with release, and is looked at with acquire. A thread's own `launching` is
 * written by it alone; a handler of a signal that comes in between leaves it as it was.
 *
 * The short way looks at `attention` before it has the lane. Hence whoever sets a bit there, and
 * needs that no launch goes on without having seen it, then visits all lanes and waits for them
 * (lane_each): they are given new lives, so that a launch that has looked before takes the long
 * way, which looks again with the lane held. The words of the gate are read with the lane had.
 *
 * A lane is never waited for with another lock or lane in hand, and let go before any wait.
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

/* Lanes as a thread remembers them: by the stream as the program names it (lane_name). */
struct thread {
    CUstream names[THREAD_LANES]; /* in a place that is not its own: nothing is remembered */
    struct lane *lanes[THREAD_LANES];
    uint64_t lives[THREAD_LANES]; /* of the lanes, then */
    uint32_t in_callback;         /* of the driver: depth */
    uint32_t on_the_way;          /* past the gate (passage.h): depth */
    int64_t passed_ns;            /* since when, if that is to be paced; 0: it is not */
};

struct lane {
    /* What launches touch: one cache line. */
    _Atomic int32_t launching; /* LANE_ONCE: its thread is on the short way; 0: it is not */
    uint32_t launches;         /* of the open group */
    _Atomic uint64_t open_to;  /* the life for which the short way is open; 0: somebody holds it */
    uint64_t device_word, job_word; /* of the gate, under which the open group was granted */
    int64_t credit_ns;              /* of the grant, not yet used; below 0: no group is open */
    int64_t mean_ns;                /* expected for the launches */
    uint64_t works;                 /* sum of what they are known by: tells if all are alike */

    _Atomic(const struct thread *) holder; /* NULL: nobody */
    _Atomic bool in_driver;                /* held, while the driver takes a launch */
    uint64_t life;                         /* changes with whose it is; 0: nobody's yet */

    /* Whose it is. Changes only while it is held, and idle. */
    _Atomic(const struct thread *) owner;
    _Atomic(CUstream) stream;

    bool open;
    bool close_now;        /* the launch that is being made is the last of its group */
    uint32_t since_sample; /* launches in closed groups since the time of one was measured */
    int64_t sampled_ns;    /* when that was */
    struct estimate *only; /* of the first launch of the open group */
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

/* An odd factor with bits all over: streams are told apart by the upper ones of a product. */
#define LANE_FACTOR UINT32_C(0x9e3779b1)

/* A stream as it is remembered. To the twins of functions for per-thread streams NULL is another
 * one; their names lie between those of streams. */
static inline CUstream lane_name(CUstream as_named, CUstream if_null) {
    return if_null == CU_STREAM_PER_THREAD ? (CUstream)((uintptr_t)as_named + 2) : as_named;
}

/* Where a thread remembers its lane for a stream of that name. */
static inline unsigned lane_place(CUstream name) {
    return (uint32_t)(uintptr_t)name * LANE_FACTOR >> 29;
}

/* Twice it is negative: a handler of a signal has come in between, or the driver calls itself by
 * name. Such a launch takes the long way, which lets it pass. */
#define LANE_ONCE (INT32_C(1) << 30)

/* The short way into a lane that was remembered; false if somebody else has it, or it has another
 * life. */
static inline bool lane_enter(struct lane *lane, uint64_t life) {
    int32_t before = atomic_fetch_add(&lane->launching, LANE_ONCE);
    if (__builtin_expect(before == 0 && atomic_load(&lane->open_to) == life, 1))
        return true;
    atomic_store_explicit(&lane->launching, before, memory_order_release);
    return false;
}

static inline void lane_leave(struct lane *lane) {
    atomic_store_explicit(&lane->launching, 0, memory_order_release);
}

static inline bool lane_is(const struct lane *lane, const struct thread *owner, CUstream stream) {
    return atomic_load_explicit(&lane->owner, memory_order_relaxed) == owner &&
           atomic_load_explicit(&lane->stream, memory_order_relaxed) == stream;
}

/* Holds the lane if nobody else has it. */
bool lane_try(struct lane *lane);

void lane_release(struct lane *lane);

/* Remembers the lane, which this thread holds, by that name. */
void lane_remember(struct lane *lane, CUstream name);

/* Tries to hold a lane of this thread's by its place; NULL if that is nothing. */
struct lane *lane_try_own(unsigned place);

/* This thread's lane for the stream, which has a name (no NULL), held; made if there is none. NULL
 * if the thread is launching into that very lane: from a handler of a signal, or because a driver
 * calls itself by name. */
struct lane *lane_hold(CUstream stream);

/* This thread's lane for the stream, held, if there is one. */
struct lane *lane_hold_known(CUstream stream);

/* Whether this thread is launching. For handlers of signals. */
bool lane_interrupted(void);

/* Calls `visit` with each lane in turn, held, of any thread; one that somebody else has is left
 * out, or waited for and given a new life. How many were left out, but for those of which this
 * thread is in the middle of a launch: the driver may be taking launches into them. */
unsigned lane_each(void (*visit)(struct lane *lane, void *context), void *context, bool wait);

/* The same with the lanes of one stream; others are not waited for. */
void lane_each_in(CUstream stream, void (*visit)(struct lane *lane, void *context), void *context);

/* Waits until whoever makes calls of ours with a lane in hand has let it go. Those whose launch is
 * with the driver are not waited for: it may block for as long as the program likes. */
void lane_await_looks(void);

/* Forgets all lanes: in a child after fork. */
void lane_forget_all(void);

#endif
