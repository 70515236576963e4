/* An executable graph is charged the most memory that its nodes have at a time, as long as it
 * exists: the driver takes that much when the graph runs, and keeps it. It may let graphs that
 * never run at a time share memory; then too much is charged. Should it take more than the nodes
 * say (two branches that allocate side by side), that is charged when it is seen. */
#include "quota_graphs.h"

#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>

#include "capture.h"
#include "driver.h"
#include "job.h"
#include "launch.h"
#include "quota.h"
#include "quota_pools.h"

/* Graphs are only searched once the program has made a node that allocates, or may have. */
static _Atomic bool allocating;

void quota_graphs_note_capture(void) {
    if (!atomic_load_explicit(&allocating, memory_order_relaxed) && capture_any())
        atomic_store(&allocating, true);
}

CUresult on_graph_add_alloc_node(enum hook_index hook, CUgraphNode *node, CUgraph graph,
                                 const CUgraphNode *after, size_t count,
                                 CUDA_MEM_ALLOC_NODE_PARAMS *params) {
    if (launch_gated())
        atomic_store(&allocating, true);
    return REAL_OF(hook, cuGraphAddMemAllocNode)(node, graph, after, count, params);
}

static void note_type(const CUgraphNodeParams *params) {
    if (launch_gated() && params != NULL && params->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
        atomic_store(&allocating, true);
}

CUresult on_graph_add_node(enum hook_index hook, CUgraphNode *node, CUgraph graph,
                           const CUgraphNode *after, size_t count, CUgraphNodeParams *params) {
    note_type(params);
    return REAL_OF(hook, cuGraphAddNode)(node, graph, after, count, params);
}

CUresult on_graph_add_node_v2(enum hook_index hook, CUgraphNode *node, CUgraph graph,
                              const CUgraphNode *after, const void *edges, size_t count,
                              CUgraphNodeParams *params) {
    note_type(params);
    return REAL_OF(hook, cuGraphAddNode_v2)(node, graph, after, edges, count, params);
}

/* ---- what a graph needs ------------------------------------------------------------------------
 */

struct needs {
    CUdevice device;
    uint64_t bytes, most_bytes;
    struct ledger blocks; /* what it has allocated and not freed yet */
};

static void allocate(struct needs *needs, CUgraphNode node) {
    CUDA_MEM_ALLOC_NODE_PARAMS params;
    if (driver.graph_alloc_params(node, &params) != CUDA_SUCCESS)
        return;
    int place = params.poolProps.location.type;
    if (place >= CU_MEM_LOCATION_TYPE_HOST && place <= CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT)
        return;
    needs->device = params.poolProps.location.id;
    needs->bytes += params.bytesize;
    if (needs->bytes > needs->most_bytes)
        needs->most_bytes = needs->bytes;
    struct ledger_entry block = {
        .kind = LEDGER_POOLED, .key = params.dptr, .bytes = params.bytesize};
    struct ledger_entry replaced; /* as much as before: a node that frees names one block */
    ledger_add(&needs->blocks, &block, &replaced);
}

static void release(struct needs *needs, CUgraphNode node) {
    CUdeviceptr address;
    struct ledger_entry block;
    if (driver.graph_free_params(node, &address) == CUDA_SUCCESS &&
        ledger_take(&needs->blocks, LEDGER_POOLED, address, &block))
        needs->bytes -= block.bytes;
}

static void add_graph(struct needs *needs, CUgraph graph);

static void add_node(struct needs *needs, CUgraphNode node) {
    int type;
    CUgraph child;
    if (driver.graph_node_type(node, &type) != CUDA_SUCCESS)
        return;
    if (type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
        allocate(needs, node);
    else if (type == CU_GRAPH_NODE_TYPE_MEM_FREE)
        release(needs, node);
    else if (type == CU_GRAPH_NODE_TYPE_GRAPH && driver.graph_child(node, &child) == CUDA_SUCCESS)
        add_graph(needs, child);
}

/* In the order in which nodes were added, which is one in which they may run. */
static void add_graph(struct needs *needs, CUgraph graph) {
    size_t count = 0;
    if (driver.graph_get_nodes(graph, NULL, &count) != CUDA_SUCCESS || count == 0)
        return;
    size_t bytes = count * sizeof(CUgraphNode);
    void *room = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED)
        return;
    CUgraphNode *nodes = room;
    if (driver.graph_get_nodes(graph, nodes, &count) == CUDA_SUCCESS) {
        for (size_t i = 0; i < count; i++)
            add_node(needs, nodes[i]);
    }
    munmap(room, bytes);
}

/* ---- instantiating -----------------------------------------------------------------------------
 */

static bool wish_for(struct pool_wish *wish, CUgraph graph) {
    *wish = (struct pool_wish){.pool = POOL_NONE};
    if (!launch_gated() || !atomic_load_explicit(&allocating, memory_order_relaxed))
        return true;
    struct needs needs = {.bytes = 0};
    int mode = capture_relax();
    add_graph(&needs, graph);
    capture_restore(mode);
    ledger_clear(&needs.blocks);
    if (needs.most_bytes == 0)
        return true;
    int pool = pool_of_graphs(needs.device);
    if (pool != POOL_UNKNOWN)
        return pool_wish(wish, pool, needs.most_bytes);
    *wish = (struct pool_wish){.pool = POOL_UNKNOWN, .bytes = needs.most_bytes};
    return quota_take(wish->bytes);
}

static CUresult settle(enum hook_index hook, CUresult result, const CUgraphExec *made,
                       const struct pool_wish *wish) {
    if (wish->pool == POOL_NONE)
        return result;
    if (result != CUDA_SUCCESS)
        job_note_result(hook, result);
    if (wish->pool == POOL_UNKNOWN && result != CUDA_SUCCESS)
        quota_give(wish->bytes);
    pool_settle(wish, result == CUDA_SUCCESS);
    if (result != CUDA_SUCCESS)
        return result;
    struct ledger_entry entry = {.kind = LEDGER_EXEC,
                                 .key = (uint64_t)(uintptr_t)*made,
                                 .bytes = wish->bytes,
                                 .object = (uint64_t)wish->pool};
    quota_remember(&entry);
    return result;
}

CUresult on_graph_instantiate(enum hook_index hook, CUgraphExec *made, CUgraph graph,
                              CUgraphNode *error_node, char *log, size_t log_bytes) {
    struct pool_wish wish;
    if (!wish_for(&wish, graph))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = REAL_OF(hook, cuGraphInstantiate)(made, graph, error_node, log, log_bytes);
    return settle(hook, result, made, &wish);
}

CUresult on_graph_instantiate_with_flags(enum hook_index hook, CUgraphExec *made, CUgraph graph,
                                         unsigned long long flags) {
    struct pool_wish wish;
    if (!wish_for(&wish, graph))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = REAL_OF(hook, cuGraphInstantiateWithFlags)(made, graph, flags);
    return settle(hook, result, made, &wish);
}

CUresult on_graph_instantiate_with_params(enum hook_index hook, CUgraphExec *made, CUgraph graph,
                                          void *params) {
    struct pool_wish wish;
    if (!wish_for(&wish, graph))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = REAL_OF(hook, cuGraphInstantiateWithParams)(made, graph, params);
    return settle(hook, result, made, &wish);
}

bool quota_graph_forget(CUgraphExec graph, struct ledger_entry *entry) {
    return launch_gated() && atomic_load_explicit(&allocating, memory_order_relaxed) &&
           quota_forget(LEDGER_EXEC, (uint64_t)(uintptr_t)graph, entry);
}

CUresult quota_graph_settle_gone(CUresult result, bool known, const struct ledger_entry *entry) {
    if (known && result == CUDA_SUCCESS)
        quota_pooled_gone(entry);
    else if (known)
        quota_remember(entry);
    return result;
}

/* The driver keeps what graphs had, until it is told not to. */
CUresult on_device_graph_mem_trim(enum hook_index hook, CUdevice device) {
    bool gated = launch_gated();
    CUresult result = REAL_OF(hook, cuDeviceGraphMemTrim)(device);
    if (gated && result == CUDA_SUCCESS && atomic_load_explicit(&allocating, memory_order_relaxed))
        pool_look(pool_of_graphs(device));
    return result;
}

void quota_graphs_forget_all(void) {
    atomic_store(&allocating, false);
}
