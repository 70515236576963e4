/* Captures of streams into graphs, and what may not be done meanwhile.
 *
 * A call that a capture forbids fails, and invalidates the capture: from then on its streams give
 * CUDA_ERROR_STREAM_CAPTURE_INVALIDATED until the capture is ended, which gives no graph.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda_graph.h"

struct capture {
    uint64_t id;
    struct graph *graph;
    bool keeps_graph; /* cuStreamBeginCaptureToGraph: the graph is the program's */
    CUstreamCaptureMode mode;
    const struct thread *thread;
    struct stream *origin;
    bool invalid;
    struct stream **streams; /* the origin and those that joined */
    size_t stream_count;
    CUgraphEdgeData *edges; /* zeroes, for who asks for the edges to a stream's tips */
    size_t edge_count;
    struct capture *next;
};

static pthread_mutex_t capture_lock = PTHREAD_MUTEX_INITIALIZER;
static struct capture *captures;
static _Atomic unsigned capture_count; /* so that programs without captures pay nothing */

/* --- tips: what the next node of a stream comes after --- */

static bool set_tips(struct node ***tips, size_t *count, struct node *const *to, size_t to_count) {
    struct node **copy = malloc((to_count + 1) * sizeof *copy);
    if (!copy)
        return false;
    if (to_count)
        memcpy(copy, to, to_count * sizeof *copy);
    free(*tips);
    *tips = copy;
    *count = to_count;
    return true;
}

static bool add_tips(struct stream *stream, struct node *const *more, size_t count) {
    struct node **all = malloc((stream->tip_count + count + 1) * sizeof *all);
    if (!all)
        return false;
    size_t total = stream->tip_count;
    if (total)
        memcpy(all, stream->tips, total * sizeof *all);
    for (size_t i = 0; i < count; i++) {
        size_t at = 0;
        while (at < total && all[at] != more[i])
            at++;
        if (at == total)
            all[total++] = more[i];
    }
    free(stream->tips);
    stream->tips = all;
    stream->tip_count = total;
    return true;
}

/* --- captures; all under the capture lock --- */

static struct capture *find_capture(uint64_t id) {
    for (struct capture *c = captures; c; c = c->next)
        if (c->id == id)
            return c;
    return NULL;
}

static bool join(struct capture *capture, struct stream *stream) {
    struct stream **streams =
        realloc(capture->streams, (capture->stream_count + 1) * sizeof *streams);
    if (!streams)
        return false;
    capture->streams = streams;
    streams[capture->stream_count++] = stream;
    stream->capture = capture;
    stream->tip_count = 0;
    return true;
}

static void leave(struct stream *stream) {
    free(stream->tips);
    stream->tips = NULL;
    stream->tip_count = 0;
    stream->capture = NULL;
}

static void end_capture(struct capture *capture) {
    struct capture **link = &captures;
    while (*link != capture)
        link = &(*link)->next;
    *link = capture->next;
    for (size_t i = 0; i < capture->stream_count; i++)
        if (capture->streams[i])
            leave(capture->streams[i]);
    free(capture->streams);
    free(capture->edges);
    free(capture);
    capture_count--;
}

/* The legacy default stream waits for blocking streams, which a capture cannot express. */
static CUresult check_legacy(const struct stream *legacy) {
    CUresult result = CUDA_SUCCESS;
    for (struct capture *c = captures; c; c = c->next)
        for (size_t i = 0; i < c->stream_count; i++) {
            const struct stream *stream = c->streams[i];
            if (!stream || stream->context != legacy->context ||
                stream->flags & CU_STREAM_NON_BLOCKING)
                continue;
            c->invalid = true;
            result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
    return result;
}

/* Calls that could block or synchronise. Which captures object depends on the mode of this thread
 * and on that in which they were begun. */
static CUresult check_unsafe(void) {
    const struct thread *thread = this_thread();
    CUresult result = CUDA_SUCCESS;
    if (thread->capture_mode == CU_STREAM_CAPTURE_MODE_RELAXED)
        return result;
    for (struct capture *c = captures; c; c = c->next) {
        bool own = c->thread == thread && c->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
        bool global = c->mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
                      thread->capture_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (!own && !global)
            continue;
        c->invalid = true;
        result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return result;
}

static CUresult check_capturing(const struct stream *stream, bool *captured) {
    *captured = stream->capture != NULL;
    if (stream->capture)
        return stream->capture->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
    return stream->is_legacy ? check_legacy(stream) : CUDA_SUCCESS;
}

CUresult capture_of(struct stream *stream, bool *captured) {
    *captured = false;
    if (capture_count == 0)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&capture_lock);
    CUresult result = check_capturing(stream, captured);
    pthread_mutex_unlock(&capture_lock);
    return result;
}

CUresult capture_forbids(void) {
    if (capture_count == 0)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&capture_lock);
    CUresult result = check_unsafe();
    pthread_mutex_unlock(&capture_lock);
    return result;
}

/* A context cannot be synchronised while one of its streams is captured, whatever the mode. */
CUresult capture_forbids_context(const struct context *context) {
    if (capture_count == 0)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&capture_lock);
    CUresult result = check_unsafe();
    for (struct capture *c = captures; c; c = c->next) {
        if (c->origin->context != context)
            continue;
        c->invalid = true;
        result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    pthread_mutex_unlock(&capture_lock);
    return result;
}

CUresult capture_forbids_stream(struct stream *stream) {
    if (capture_count == 0)
        return CUDA_SUCCESS;
    bool captured;
    pthread_mutex_lock(&capture_lock);
    CUresult result = check_capturing(stream, &captured);
    if (result == CUDA_SUCCESS && captured) {
        stream->capture->invalid = true;
        result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    result = result ? result : check_unsafe();
    pthread_mutex_unlock(&capture_lock);
    return result;
}

CUresult capture_forbids_event(struct event *event) {
    if (capture_count == 0 && !event->capture_id)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&capture_lock);
    CUresult result = CUDA_SUCCESS;
    if (event->capture_id) {
        struct capture *capture = find_capture(event->capture_id);
        if (capture)
            capture->invalid = true;
        result = CUDA_ERROR_CAPTURED_EVENT;
    }
    result = result ? result : check_unsafe();
    pthread_mutex_unlock(&capture_lock);
    return result;
}

bool capture_has(const struct event *event) {
    return event->capture_id != 0;
}

CUresult capture_node(struct stream *stream, const struct node *content) {
    bool captured;
    pthread_mutex_lock(&capture_lock);
    CUresult result = check_capturing(stream, &captured);
    if (result == CUDA_SUCCESS) {
        struct node *node =
            captured ? graph_add(stream->capture->graph, content, stream->tips, stream->tip_count)
                     : NULL;
        if (!node || !set_tips(&stream->tips, &stream->tip_count, &node, 1))
            result = captured ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    pthread_mutex_unlock(&capture_lock);
    return result;
}

CUresult capture_record(struct stream *stream, struct event *event) {
    bool captured;
    pthread_mutex_lock(&capture_lock);
    CUresult result = check_capturing(stream, &captured);
    if (result == CUDA_SUCCESS && captured) {
        event->capture_id = stream->capture->id;
        if (!set_tips(&event->tips, &event->tip_count, stream->tips, stream->tip_count))
            result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    pthread_mutex_unlock(&capture_lock);
    return result;
}

static CUresult wait_captured(struct stream *stream, struct event *event) {
    bool captured;
    CUresult result = check_capturing(stream, &captured);
    if (result)
        return result;
    if (!event->capture_id) { /* recorded outside, if at all */
        stream->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    struct capture *capture = find_capture(event->capture_id);
    if (!capture)
        return CUDA_ERROR_CAPTURED_EVENT;
    if (capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (captured && stream->capture != capture) {
        capture->invalid = stream->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    if (!captured && stream->is_legacy) {
        capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    if (!captured && !join(capture, stream))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return add_tips(stream, event->tips, event->tip_count) ? CUDA_SUCCESS
                                                           : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult capture_wait(struct stream *stream, struct event *event) {
    pthread_mutex_lock(&capture_lock);
    CUresult result = wait_captured(stream, event);
    pthread_mutex_unlock(&capture_lock);
    return result;
}

void capture_forget_stream(struct stream *stream) {
    pthread_mutex_lock(&capture_lock);
    struct capture *capture = stream->capture;
    if (capture) {
        capture->invalid = true;
        for (size_t i = 0; i < capture->stream_count; i++)
            if (capture->streams[i] == stream)
                capture->streams[i] = NULL;
        leave(stream);
        if (capture->origin == stream) { /* nobody can end it any more */
            if (!capture->keeps_graph)
                graph_free(capture->graph);
            end_capture(capture);
        }
    }
    pthread_mutex_unlock(&capture_lock);
}

void capture_forget_event(struct event *event) {
    pthread_mutex_lock(&capture_lock);
    free(event->tips);
    event->tips = NULL;
    pthread_mutex_unlock(&capture_lock);
}

/* --- beginning and ending --- */

static CUresult begin(CUstream handle, CUstreamCaptureMode mode, struct graph *graph,
                      struct node *const *after, size_t count) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    if (mode > CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    if (stream->is_legacy)
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    pthread_mutex_lock(&capture_lock);
    struct capture *capture = NULL;
    if (stream->capture)
        result = stream->capture->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
                                          : CUDA_ERROR_ILLEGAL_STATE;
    else
        capture = calloc(1, sizeof *capture);
    if (capture) {
        static uint64_t last_id;
        *capture = (struct capture){.id = ++last_id,
                                    .graph = graph ? graph : graph_new(),
                                    .keeps_graph = graph != NULL,
                                    .mode = mode,
                                    .thread = this_thread(),
                                    .origin = stream,
                                    .next = captures};
        if (capture->graph && join(capture, stream) && add_tips(stream, after, count)) {
            captures = capture;
            capture_count++;
        } else {
            leave(stream);
            free(capture->streams);
            free(capture);
            capture = NULL;
        }
    }
    if (!capture && result == CUDA_SUCCESS)
        result = CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_unlock(&capture_lock);
    return result;
}

/* Marks (index 1) what the marked nodes come after. Nodes come after older ones only. */
static bool mark_reached(const struct graph *graph) {
    struct node **nodes = malloc((graph->node_count + 1) * sizeof *nodes);
    if (!nodes)
        return false;
    unsigned count = 0;
    for (struct node *node = graph->first; node; node = node->next)
        nodes[count++] = node;
    while (count-- > 0)
        for (size_t i = 0; nodes[count]->index && i < nodes[count]->after_count; i++)
            nodes[count]->after[i]->index = 1;
    free(nodes);
    return true;
}

/* Whether all that was captured leads to the origin's end. */
static bool is_joined(const struct capture *capture) {
    for (struct node *node = capture->graph->first; node; node = node->next)
        node->index = 0;
    for (size_t i = 0; i < capture->origin->tip_count; i++)
        capture->origin->tips[i]->index = 1;
    if (!mark_reached(capture->graph))
        return false;
    for (size_t i = 0; i < capture->stream_count; i++)
        for (size_t t = 0; capture->streams[i] && t < capture->streams[i]->tip_count; t++)
            if (!capture->streams[i]->tips[t]->index)
                return false;
    return true;
}

static CUresult finish(struct stream *stream, struct graph **graph) {
    struct capture *capture = stream->capture;
    *graph = NULL;
    if (!capture)
        return CUDA_ERROR_ILLEGAL_STATE;
    if (capture->origin != stream)
        return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    if (capture->thread != this_thread() && capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    CUresult result = CUDA_SUCCESS;
    if (capture->invalid)
        result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    else if (!is_joined(capture))
        result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    if (result == CUDA_SUCCESS)
        *graph = capture->graph;
    else if (!capture->keeps_graph)
        graph_free(capture->graph);
    end_capture(capture);
    return result;
}

CUDA_API CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    return begin(handle, mode, NULL, NULL, 0);
}

CUDA_API CUresult cuStreamBeginCapture(CUstream handle) {
    return begin(handle, CU_STREAM_CAPTURE_MODE_GLOBAL, NULL, NULL, 0);
}

CUDA_API CUresult cuStreamBeginCaptureToGraph(CUstream handle, CUgraph graph,
                                              const CUgraphNode *dependencies,
                                              const CUgraphEdgeData *edges, size_t count,
                                              CUstreamCaptureMode mode) {
    (void)edges;
    if (!object_is(OBJECT_GRAPH, graph))
        return CUDA_ERROR_INVALID_VALUE;
    return begin(handle, mode, graph, dependencies, count);
}

CUDA_API CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    if (!graph)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&capture_lock);
    result = finish(stream, graph);
    pthread_mutex_unlock(&capture_lock);
    return result;
}

/* --- asking --- */

CUDA_API CUresult cuStreamGetCaptureInfo_v2(CUstream handle, CUstreamCaptureStatus *status,
                                            uint64_t *id, CUgraph *graph,
                                            const CUgraphNode **dependencies, size_t *count) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    if (!status)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&capture_lock);
    const struct capture *capture = stream->capture;
    *status = !capture           ? CU_STREAM_CAPTURE_STATUS_NONE
              : capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                 : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    if (!capture && stream->is_legacy)
        result = check_legacy(stream);
    if (capture && !capture->invalid) {
        if (id)
            *id = capture->id;
        if (graph)
            *graph = capture->graph;
        if (dependencies)
            *dependencies = stream->tips;
        if (count)
            *count = stream->tip_count;
    }
    pthread_mutex_unlock(&capture_lock);
    return result;
}

/* All edges are plain ones, which is what zeroes say. */
static CUresult edges_to_tips(const struct stream *stream, const CUgraphEdgeData **edges) {
    struct capture *capture = stream->capture;
    *edges = NULL;
    if (!capture || capture->invalid)
        return CUDA_SUCCESS;
    if (capture->edge_count < stream->tip_count + 1) {
        CUgraphEdgeData *grown = calloc(stream->tip_count + 1, sizeof *grown);
        if (!grown)
            return CUDA_ERROR_OUT_OF_MEMORY;
        free(capture->edges);
        capture->edges = grown;
        capture->edge_count = stream->tip_count + 1;
    }
    *edges = capture->edges;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuStreamGetCaptureInfo_v3(CUstream handle, CUstreamCaptureStatus *status,
                                            uint64_t *id, CUgraph *graph,
                                            const CUgraphNode **dependencies,
                                            const CUgraphEdgeData **edges, size_t *count) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result == CUDA_SUCCESS && edges) {
        pthread_mutex_lock(&capture_lock);
        result = edges_to_tips(stream, edges);
        pthread_mutex_unlock(&capture_lock);
    }
    if (result)
        return result;
    return cuStreamGetCaptureInfo_v2(handle, status, id, graph, dependencies, count);
}

CUDA_API CUresult cuStreamGetCaptureInfo(CUstream handle, CUstreamCaptureStatus *status,
                                         uint64_t *id) {
    return cuStreamGetCaptureInfo_v2(handle, status, id, NULL, NULL, NULL);
}

CUDA_API CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *status) {
    return cuStreamGetCaptureInfo_v2(handle, status, NULL, NULL, NULL, NULL);
}

CUDA_API CUresult cuStreamUpdateCaptureDependencies(CUstream handle, CUgraphNode *dependencies,
                                                    size_t count, unsigned flags) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    if (flags > 1 || (count && !dependencies))
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&capture_lock);
    if (!stream->capture)
        result = CUDA_ERROR_ILLEGAL_STATE;
    else if (stream->capture->invalid)
        result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    else if (!(flags ? set_tips(&stream->tips, &stream->tip_count, dependencies, count)
                     : add_tips(stream, dependencies, count)))
        result = CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_unlock(&capture_lock);
    return result;
}

CUDA_API CUresult cuStreamUpdateCaptureDependencies_v2(CUstream handle, CUgraphNode *dependencies,
                                                       const CUgraphEdgeData *edges, size_t count,
                                                       unsigned flags) {
    (void)edges;
    return cuStreamUpdateCaptureDependencies(handle, dependencies, count, flags);
}

CUDA_API CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    CUresult result = enter();
    if (result)
        return result;
    if (!mode || *mode > CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    CUstreamCaptureMode was = this_thread()->capture_mode;
    this_thread()->capture_mode = *mode;
    *mode = was;
    return CUDA_SUCCESS;
}
