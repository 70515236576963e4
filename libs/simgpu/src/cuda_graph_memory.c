/* Memory that nodes of graphs allocate. A node has its addresses from the beginning, and they are
 * never used again. An executable graph takes its memory when it first runs, as much as its nodes
 * have at a time, and has it as long as it exists; what it then leaves is kept for others until it
 * is trimmed. */
#include <string.h>

#include "cuda_graph.h"

static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER; /* holds none but the device's */

/* --- nodes --- */

CUresult node_allocation(struct gpu *gpu, size_t bytes, struct node *content) {
    enum { PAGE = 4096 };
    if (!bytes)
        return CUDA_ERROR_INVALID_VALUE;
    size_t mapped = (bytes + PAGE - 1) / PAGE * PAGE;
    struct block block = {.start = (uintptr_t)space_take(mapped, PAGE),
                          .bytes = bytes,
                          .mapped_bytes = mapped,
                          .kind = BLOCK_GRAPH,
                          .gpu = gpu,
                          .fd = -1};
    CUresult result = block.start ? block_add(&block) : CUDA_ERROR_OUT_OF_MEMORY;
    *content =
        (struct node){.type = CU_GRAPH_NODE_TYPE_MEM_ALLOC, .address = block.start, .bytes = bytes};
    return result;
}

CUresult node_release(CUdeviceptr address, struct node *content) {
    struct block block;
    if (!block_find((uintptr_t)address, &block) || block.start != address ||
        block.kind != BLOCK_GRAPH)
        return CUDA_ERROR_INVALID_VALUE;
    *content = (struct node){.type = CU_GRAPH_NODE_TYPE_MEM_FREE, .address = address};
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphAddMemAllocNode(CUgraphNode *added, CUgraph graph,
                                         const CUgraphNode *after, size_t count,
                                         CUDA_MEM_ALLOC_NODE_PARAMS *params) {
    struct gpu *gpu;
    struct node content;
    CUresult result = check_graph(graph);
    if (result)
        return result;
    if (!params || params->poolProps.allocType != 1)
        return CUDA_ERROR_INVALID_VALUE;
    if (params->poolProps.location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_ERROR_NOT_SUPPORTED;
    result = gpu_of(params->poolProps.location.id, &gpu);
    result = result ? result : node_allocation(gpu, params->bytesize, &content);
    result = result ? result : add_node(added, graph, after, count, &content);
    if (result == CUDA_SUCCESS)
        params->dptr = content.address;
    return result;
}

CUDA_API CUresult cuGraphAddMemFreeNode(CUgraphNode *added, CUgraph graph, const CUgraphNode *after,
                                        size_t count, CUdeviceptr address) {
    struct node content;
    CUresult result = check_graph(graph);
    result = result ? result : node_release(address, &content);
    return result ? result : add_node(added, graph, after, count, &content);
}

CUDA_API CUresult cuGraphMemAllocNodeGetParams(CUgraphNode node,
                                               CUDA_MEM_ALLOC_NODE_PARAMS *params) {
    struct block block;
    CUresult result = check_node(node);
    if (result)
        return result;
    if (!params || node->type != CU_GRAPH_NODE_TYPE_MEM_ALLOC ||
        !block_find((uintptr_t)node->address, &block))
        return CUDA_ERROR_INVALID_VALUE;
    *params = (CUDA_MEM_ALLOC_NODE_PARAMS){.bytesize = node->bytes, .dptr = node->address};
    params->poolProps.allocType = 1;
    params->poolProps.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    params->poolProps.location.id = block.gpu->ordinal;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphMemFreeNodeGetParams(CUgraphNode node, CUdeviceptr *address) {
    CUresult result = check_node(node);
    if (result)
        return result;
    if (!address || node->type != CU_GRAPH_NODE_TYPE_MEM_FREE)
        return CUDA_ERROR_INVALID_VALUE;
    *address = node->address;
    return CUDA_SUCCESS;
}

/* --- executable graphs --- */

static uint64_t bytes_at(const struct graph_exec *exec, CUdeviceptr address) {
    for (unsigned i = 0; i < exec->step_count; i++) {
        const struct node *node = exec->steps[i].node;
        if (node->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC && node->address == address)
            return node->bytes;
    }
    return 0;
}

void graph_memory_measure(struct graph_exec *exec) {
    uint64_t now = 0;
    for (unsigned i = 0; i < exec->step_count; i++) {
        const struct node *node = exec->steps[i].node;
        if (node->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
            now += node->bytes;
        if (node->type == CU_GRAPH_NODE_TYPE_MEM_FREE)
            now -= bytes_at(exec, node->address);
        if (now > exec->memory_bytes)
            exec->memory_bytes = now;
    }
}

CUresult graph_memory_take(struct graph_exec *exec, struct gpu *gpu) {
    if (!exec->memory_bytes || exec->holder)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&memory_lock);
    uint64_t needed = gpu->graph_memory.used + exec->memory_bytes;
    CUresult result = CUDA_SUCCESS;
    if (needed > gpu->graph_memory.reserved)
        result = memory_take(gpu, needed - gpu->graph_memory.reserved);
    if (result == CUDA_SUCCESS) {
        exec->holder = gpu;
        gpu->graph_memory.used = needed;
        if (needed > gpu->graph_memory.reserved)
            gpu->graph_memory.reserved = needed;
        if (needed > gpu->graph_memory.used_high)
            gpu->graph_memory.used_high = needed;
        if (gpu->graph_memory.reserved > gpu->graph_memory.reserved_high)
            gpu->graph_memory.reserved_high = gpu->graph_memory.reserved;
    }
    pthread_mutex_unlock(&memory_lock);
    return result;
}

void graph_memory_give(struct graph_exec *exec) {
    if (!exec->holder)
        return;
    pthread_mutex_lock(&memory_lock);
    exec->holder->graph_memory.used -= exec->memory_bytes;
    pthread_mutex_unlock(&memory_lock);
    exec->holder = NULL;
}

/* --- what is kept --- */

static CUresult find_gpu(CUdevice device, struct gpu **gpu) {
    CUresult result = enter();
    return result ? result : gpu_of(device, gpu);
}

CUDA_API CUresult cuDeviceGraphMemTrim(CUdevice device) {
    struct gpu *gpu;
    CUresult result = find_gpu(device, &gpu);
    if (result)
        return result;
    pthread_mutex_lock(&memory_lock);
    memory_give(gpu, gpu->graph_memory.reserved - gpu->graph_memory.used);
    gpu->graph_memory.reserved = gpu->graph_memory.used;
    pthread_mutex_unlock(&memory_lock);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDeviceGetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attribute,
                                               void *value) {
    struct gpu *gpu;
    CUresult result = find_gpu(device, &gpu);
    if (result)
        return result;
    if (!value || attribute > CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&memory_lock);
    const uint64_t values[] = {
        [CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT] = gpu->graph_memory.used,
        [CU_GRAPH_MEM_ATTR_USED_MEM_HIGH] = gpu->graph_memory.used_high,
        [CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT] = gpu->graph_memory.reserved,
        [CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH] = gpu->graph_memory.reserved_high,
    };
    pthread_mutex_unlock(&memory_lock);
    *(uint64_t *)value = values[attribute];
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDeviceSetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attribute,
                                               void *value) {
    struct gpu *gpu;
    CUresult result = find_gpu(device, &gpu);
    if (result)
        return result;
    bool high = attribute == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH ||
                attribute == CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH;
    if (!value || !high || *(uint64_t *)value)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&memory_lock);
    if (attribute == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH)
        gpu->graph_memory.used_high = gpu->graph_memory.used;
    else
        gpu->graph_memory.reserved_high = gpu->graph_memory.reserved;
    pthread_mutex_unlock(&memory_lock);
    return CUDA_SUCCESS;
}
