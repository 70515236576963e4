#include "sync.h"

#include "account.h"
#include "capture.h"
#include "clock.h"
#include "group.h"
#include "job.h"
#include "launch.h"

/* A group whose time is to be measured exactly ends here, before the thread waits for it. */
void sync_enter(CUstream stream) {
    if (!launch_gated() || stream == STREAM_ALL)
        return;
    struct lane *lane = lane_hold_known(stream);
    if (lane == NULL)
        return;
    if (lane->open && lane->launches > 0 && lane->group.start != NULL && !capture_any())
        group_close(lane, clock_now_ns());
    lane_release(lane);
}

/* The stream was empty when the driver said so, and nobody but this thread launches into its lane.
 */
static void settle_stream(CUstream stream) {
    struct lane *lane = lane_hold_known(stream);
    if (lane == NULL)
        return;
    if (!capture_any())
        group_all_complete(lane, clock_now_ns());
    lane_release(lane);
}

/* Something is complete: a look shows what of this thread's. */
static void settle_thread(void) {
    int64_t now_ns = clock_now_ns();
    for (unsigned i = 0; i < THREAD_LANES; i++) {
        struct lane *lane = lane_try_own(i);
        if (lane == NULL)
            continue;
        if (!capture_any()) {
            group_poll(lane, now_ns);
            if (lane->count == 0 && !(atomic_load(&attention) & ATTENTION_CONTEXTS))
                group_ask(lane, now_ns);
        }
        lane_release(lane);
    }
}

CUresult sync_leave(CUstream stream, enum hook_index hook, CUresult result) {
    if (!launch_gated())
        return result;
    if (result != CUDA_SUCCESS)
        job_note_result(hook, result);
    else if (stream == STREAM_ALL)
        settle_thread();
    else
        settle_stream(stream);
    return result;
}

CUresult read_leave(CUstream stream, enum hook_index hook, CUresult result, size_t bytes) {
    if (bytes == 0 && result == CUDA_SUCCESS)
        return result;
    return sync_leave(stream, hook, result);
}
