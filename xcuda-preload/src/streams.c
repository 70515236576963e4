/* Streams and graphs that go, and callbacks. */
#include <stdlib.h>

#include "beacon.h"
#include "capture.h"
#include "clock.h"
#include "driver.h"
#include "estimate.h"
#include "group.h"
#include "job.h"
#include "launch.h"
#include "quota_graphs.h"
#include "work.h"

/* The next graph may get the same handle. */
CUresult on_graph_exec_destroy(enum hook_index hook, CUgraphExec graph) {
    if (launch_gated())
        estimate_forget(work_graph(graph));
    struct ledger_entry entry;
    bool known = quota_graph_forget(graph, &entry);
    return quota_graph_settle_gone(REAL_OF(hook, cuGraphExecDestroy)(graph), known, &entry);
}

/* What is in the stream is still done: the marks behind it tell when. */
static void close_in(struct lane *lane, void *stream) {
    if (lane->open && atomic_load_explicit(&lane->stream, memory_order_relaxed) == (CUstream)stream)
        group_close(lane, clock_now_ns());
}

CUresult on_stream_destroy(enum hook_index hook, CUstream stream) {
    if (beacon_on())
        beacon_stream_ends(stream);
    if (launch_gated() && stream != NULL && !(capture_any() && capture_covers(stream))) {
        int mode = capture_relax();
        lane_each_in(stream, close_in, stream);
        capture_restore(mode);
    }
    return REAL_OF(hook, cuStreamDestroy)(stream);
}

/* ---- callbacks ---------------------------------------------------------------------------------
 */

/* The driver allows no calls in a callback, and tells so. Were such a call held up at the gate, the
 * stream would wait for it, and it for the stream. */
struct callback {
    CUhostFn host;
    CUstreamCallback stream;
    void *data;
};

static struct callback *wrap(CUhostFn host, CUstreamCallback stream, void *data) {
    struct callback *callback = malloc(sizeof *callback);
    if (callback != NULL)
        *callback = (struct callback){host, stream, data};
    return callback;
}

/* Called once: a stream that is captured, whose callbacks may run any number of times, gets the
 * program's own function. */
static void run_host(void *wrapped) {
    struct callback callback = *(struct callback *)wrapped;
    free(wrapped);
    self.in_callback++;
    callback.host(callback.data);
    self.in_callback--;
}

static void run_stream(CUstream stream, CUresult status, void *wrapped) {
    struct callback callback = *(struct callback *)wrapped;
    free(wrapped);
    self.in_callback++;
    callback.stream(stream, status, callback.data);
    self.in_callback--;
}

static bool runs_once(CUstream stream, const void *function) {
    return launch_gated() && function != NULL && !(capture_any() && capture_covers(stream));
}

CUresult on_launch_host_func(enum hook_index hook, CUstream stream, CUhostFn function, void *data) {
    struct callback *callback =
        runs_once(stream, (void *)function) ? wrap(function, NULL, data) : NULL;
    if (callback == NULL)
        return REAL_OF(hook, cuLaunchHostFunc)(stream, function, data);
    CUresult result = REAL_OF(hook, cuLaunchHostFunc)(stream, run_host, callback);
    if (result != CUDA_SUCCESS)
        free(callback);
    return result;
}

CUresult on_launch_host_func_v2(enum hook_index hook, CUstream stream, CUhostFn function,
                                void *data, unsigned int mode) {
    struct callback *callback =
        runs_once(stream, (void *)function) ? wrap(function, NULL, data) : NULL;
    if (callback == NULL)
        return REAL_OF(hook, cuLaunchHostFunc_v2)(stream, function, data, mode);
    CUresult result = REAL_OF(hook, cuLaunchHostFunc_v2)(stream, run_host, callback, mode);
    if (result != CUDA_SUCCESS)
        free(callback);
    return result;
}

CUresult on_stream_add_callback(enum hook_index hook, CUstream stream, CUstreamCallback function,
                                void *data, unsigned int flags) {
    struct callback *callback =
        runs_once(stream, (void *)function) ? wrap(NULL, function, data) : NULL;
    if (callback == NULL)
        return REAL_OF(hook, cuStreamAddCallback)(stream, function, data, flags);
    CUresult result = REAL_OF(hook, cuStreamAddCallback)(stream, run_stream, callback, flags);
    if (result != CUDA_SUCCESS)
        free(callback);
    return result;
}
