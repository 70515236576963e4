#include "capture.h"

#include <pthread.h>

#include "beacon.h"
#include "clock.h"
#include "driver.h"
#include "group.h"
#include "job.h"
#include "launch.h"

/* Captures that have begun and not ended. One that ends unseen (its stream is destroyed) leaves the
 * count too high: then launches cost a little more, and that is all. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned captures;

static void count(int change) {
    pthread_mutex_lock(&lock);
    captures += (unsigned)change;
    if (captures > 0)
        atomic_fetch_or(&attention, ATTENTION_CAPTURE);
    else
        atomic_fetch_and(&attention, ~(uint32_t)ATTENTION_CAPTURE);
    pthread_mutex_unlock(&lock);
}

static bool is_captured(CUstream stream) {
    int status = CU_STREAM_CAPTURE_STATUS_NONE;
    return driver.stream_is_capturing(stream, &status) == CUDA_SUCCESS &&
           status != CU_STREAM_CAPTURE_STATUS_NONE;
}

/* Closes the open group while its stream may still be marked. */
static void close_in(struct lane *lane, void *stream) {
    bool same = atomic_load_explicit(&lane->stream, memory_order_relaxed) == (CUstream)stream;
    bool own = atomic_load_explicit(&lane->owner, memory_order_relaxed) == &self;
    if (same && lane->open && (own || (CUstream)stream != CU_STREAM_PER_THREAD))
        group_close(lane, clock_now_ns());
}

/* A capture that began now would keep the drain from waiting for its context. */
static void hold_if_closed(void) {
    if (!(atomic_load(&attention) & ATTENTION_CLOSED) || self.in_callback > 0)
        return;
    count(-1);
    for (;;)
        clock_doze(1000000);
}

/* No stream that is captured has an open group. */
static void end_groups_in(CUstream stream) {
    int mode = capture_relax();
    if (!is_captured(stream))
        lane_each_in(stream, close_in, stream);
    capture_restore(mode);
}

/* From here on nobody looks at a stream without asking first. */
void begin_enter(CUstream stream) {
    if (!launch_gated())
        return;
    count(1);
    hold_if_closed();
    lane_await_looks();
    end_groups_in(stream);
}

CUresult begin_leave(CUstream stream, enum hook_index hook, CUresult result) {
    (void)stream;
    if (!launch_gated())
        return result;
    if (result != CUDA_SUCCESS)
        count(-1);
    job_note_result(hook, result);
    return result;
}

/* A stream that waits for an event of a capture is captured from then on. */
CUresult on_stream_wait_event(enum hook_index hook, CUstream stream, CUevent event,
                              unsigned int flags) {
    bool own = hook == HOOK_cuStreamWaitEvent_ptsz;
    if (launch_gated() && capture_any())
        end_groups_in(stream_named(stream, own ? CU_STREAM_PER_THREAD : CU_STREAM_LEGACY));
    return REAL_OF(hook, cuStreamWaitEvent)(stream, event, flags);
}

/* The end of a capture is told by the stream: the call can fail and end it all the same. */
static _Thread_local bool was_captured;

void end_enter(CUstream stream) {
    was_captured = launch_gated() && is_captured(stream);
}

CUresult end_leave(CUstream stream, enum hook_index hook, CUresult result) {
    if (beacon_on())
        beacon_capture_ends();
    if (was_captured && !is_captured(stream))
        count(-1);
    job_note_result(hook, result);
    return result;
}

/* An error is the driver's way to say that a capture elsewhere forbids this stream: it will refuse
 * the launch, too. */
bool capture_covers(CUstream stream) {
    int status = CU_STREAM_CAPTURE_STATUS_NONE;
    return driver.stream_is_capturing(stream, &status) != CUDA_SUCCESS ||
           status != CU_STREAM_CAPTURE_STATUS_NONE;
}

int capture_relax(void) {
    int mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    if (capture_any())
        driver.exchange_capture_mode(&mode);
    return mode;
}

void capture_restore(int mode) {
    if (mode != CU_STREAM_CAPTURE_MODE_RELAXED)
        driver.exchange_capture_mode(&mode);
}

void capture_forget_all(void) {
    pthread_mutex_init(&lock, NULL);
    captures = 0;
    atomic_fetch_and(&attention, ~(uint32_t)ATTENTION_CAPTURE);
}
