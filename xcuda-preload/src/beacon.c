#include "beacon.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cancel.h"
#include "driver.h"
#include "log.h"
#include "settings.h"
#include "stub.h"

enum { EVENTS = 256 };

/* How often it is looked whether the page is still there, and whole. */
#define REFRESH_EVERY_NS INT64_C(1000000000)

struct beacon_stream beacon_streams[BEACON_STREAMS + 1];

static struct mux_beacon_slot nowhere;
struct mux_beacon_slot *_Atomic beacon_slot = &nowhere;

static struct mux_beacon beacon; /* by who refreshes */
static atomic_flag refreshing = ATOMIC_FLAG_INIT;
static _Atomic int64_t refreshed_ns;
static int claim_error = -1;

/* What was launched into a stream before an event was recorded in it. */
static struct recorded {
    _Atomic(CUevent) event;
    struct beacon_stream *_Atomic record;
    _Atomic uint64_t launched;
} recorded[EVENTS];

_Static_assert(BEACON_STREAMS == STUB_STREAMS, "stub.h");
_Static_assert(sizeof(struct beacon_stream) == 1 << STUB_SHIFT, "stub.h");
_Static_assert(offsetof(struct beacon_stream, stream) == 0, "stub.h");
_Static_assert(offsetof(struct beacon_stream, launched) == STUB_LAUNCHED, "stub.h");
_Static_assert(offsetof(struct mux_beacon_slot, launches) == STUB_LAUNCHED, "stub.h");
_Static_assert(ATTENTION_BEACON == STUB_BEACON_BIT, "stub.h");

/* ---- streams -----------------------------------------------------------------------------------
 */

static uint64_t launched_in(const struct beacon_stream *record) {
    return atomic_load_explicit(&record->launched, memory_order_relaxed);
}

static bool is_complete(const struct beacon_stream *record) {
    return atomic_load_explicit(&record->complete, memory_order_relaxed) >= launched_in(record);
}

static struct beacon_stream *place(CUstream stream, unsigned probe) {
    unsigned first = (unsigned)(beacon_stream_guess(stream) - beacon_streams);
    return &beacon_streams[(first + probe) % BEACON_STREAMS];
}

static struct beacon_stream *find(CUstream stream) {
    for (unsigned probe = 0; probe < BEACON_PROBES; probe++) {
        struct beacon_stream *record = place(stream, probe);
        if (atomic_load_explicit(&record->stream, memory_order_relaxed) == stream)
            return record;
    }
    return NULL;
}

/* The one name under which a stream is counted, of those that it has. */
static CUstream counted_as(CUstream stream) {
    if (stream == CU_STREAM_LEGACY)
        return NULL;
    return stream == CU_STREAM_PER_THREAD ? BEACON_OWN_STREAM : stream;
}

/* A place goes to another stream when all that is counted there is complete. */
static struct beacon_stream *record_of(CUstream stream) {
    struct beacon_stream *known = find(stream);
    if (known != NULL)
        return known;
    for (unsigned probe = 0; probe < BEACON_PROBES; probe++) {
        struct beacon_stream *record = place(stream, probe);
        CUstream before = atomic_load_explicit(&record->stream, memory_order_relaxed);
        if (is_complete(record) && atomic_compare_exchange_strong(&record->stream, &before, stream))
            return record;
    }
    return &beacon_streams[BEACON_STREAMS];
}

void beacon_count_slowly(CUstream stream) {
    beacon_count_in(record_of(counted_as(stream)));
}

static void raise_to(uint64_t *word, uint64_t value) {
    uint64_t before = __atomic_load_n(word, __ATOMIC_RELAXED);
    while (before < value && !__atomic_compare_exchange_n(word, &before, value, true,
                                                          __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        continue;
}

static void complete_up_to(struct beacon_stream *record, uint64_t launched) {
    uint64_t before = atomic_load_explicit(&record->complete, memory_order_relaxed);
    while (before < launched && !atomic_compare_exchange_weak(&record->complete, &before, launched))
        continue;
}

/* Tells that everything is complete, if it is. The process's count is read first: each launch that
 * is in it has been counted in its stream before. A count that is less by now is that of another
 * page. */
static void tell_if_idle(void) {
    struct mux_beacon_slot *slot = atomic_load_explicit(&beacon_slot, memory_order_relaxed);
    uint64_t launches = mux_load64(&slot->launches);
    for (unsigned i = 0; i <= BEACON_STREAMS; i++) {
        if (!is_complete(&beacon_streams[i]))
            return;
    }
    if (mux_load64(&slot->launches) >= launches)
        raise_to(&slot->complete, launches);
}

/* ---- waits of the program ----------------------------------------------------------------------
 */

/* A count that the record has not come to is another's: see note_record. */
static void mark(struct beacon_wait *wait, struct beacon_stream *record, uint64_t launched) {
    if (record == NULL || is_complete(record) || launched > launched_in(record))
        return;
    wait->marks[wait->count].record = record;
    wait->marks[wait->count++].launched = launched;
}

void beacon_wait_stream(struct beacon_wait *wait, CUstream stream) {
    wait->count = 0;
    struct beacon_stream *record = find(counted_as(stream));
    if (record != NULL)
        mark(wait, record, launched_in(record));
}

static struct recorded *recorded_of(CUevent event) {
    uintptr_t bits = (uintptr_t)event;
    return &recorded[(bits >> 4 ^ bits >> 12) % EVENTS];
}

void beacon_wait_event(struct beacon_wait *wait, CUevent event) {
    wait->count = 0;
    struct recorded *last = recorded_of(event);
    if (atomic_load_explicit(&last->event, memory_order_acquire) == event)
        mark(wait, atomic_load_explicit(&last->record, memory_order_relaxed),
             atomic_load_explicit(&last->launched, memory_order_relaxed));
}

void beacon_wait_all(struct beacon_wait *wait) {
    wait->count = 0;
    for (unsigned i = 0; i <= BEACON_STREAMS; i++)
        mark(wait, &beacon_streams[i], launched_in(&beacon_streams[i]));
}

/* One thread at a time. */
static void refresh(void) {
    int error = mux_beacon_claim(&beacon, settings()->device_dir);
    atomic_store(&beacon_slot, error == 0 ? beacon.slot : &nowhere);
    if (error != claim_error)
        log_line(error == 0 ? "counted in %s" : "not counted in %s (%s)", beacon.path,
                 strerror(error));
    claim_error = error;
}

static void refresh_if_due(void) {
    struct timespec now; /* of the coarse clock, which costs a few loads */
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    int64_t now_ns = now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
    int64_t since_ns = now_ns - atomic_load_explicit(&refreshed_ns, memory_order_relaxed);
    if (since_ns < REFRESH_EVERY_NS)
        return;
    int before = errno, cancel = cancel_forbid();
    if (!atomic_flag_test_and_set(&refreshing)) {
        atomic_store_explicit(&refreshed_ns, now_ns, memory_order_relaxed);
        refresh();
        atomic_flag_clear(&refreshing);
    }
    cancel_restore(cancel);
    errno = before;
}

void beacon_waited(const struct beacon_wait *wait, CUresult result) {
    if (result != CUDA_SUCCESS)
        return;
    for (unsigned i = 0; i < wait->count; i++)
        complete_up_to(wait->marks[i].record, wait->marks[i].launched);
    if (wait->count > 0)
        tell_if_idle();
    refresh_if_due();
}

/* Threads that record events of one place at a time may leave the record of one there with the
 * count of another. */
static CUresult note_record(CUevent event, CUstream stream, CUresult result) {
    if (result != CUDA_SUCCESS || !beacon_on())
        return result;
    struct beacon_stream *record = find(counted_as(stream));
    struct recorded *last = recorded_of(event);
    atomic_store_explicit(&last->event, NULL, memory_order_relaxed);
    atomic_store_explicit(&last->record, record, memory_order_relaxed);
    atomic_store_explicit(&last->launched, record == NULL ? 0 : launched_in(record),
                          memory_order_relaxed);
    atomic_store_explicit(&last->event, event, memory_order_release);
    return result;
}

static CUstream named_in(bool own, CUstream stream) {
    return own && stream == NULL ? CU_STREAM_PER_THREAD : stream;
}

CUresult on_event_record(enum hook_index hook, CUevent event, CUstream stream) {
    CUresult result = REAL_OF(hook, cuEventRecord)(event, stream);
    return note_record(event, named_in(hook == HOOK_cuEventRecord_ptsz, stream), result);
}

CUresult on_event_record_with_flags(enum hook_index hook, CUevent event, CUstream stream,
                                    unsigned int flags) {
    CUresult result = REAL_OF(hook, cuEventRecordWithFlags)(event, stream, flags);
    return note_record(event, named_in(hook == HOOK_cuEventRecordWithFlags_ptsz, stream), result);
}

/* ---- what ends ---------------------------------------------------------------------------------
 */

static void give_up(struct beacon_stream *record) {
    complete_up_to(record, launched_in(record));
}

void beacon_capture_ends(void) {
    for (unsigned i = 0; i <= BEACON_STREAMS; i++)
        give_up(&beacon_streams[i]);
    tell_if_idle();
}

void beacon_stream_ends(CUstream stream) {
    struct beacon_stream *record = find(stream);
    if (record != NULL) {
        give_up(record);
        tell_if_idle();
    }
}

/* ---- life --------------------------------------------------------------------------------------
 */

void beacon_forget_all(void) {
    atomic_store(&beacon_slot, &nowhere);
    mux_beacon_forget(&beacon);
    nowhere = (struct mux_beacon_slot){.owner = 0};
    atomic_flag_clear(&refreshing);
    atomic_store(&refreshed_ns, 0);
    claim_error = -1;
    memset(beacon_streams, 0, sizeof beacon_streams);
    memset(recorded, 0, sizeof recorded);
}

/* Nobody refreshes any more, so that no page comes back. Other threads count on. */
static void at_exit(void) {
    if (!atomic_flag_test_and_set(&refreshing))
        mux_beacon_end(&beacon);
}

void beacon_start(void) {
    static bool registered;
    if (beacon.pid != 0 && beacon.pid != getpid()) /* forked while its parent started */
        beacon_forget_all();
    refresh_if_due();
    if (!registered)
        registered = atexit(at_exit) == 0;
}
