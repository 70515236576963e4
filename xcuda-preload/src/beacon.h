/* The beacon: what an online process tells offline ones, and all that the library does in it. It
 * counts launches, of the process in its beacon page, and of each stream in its own memory; when
 * the program has waited for something, it finds out whether all that was launched is complete, and
 * stores so. It observes: no call to the driver is added, held up or changed, and whatever is
 * missing, the program runs as without it.
 *
 * No locks, no calls to the system and no clock at a launch. Counters are exact; what is known of
 * streams may err in races of a few instructions, and for streams that nobody waits for by name:
 * readers do not believe a process that stands still. */
#ifndef XCUDA_BEACON_H
#define XCUDA_BEACON_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "gate.h"
#include "hooks.h"
#include "lane.h"
#include "pages.h"

enum { BEACON_STREAMS = 64, BEACON_PROBES = 4 };

/* Launches into one stream. The one behind the last is of streams that found no place. */
struct beacon_stream {
    _Atomic(CUstream) stream; /* as the program names it; NULL until it has been used */
    _Atomic uint64_t launched;
    _Atomic uint64_t complete; /* so many of them are known to be complete */
    uint64_t pad;
};

extern HIDDEN struct beacon_stream beacon_streams[BEACON_STREAMS + 1];

/* Where launches of the process are counted: in its page, or nobody's memory. */
extern HIDDEN struct mux_beacon_slot *_Atomic beacon_slot;

/* Each thread's own stream is another one, under one name. */
#define BEACON_OWN_STREAM ((CUstream)(void *)&self)

static inline bool beacon_on(void) {
    return atomic_load_explicit(&attention, memory_order_relaxed) & ATTENTION_BEACON;
}

static inline struct beacon_stream *beacon_stream_guess(CUstream stream) {
    uintptr_t bits = (uintptr_t)stream;
    return &beacon_streams[(bits >> 5 ^ bits >> 12) % BEACON_STREAMS];
}

/* The stream's counter goes first: who sees the process's sees the stream's. */
static inline void beacon_count_in(struct beacon_stream *record) {
    atomic_fetch_add_explicit(&record->launched, 1, memory_order_relaxed);
    struct mux_beacon_slot *slot = atomic_load_explicit(&beacon_slot, memory_order_relaxed);
    __atomic_fetch_add(&slot->launches, 1, __ATOMIC_RELEASE);
}

/* Counts a launch that is about to be made. False if the stream has no record where it is looked
 * for first: then nothing is counted yet. */
static inline bool beacon_count(CUstream stream) {
    struct beacon_stream *record = beacon_stream_guess(stream);
    if (__builtin_expect(atomic_load_explicit(&record->stream, memory_order_relaxed) != stream, 0))
        return false;
    beacon_count_in(record);
    return true;
}

void beacon_count_slowly(CUstream stream);

/* What will be complete when a call that the program is about to make has ended well. */
struct beacon_wait {
    unsigned count;
    struct {
        struct beacon_stream *record;
        uint64_t launched;
    } marks[BEACON_STREAMS + 1];
};

void beacon_wait_stream(struct beacon_wait *wait, CUstream stream);
void beacon_wait_event(struct beacon_wait *wait, CUevent event);
void beacon_wait_all(struct beacon_wait *wait);

/* After that call. */
void beacon_waited(const struct beacon_wait *wait, CUresult result);

/* What was launched while streams were captured was not executed. */
void beacon_capture_ends(void);

/* Nobody will wait for this stream any more. */
void beacon_stream_ends(CUstream stream);

void beacon_start(void);
void beacon_forget_all(void);

#endif
