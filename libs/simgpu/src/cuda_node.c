/* Nodes: what they do, from what programs hand in, and back. */
#include <stdlib.h>
#include <string.h>

#include "cuda_graph.h"

CUresult node_kernel(const CUDA_KERNEL_NODE_PARAMS *p, struct node *content, char params[4096]) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!p)
        return CUDA_ERROR_INVALID_VALUE;
    struct kernel *kernel = p->func ? p->func : p->kern;
    if (!object_is(OBJECT_KERNEL, kernel))
        return CUDA_ERROR_INVALID_VALUE;
    *content = (struct node){.type = CU_GRAPH_NODE_TYPE_KERNEL,
                             .launch = {.kernel = kernel,
                                        .grid = {p->gridDimX, p->gridDimY, p->gridDimZ},
                                        .block = {p->blockDimX, p->blockDimY, p->blockDimZ},
                                        .shared_bytes = p->sharedMemBytes},
                             .params = params};
    result = launch_check(context, &content->launch);
    return result ? result : launch_params(kernel, p->kernelParams, p->extra, params);
}

CUDA_KERNEL_NODE_PARAMS node_kernel_v1(const CUDA_KERNEL_NODE_PARAMS_v1 *p) {
    return (CUDA_KERNEL_NODE_PARAMS){.func = p->func,
                                     .gridDimX = p->gridDimX,
                                     .gridDimY = p->gridDimY,
                                     .gridDimZ = p->gridDimZ,
                                     .blockDimX = p->blockDimX,
                                     .blockDimY = p->blockDimY,
                                     .blockDimZ = p->blockDimZ,
                                     .sharedMemBytes = p->sharedMemBytes,
                                     .kernelParams = p->kernelParams,
                                     .extra = p->extra};
}

CUDA_API CUresult cuGraphAddKernelNode_v2(CUgraphNode *added, CUgraph graph,
                                          const CUgraphNode *after, size_t count,
                                          const CUDA_KERNEL_NODE_PARAMS *params) {
    struct node content;
    char buffer[4096];
    CUresult result = node_kernel(params, &content, buffer);
    return result ? result : add_node(added, graph, after, count, &content);
}

CUDA_API CUresult cuGraphAddKernelNode(CUgraphNode *added, CUgraph graph, const CUgraphNode *after,
                                       size_t count, const CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_KERNEL_NODE_PARAMS wide = node_kernel_v1(params);
    return cuGraphAddKernelNode_v2(added, graph, after, count, &wide);
}

CUresult node_copy(const CUDA_MEMCPY3D *params, struct node *content) {
    *content = (struct node){.type = CU_GRAPH_NODE_TYPE_MEMCPY};
    CUresult result = copy_of(params, &content->copy);
    if (result == CUDA_SUCCESS)
        content->copy_params = *params;
    return result;
}

CUDA_API CUresult cuGraphAddMemcpyNode(CUgraphNode *added, CUgraph graph, const CUgraphNode *after,
                                       size_t count, const CUDA_MEMCPY3D *params,
                                       CUcontext context) {
    struct node content;
    (void)context;
    CUresult result = node_copy(params, &content);
    return result ? result : add_node(added, graph, after, count, &content);
}

CUresult node_fill(const CUDA_MEMSET_NODE_PARAMS *p, struct node *content) {
    if (!p || (p->elementSize != 1 && p->elementSize != 2 && p->elementSize != 4))
        return CUDA_ERROR_INVALID_VALUE;
    *content = (struct node){.type = CU_GRAPH_NODE_TYPE_MEMSET,
                             .fill = {.address = p->dst,
                                      .pitch = p->pitch,
                                      .width = p->width * p->elementSize,
                                      .height = p->height,
                                      .value = p->value,
                                      .value_bytes = p->elementSize}};
    return fill_check(&content->fill);
}

CUDA_API CUresult cuGraphAddMemsetNode(CUgraphNode *added, CUgraph graph, const CUgraphNode *after,
                                       size_t count, const CUDA_MEMSET_NODE_PARAMS *params,
                                       CUcontext context) {
    struct node content;
    (void)context;
    CUresult result = node_fill(params, &content);
    return result ? result : add_node(added, graph, after, count, &content);
}

CUresult node_host(const CUDA_HOST_NODE_PARAMS *params, struct node *content) {
    if (!params || !params->fn)
        return CUDA_ERROR_INVALID_VALUE;
    *content = (struct node){.type = CU_GRAPH_NODE_TYPE_HOST, .host = *params};
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphAddHostNode(CUgraphNode *added, CUgraph graph, const CUgraphNode *after,
                                     size_t count, const CUDA_HOST_NODE_PARAMS *params) {
    struct node content;
    CUresult result = node_host(params, &content);
    return result ? result : add_node(added, graph, after, count, &content);
}

CUDA_API CUresult cuGraphAddEmptyNode(CUgraphNode *added, CUgraph graph, const CUgraphNode *after,
                                      size_t count) {
    struct node content = {.type = CU_GRAPH_NODE_TYPE_EMPTY};
    return add_node(added, graph, after, count, &content);
}

CUDA_API CUresult cuGraphAddChildGraphNode(CUgraphNode *added, CUgraph graph,
                                           const CUgraphNode *after, size_t count, CUgraph child) {
    if (!object_is(OBJECT_GRAPH, child) || child == graph)
        return CUDA_ERROR_INVALID_VALUE;
    struct node content = {.type = CU_GRAPH_NODE_TYPE_GRAPH, .child = child};
    return add_node(added, graph, after, count, &content);
}

static CUresult add_event(CUgraphNode *added, CUgraph graph, const CUgraphNode *after, size_t count,
                          CUevent event, CUgraphNodeType type) {
    if (!object_is(OBJECT_EVENT, event))
        return CUDA_ERROR_INVALID_HANDLE;
    struct node content = {.type = type, .event = event};
    return add_node(added, graph, after, count, &content);
}

CUDA_API CUresult cuGraphAddEventRecordNode(CUgraphNode *added, CUgraph graph,
                                            const CUgraphNode *after, size_t count, CUevent event) {
    return add_event(added, graph, after, count, event, CU_GRAPH_NODE_TYPE_EVENT_RECORD);
}

CUDA_API CUresult cuGraphAddEventWaitNode(CUgraphNode *added, CUgraph graph,
                                          const CUgraphNode *after, size_t count, CUevent event) {
    return add_event(added, graph, after, count, event, CU_GRAPH_NODE_TYPE_WAIT_EVENT);
}
/* --- calls: nodes of any type --- */

CUresult node_any(const CUgraphNodeParams *p, struct node *content, char params[4096]) {
    if (!p)
        return CUDA_ERROR_INVALID_VALUE;
    *content = (struct node){.type = p->type};
    switch (p->type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
        return node_kernel(&p->kernel, content, params);
    case CU_GRAPH_NODE_TYPE_MEMCPY:
        return node_copy(&p->memcpy.copyParams, content);
    case CU_GRAPH_NODE_TYPE_MEMSET:
        return node_fill(&p->memset, content);
    case CU_GRAPH_NODE_TYPE_HOST:
        return node_host(&p->host, content);
    case CU_GRAPH_NODE_TYPE_GRAPH:
        content->child = p->graph;
        return object_is(OBJECT_GRAPH, p->graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
        content->event = p->event;
        return object_is(OBJECT_EVENT, p->event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    case CU_GRAPH_NODE_TYPE_EMPTY:
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_NOT_SUPPORTED;
    }
}

CUDA_API CUresult cuGraphAddNode(CUgraphNode *added, CUgraph graph, const CUgraphNode *after,
                                 size_t count, CUgraphNodeParams *params) {
    struct node content;
    char buffer[4096];
    if (params && params->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
        return cuGraphAddMemAllocNode(added, graph, after, count, &params->alloc);
    if (params && params->type == CU_GRAPH_NODE_TYPE_MEM_FREE)
        return cuGraphAddMemFreeNode(added, graph, after, count, params->free.dptr);
    CUresult result = node_any(params, &content, buffer);
    return result ? result : add_node(added, graph, after, count, &content);
}

CUDA_API CUresult cuGraphAddNode_v2(CUgraphNode *added, CUgraph graph, const CUgraphNode *after,
                                    const CUgraphEdgeData *edges, size_t count,
                                    CUgraphNodeParams *params) {
    (void)edges;
    return cuGraphAddNode(added, graph, after, count, params);
}
/* --- calls: looking --- */

CUDA_API CUresult cuGraphNodeGetType(CUgraphNode node, CUgraphNodeType *type) {
    CUresult result = check_node(node);
    if (result)
        return result;
    if (!type)
        return CUDA_ERROR_INVALID_VALUE;
    *type = node->type;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphNodeGetDependencies(CUgraphNode node, CUgraphNode *after, size_t *count) {
    CUresult result = check_node(node);
    if (result)
        return result;
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    if (after && *count > node->after_count)
        *count = node->after_count;
    if (after)
        memcpy(after, node->after, *count * sizeof(CUgraphNode));
    else
        *count = node->after_count;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphNodeGetDependencies_v2(CUgraphNode node, CUgraphNode *after,
                                                CUgraphEdgeData *edges, size_t *count) {
    CUresult result = cuGraphNodeGetDependencies(node, after, count);
    if (result == CUDA_SUCCESS && edges)
        memset(edges, 0, *count * sizeof *edges);
    return result;
}

CUDA_API CUresult cuGraphChildGraphNodeGetGraph(CUgraphNode node, CUgraph *graph) {
    CUresult result = check_node(node);
    if (result)
        return result;
    if (!graph || node->type != CU_GRAPH_NODE_TYPE_GRAPH)
        return CUDA_ERROR_INVALID_VALUE;
    *graph = node->child;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS *params) {
    CUresult result = check_node(node);
    if (result)
        return result;
    if (!params || node->type != CU_GRAPH_NODE_TYPE_KERNEL)
        return CUDA_ERROR_INVALID_VALUE;
    const struct launch *launch = &node->launch;
    *params = (CUDA_KERNEL_NODE_PARAMS){.func = launch->kernel,
                                        .gridDimX = launch->grid[0],
                                        .gridDimY = launch->grid[1],
                                        .gridDimZ = launch->grid[2],
                                        .blockDimX = launch->block[0],
                                        .blockDimY = launch->block[1],
                                        .blockDimZ = launch->block[2],
                                        .sharedMemBytes = launch->shared_bytes,
                                        .kernelParams = node->param_pointers};
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphKernelNodeGetParams(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    CUDA_KERNEL_NODE_PARAMS wide;
    CUresult result = cuGraphKernelNodeGetParams_v2(node, &wide);
    if (result)
        return result;
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(params, &wide, sizeof *params); /* the later version only has more behind it */
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphMemcpyNodeGetParams(CUgraphNode node, CUDA_MEMCPY3D *params) {
    CUresult result = check_node(node);
    if (result)
        return result;
    if (!params || node->type != CU_GRAPH_NODE_TYPE_MEMCPY)
        return CUDA_ERROR_INVALID_VALUE;
    *params = node->copy_params;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphMemsetNodeGetParams(CUgraphNode node, CUDA_MEMSET_NODE_PARAMS *params) {
    CUresult result = check_node(node);
    if (result)
        return result;
    if (!params || node->type != CU_GRAPH_NODE_TYPE_MEMSET)
        return CUDA_ERROR_INVALID_VALUE;
    const struct fill *fill = &node->fill;
    *params = (CUDA_MEMSET_NODE_PARAMS){.dst = fill->address,
                                        .pitch = fill->pitch,
                                        .value = fill->value,
                                        .elementSize = fill->value_bytes,
                                        .width = fill->width / fill->value_bytes,
                                        .height = fill->height};
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphHostNodeGetParams(CUgraphNode node, CUDA_HOST_NODE_PARAMS *params) {
    CUresult result = check_node(node);
    if (result)
        return result;
    if (!params || node->type != CU_GRAPH_NODE_TYPE_HOST)
        return CUDA_ERROR_INVALID_VALUE;
    *params = node->host;
    return CUDA_SUCCESS;
}
/* --- calls: changing --- */

CUresult node_set(struct node *node, const struct node *content) {
    if (node->type != content->type)
        return CUDA_ERROR_INVALID_VALUE;
    struct node changed = *node;
    changed.launch = content->launch;
    changed.copy = content->copy;
    changed.copy_params = content->copy_params;
    changed.fill = content->fill;
    changed.host = content->host;
    changed.event = content->event;
    changed.write = content->write;
    changed.wait = content->wait;
    changed.waits = content->waits;
    if (node->type == CU_GRAPH_NODE_TYPE_KERNEL) {
        if (!own_params(&changed, content->params))
            return CUDA_ERROR_OUT_OF_MEMORY;
        free(node->params);
        free(node->param_pointers);
    }
    *node = changed;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphKernelNodeSetParams_v2(CUgraphNode node,
                                                const CUDA_KERNEL_NODE_PARAMS *params) {
    struct node content;
    char buffer[4096];
    CUresult result = check_node(node);
    result = result ? result : node_kernel(params, &content, buffer);
    return result ? result : node_set(node, &content);
}

CUDA_API CUresult cuGraphKernelNodeSetParams(CUgraphNode node,
                                             const CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_KERNEL_NODE_PARAMS wide = node_kernel_v1(params);
    return cuGraphKernelNodeSetParams_v2(node, &wide);
}

CUDA_API CUresult cuGraphMemcpyNodeSetParams(CUgraphNode node, const CUDA_MEMCPY3D *params) {
    struct node content;
    CUresult result = check_node(node);
    result = result ? result : node_copy(params, &content);
    return result ? result : node_set(node, &content);
}

CUDA_API CUresult cuGraphMemsetNodeSetParams(CUgraphNode node,
                                             const CUDA_MEMSET_NODE_PARAMS *params) {
    struct node content;
    CUresult result = check_node(node);
    result = result ? result : node_fill(params, &content);
    return result ? result : node_set(node, &content);
}

CUDA_API CUresult cuGraphHostNodeSetParams(CUgraphNode node, const CUDA_HOST_NODE_PARAMS *params) {
    struct node content;
    CUresult result = check_node(node);
    result = result ? result : node_host(params, &content);
    return result ? result : node_set(node, &content);
}

CUDA_API CUresult cuGraphNodeSetParams(CUgraphNode node, CUgraphNodeParams *params) {
    struct node content;
    char buffer[4096];
    CUresult result = check_node(node);
    result = result ? result : node_any(params, &content, buffer);
    return result ? result : node_set(node, &content);
}
