/* Executable graphs: made from graphs, run as work of streams, changed. */
#include <stdlib.h>
#include <string.h>

#include "cuda_graph.h"

/* --- instantiating --- */

/* Adds the nodes of a graph to another, child graphs in place of their nodes. Those that come after
 * nothing come after `before`. */
static bool flatten(struct graph *into, const struct graph *graph, struct node *const *before,
                    size_t before_count);

/* Enters a child graph: all of it after what its node comes after, and an empty node after it. */
static struct node *flatten_child(struct graph *into, const struct node *node,
                                  struct node *const *after, size_t count) {
    struct node *last_before = into->last;
    if (!flatten(into, node->child, after, count))
        return NULL;
    struct node *first = last_before ? last_before->next : into->first;
    size_t inner = 0;
    for (struct node *n = first; n; n = n->next)
        inner++;
    struct node **all = malloc((inner + count + 1) * sizeof(struct node *));
    if (!all)
        return NULL;
    size_t total = 0;
    for (struct node *n = first; n; n = n->next)
        all[total++] = n;
    for (size_t i = 0; i < count; i++)
        all[total++] = after[i];
    struct node empty = {.type = CU_GRAPH_NODE_TYPE_EMPTY};
    struct node *end = graph_add(into, &empty, all, total);
    free(all);
    return end;
}

static bool flatten(struct graph *into, const struct graph *graph, struct node *const *before,
                    size_t before_count) {
    struct node **made = calloc(graph->node_count + 1, sizeof *made);
    struct node **after = malloc((graph->node_count + before_count + 1) * sizeof *after);
    unsigned done = 0;
    unsigned count = 0;
    for (struct node *node = graph->first; node; node = node->next)
        node->index = count++;
    /* Usually nodes lie in an order in which they can run, and one pass does it. */
    for (bool progress = made && after; progress && done < graph->node_count;) {
        progress = false;
        for (struct node *node = graph->first; node; node = node->next) {
            size_t found = 0;
            while (found < node->after_count && made[node->after[found]->index]) {
                after[found] = made[node->after[found]->index];
                found++;
            }
            if (made[node->index] || found < node->after_count)
                continue;
            if (!node->after_count && before_count) {
                memcpy(after, before, before_count * sizeof *after);
                found = before_count;
            }
            struct node *its = node->type == CU_GRAPH_NODE_TYPE_GRAPH
                                   ? flatten_child(into, node, after, found)
                                   : graph_add(into, node, after, found);
            if (!its)
                break;
            its->origin = node;
            made[node->index] = its;
            done++;
            progress = true;
        }
    }
    free(made);
    free(after);
    return done == graph->node_count; /* else: out of memory, or a cycle */
}

static bool is_last_of_branch(const struct graph_exec *exec, unsigned step, unsigned until) {
    for (unsigned i = step + 1; i < until; i++)
        if (exec->steps[i].branch == exec->steps[step].branch)
            return false;
    return true;
}

/* A node goes on with the branch of a node that it comes after, if no other has. */
static void choose_branches(struct graph_exec *exec) {
    for (unsigned i = 0; i < exec->step_count; i++) {
        const struct node *node = exec->steps[i].node;
        unsigned branch = exec->branch_count;
        if (i == 0)
            branch = 0;
        for (size_t a = 0; a < node->after_count && branch == exec->branch_count; a++)
            if (is_last_of_branch(exec, node->after[a]->index, i))
                branch = exec->steps[node->after[a]->index].branch;
        exec->steps[i].branch = branch;
        if (branch >= exec->branch_count)
            exec->branch_count = branch + 1;
    }
}

static void exec_free(struct graph_exec *exec) {
    graph_memory_give(exec);
    for (unsigned i = 0; exec->branch_streams && i + 1 < exec->branch_count; i++)
        if (exec->branch_streams[i] && object_is(OBJECT_STREAM, exec->branch_streams[i]) &&
            exec->branch_streams[i]->context == exec->context)
            stream_forget(exec->branch_streams[i]);
    free(exec->branch_streams);
    free(exec->steps);
    if (exec->graph)
        graph_free(exec->graph);
    object_free(OBJECT_GRAPH_EXEC, exec);
}

static CUresult instantiate(struct graph *graph, uint64_t flags, struct graph_exec **made) {
    struct graph_exec *exec = object_new(OBJECT_GRAPH_EXEC);
    if (!exec)
        return CUDA_ERROR_OUT_OF_MEMORY;
    exec->flags = flags;
    exec->last_stream = SIMGPU_NONE;
    exec->graph = graph_new();
    if (!exec->graph || !flatten(exec->graph, graph, NULL, 0)) {
        exec_free(exec);
        return CUDA_ERROR_INVALID_VALUE;
    }
    exec->steps = calloc(exec->graph->node_count + 1, sizeof *exec->steps);
    if (!exec->steps) {
        exec_free(exec);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    for (struct node *node = exec->graph->first; node; node = node->next) {
        node->index = exec->step_count;
        exec->steps[exec->step_count++].node = node;
    }
    choose_branches(exec);
    graph_memory_measure(exec);
    exec->branch_streams = calloc(exec->branch_count + 1, sizeof(struct stream *));
    if (!exec->branch_streams) {
        exec_free(exec);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *made = exec;
    return CUDA_SUCCESS;
}

static CUresult check_exec(CUgraphExec exec) {
    CUresult result = enter();
    if (result)
        return result;
    return object_is(OBJECT_GRAPH_EXEC, exec) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUDA_API CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph,
                                              unsigned long long flags) {
    CUresult result = check_graph(graph);
    if (result)
        return result;
    if (!exec || flags > 15)
        return CUDA_ERROR_INVALID_VALUE;
    if (flags & 4) /* launched from the device */
        return CUDA_ERROR_NOT_SUPPORTED;
    pthread_mutex_lock(&driver.mutex);
    result = instantiate(graph, flags, exec);
    pthread_mutex_unlock(&driver.mutex);
    return result;
}

/* The version with a log for what is wrong. */
CUDA_API CUresult cuGraphInstantiate_v2(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node,
                                        char *log, size_t log_bytes) {
    if (error_node)
        *error_node = NULL;
    if (log && log_bytes)
        *log = 0;
    return cuGraphInstantiateWithFlags(exec, graph, 0);
}

CUDA_API CUresult cuGraphInstantiate(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node,
                                     char *log, size_t log_bytes) {
    return cuGraphInstantiate_v2(exec, graph, error_node, log, log_bytes);
}

CUDA_API CUresult cuGraphInstantiateWithParams(CUgraphExec *exec, CUgraph graph,
                                               CUDA_GRAPH_INSTANTIATE_PARAMS *params) {
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    params->hErrNode_out = NULL;
    CUresult result = cuGraphInstantiateWithFlags(exec, graph, params->flags);
    params->result_out = result ? 1 : 0;
    return result;
}

CUDA_API CUresult cuGraphExecGetFlags(CUgraphExec exec, uint64_t *flags) {
    CUresult result = check_exec(exec);
    if (result)
        return result;
    if (!flags)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = exec->flags;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphExecDestroy(CUgraphExec exec) {
    CUresult result = check_exec(exec);
    if (result == CUDA_SUCCESS)
        exec_free(exec);
    return result;
}

/* --- launching --- */

static CUresult wait_for_place(struct stream *stream, uint32_t slot, uint64_t sequence) {
    struct simgpu_work work = mark_work();
    work.wait_stream = slot;
    work.wait_sequence = sequence;
    return submit(stream, work, NULL, NULL, NULL);
}

static CUresult run_node(struct stream *stream, const struct node *node) {
    switch (node->type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
        return launch_submit(stream, &node->launch, node->params);
    case CU_GRAPH_NODE_TYPE_MEMCPY: {
        struct copy copy = node->copy; /* a graph does not wait for pageable memory */
        copy.from_pageable = copy.to_pageable = false;
        return copy_submit(stream, &copy, false);
    }
    case CU_GRAPH_NODE_TYPE_MEMSET:
        return fill_submit(stream, &node->fill);
    case CU_GRAPH_NODE_TYPE_HOST: {
        struct call call = {
            .kind = CALL_FUNCTION, .function = node->host.fn, .user_data = node->host.userData};
        return submit(stream, endless_work(SIMGPU_HOST_FUNCTION), NULL, &call, NULL);
    }
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
        return event_record(stream, node->event);
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
        return event_wait(stream, node->event);
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
        return word_submit(stream, &node->write, node->waits ? &node->wait : NULL);
    default:
        return submit(stream, mark_work(), NULL, NULL, NULL);
    }
}

static uint64_t sequence_of(const struct stream *stream) {
    return stream->context->gpu->shared.device->streams[stream->slot].enqueued;
}

static CUresult run_step(struct graph_exec *exec, struct step *step, struct stream *stream,
                         struct stream *launched, uint64_t begin) {
    CUresult result = CUDA_SUCCESS;
    const struct node *node = step->node;
    if (!node->after_count && step->branch)
        result = wait_for_place(stream, launched->slot, begin);
    for (size_t i = 0; i < node->after_count && result == CUDA_SUCCESS; i++) {
        const struct step *before = &exec->steps[node->after[i]->index];
        if (before->branch != step->branch)
            result = wait_for_place(stream, before->stream_slot, before->sequence);
    }
    if (result == CUDA_SUCCESS && !step->disabled)
        result = run_node(stream, node);
    step->stream_slot = stream->slot;
    step->sequence = sequence_of(stream);
    return result;
}

static CUresult make_branches(struct graph_exec *exec, struct context *context) {
    if (exec->context && exec->context != context)
        return CUDA_ERROR_INVALID_CONTEXT;
    exec->context = context;
    CUresult result = CUDA_SUCCESS;
    for (unsigned i = 0; i + 1 < exec->branch_count && result == CUDA_SUCCESS; i++)
        if (!exec->branch_streams[i])
            result = stream_new(context, CU_STREAM_NON_BLOCKING, 0, &exec->branch_streams[i]);
    return result;
}

static CUresult run(struct graph_exec *exec, struct stream *stream) {
    CUresult result = graph_memory_take(exec, stream->context->gpu);
    result = result ? result : make_branches(exec, stream->context);
    if (result == CUDA_SUCCESS && exec->last_stream != SIMGPU_NONE &&
        exec->last_stream != stream->slot) /* a graph does not run beside itself */
        result = wait_for_place(stream, exec->last_stream, exec->last_sequence);
    uint64_t begin = sequence_of(stream);
    for (unsigned i = 0; i < exec->step_count && result == CUDA_SUCCESS; i++) {
        struct step *step = &exec->steps[i];
        struct stream *branch = step->branch ? exec->branch_streams[step->branch - 1] : stream;
        result = run_step(exec, step, branch, stream, begin);
    }
    for (unsigned i = 0; i + 1 < exec->branch_count && result == CUDA_SUCCESS; i++)
        result = wait_for_place(stream, exec->branch_streams[i]->slot,
                                sequence_of(exec->branch_streams[i]));
    exec->last_stream = stream->slot;
    exec->last_sequence = sequence_of(stream);
    return result;
}

CUDA_API CUresult cuGraphLaunch(CUgraphExec exec, CUstream handle) {
    struct stream *stream;
    CUresult result = check_exec(exec);
    result = result ? result : stream_of(handle, &stream);
    if (result)
        return result;
    bool captured;
    result = capture_of(stream, &captured);
    if (result)
        return result;
    if (!captured)
        return run(exec, stream);
    struct node node = {.type = CU_GRAPH_NODE_TYPE_GRAPH, .child = exec->graph};
    return capture_node(stream, &node);
}

CUDA_API CUresult cuGraphUpload(CUgraphExec exec, CUstream handle) {
    struct stream *stream;
    CUresult result = check_exec(exec);
    result = result ? result : stream_of(handle, &stream);
    result = result ? result : graph_memory_take(exec, stream->context->gpu);
    return result ? result : submit(stream, mark_work(), NULL, NULL, NULL);
}

/* --- changing an executable graph --- */

static CUresult step_of(CUgraphExec exec, CUgraphNode node, struct step **found) {
    CUresult result = check_exec(exec);
    if (result)
        return result;
    for (unsigned i = 0; i < exec->step_count; i++)
        if (exec->steps[i].node->origin == node) {
            *found = &exec->steps[i];
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_VALUE;
}

static CUresult set_step(CUgraphExec exec, CUgraphNode node, const struct node *content) {
    struct step *step;
    CUresult result = step_of(exec, node, &step);
    return result ? result : node_set(step->node, content);
}

CUDA_API CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                                    const CUDA_KERNEL_NODE_PARAMS *params) {
    struct node content;
    char buffer[4096];
    CUresult result = node_kernel(params, &content, buffer);
    return result ? result : set_step(exec, node, &content);
}

CUDA_API CUresult cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                 const CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_KERNEL_NODE_PARAMS wide = node_kernel_v1(params);
    return cuGraphExecKernelNodeSetParams_v2(exec, node, &wide);
}

CUDA_API CUresult cuGraphExecMemcpyNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                 const CUDA_MEMCPY3D *params, CUcontext context) {
    struct node content;
    (void)context;
    CUresult result = node_copy(params, &content);
    return result ? result : set_step(exec, node, &content);
}

CUDA_API CUresult cuGraphExecMemsetNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                 const CUDA_MEMSET_NODE_PARAMS *params,
                                                 CUcontext context) {
    struct node content;
    (void)context;
    CUresult result = node_fill(params, &content);
    return result ? result : set_step(exec, node, &content);
}

CUDA_API CUresult cuGraphExecHostNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                               const CUDA_HOST_NODE_PARAMS *params) {
    struct node content;
    CUresult result = node_host(params, &content);
    return result ? result : set_step(exec, node, &content);
}

CUDA_API CUresult cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                           CUgraphNodeParams *params) {
    struct node content;
    char buffer[4096];
    CUresult result = node_any(params, &content, buffer);
    return result ? result : set_step(exec, node, &content);
}

CUDA_API CUresult cuGraphNodeSetEnabled(CUgraphExec exec, CUgraphNode node, unsigned enabled) {
    struct step *step;
    CUresult result = step_of(exec, node, &step);
    if (result == CUDA_SUCCESS)
        step->disabled = !enabled;
    return result;
}

CUDA_API CUresult cuGraphNodeGetEnabled(CUgraphExec exec, CUgraphNode node, unsigned *enabled) {
    struct step *step;
    CUresult result = step_of(exec, node, &step);
    if (result)
        return result;
    if (!enabled)
        return CUDA_ERROR_INVALID_VALUE;
    *enabled = !step->disabled;
    return CUDA_SUCCESS;
}

/* Whether two executable graphs differ only in what their nodes do. Numbers as in
 * CUgraphExecUpdateResult. */
static int compare(const struct graph_exec *a, const struct graph_exec *b) {
    if (a->step_count != b->step_count)
        return 2;
    for (unsigned i = 0; i < a->step_count; i++) {
        const struct node *x = a->steps[i].node;
        const struct node *y = b->steps[i].node;
        if (x->type != y->type)
            return 3;
        if (x->after_count != y->after_count)
            return 2;
        for (size_t n = 0; n < x->after_count; n++)
            if (x->after[n]->index != y->after[n]->index)
                return 2;
    }
    return 0;
}

CUDA_API CUresult cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph,
                                       CUgraphExecUpdateResultInfo *info) {
    CUresult result = check_exec(exec);
    result = result ? result : check_graph(graph);
    if (result)
        return result;
    if (!info)
        return CUDA_ERROR_INVALID_VALUE;
    struct graph_exec *fresh;
    *info = (CUgraphExecUpdateResultInfo){.result = 1};
    result = cuGraphInstantiateWithFlags(&fresh, graph, 0);
    if (result)
        return result;
    info->result = compare(exec, fresh);
    for (unsigned i = 0; i < exec->step_count && info->result == 0; i++) {
        struct node *node = exec->steps[i].node;
        result = node_set(node, fresh->steps[i].node);
        info->result = result ? 1 : 0;
        node->origin = fresh->steps[i].node->origin;
    }
    exec_free(fresh);
    return info->result ? CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE : CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode *error_node,
                                    int *update_result) {
    CUgraphExecUpdateResultInfo info = {.result = 1};
    CUresult result = cuGraphExecUpdate_v2(exec, graph, &info);
    if (error_node)
        *error_node = NULL;
    if (update_result)
        *update_result = info.result;
    return result;
}
