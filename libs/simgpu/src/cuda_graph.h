/* Graphs, their executable form, and captures of streams. */
#ifndef SIMGPU_CUDA_GRAPH_H
#define SIMGPU_CUDA_GRAPH_H

#include "cuda_module.h"

struct node {
    struct graph *graph;
    CUgraphNodeType type;
    struct node **after; /* nodes that it depends on */
    size_t after_count;
    /* One of these, by type: */
    struct launch launch; /* KERNEL, with: */
    char *params;
    void **param_pointers; /* into params, for programs that ask */
    struct copy copy;      /* MEMCPY, with: */
    CUDA_MEMCPY3D copy_params;
    struct fill fill; /* MEMSET */
    CUDA_HOST_NODE_PARAMS host;
    struct graph *child;
    struct event *event; /* EVENT_RECORD, WAIT_EVENT */
    struct effect write; /* BATCH_MEM_OP: a write of a word, or, if `waits`, a wait for one */
    struct call wait;
    bool waits;
    CUdeviceptr address; /* MEM_ALLOC, MEM_FREE */
    uint64_t bytes;      /* MEM_ALLOC */
    struct node *next;
    struct node *origin; /* in an executable graph: the node that it was made from */
    unsigned index;
};

struct graph {
    struct node *first, *last;
    unsigned node_count;
    bool is_child; /* belongs to a node */
};

struct graph *graph_new(void);
void graph_free(struct graph *graph);
/* Adds a node of that content (type and its fields) after others. NULL: out of memory. */
struct node *graph_add(struct graph *graph, const struct node *content, struct node *const *after,
                       size_t count);

/* Gives a kernel node its own copy of the parameters. */
bool own_params(struct node *node, const char *params);
CUresult check_graph(CUgraph graph);
CUresult check_node(CUgraphNode node);
CUresult add_node(CUgraphNode *added, CUgraph graph, const CUgraphNode *after, size_t count,
                  const struct node *content);

/* Contents of nodes from what programs hand in; kernel parameters go to `params`. */
CUresult node_kernel(const CUDA_KERNEL_NODE_PARAMS *p, struct node *content, char params[4096]);
CUDA_KERNEL_NODE_PARAMS node_kernel_v1(const CUDA_KERNEL_NODE_PARAMS_v1 *p); /* as today's */
CUresult node_copy(const CUDA_MEMCPY3D *params, struct node *content);
CUresult node_fill(const CUDA_MEMSET_NODE_PARAMS *p, struct node *content);
CUresult node_host(const CUDA_HOST_NODE_PARAMS *params, struct node *content);
CUresult node_any(const CUgraphNodeParams *p, struct node *content, char params[4096]);
/* Puts another content of the same type into a node. */
CUresult node_set(struct node *node, const struct node *content);

/* A graph in order of execution, divided into branches: chains of nodes. Branch 0 runs in the
 * stream of the launch, others in streams of the executable graph. */
struct step {
    struct node *node;
    unsigned branch;
    uint32_t stream_slot; /* where its last launch put it */
    uint64_t sequence;
    bool disabled;
};

struct graph_exec {
    struct graph *graph;
    struct step *steps;
    unsigned step_count;
    unsigned branch_count;
    struct stream **branch_streams; /* branch_count - 1 of them */
    struct context *context;        /* of those */
    struct gpu *gpu;                /* of the last launch, which ends at: */
    uint32_t last_stream;
    uint64_t last_sequence;
    uint64_t flags;
    uint64_t memory_bytes; /* the most that its nodes have allocated at a time */
    struct gpu *holder;    /* of that memory, from the first launch on */
};

/* --- memory of graphs (cuda_graph_memory.c) --- */

CUresult node_allocation(struct gpu *gpu, size_t bytes, struct node *content);
CUresult node_release(CUdeviceptr address, struct node *content);
/* Memory for an executable graph: how much, taking it, giving it back. */
void graph_memory_measure(struct graph_exec *exec);
CUresult graph_memory_take(struct graph_exec *exec, struct gpu *gpu);
void graph_memory_give(struct graph_exec *exec);

/* --- captures (cuda_capture.c) --- */

/* Whether calls on the stream are captured. On an error the call may not be made on it now. */
CUresult capture_of(struct stream *stream, bool *captured);
/* Adds a node after what the stream has captured so far. */
CUresult capture_node(struct stream *stream, const struct node *content);
CUresult capture_record(struct stream *stream, struct event *event);
CUresult capture_wait(struct stream *stream, struct event *event);
/* Whether the event's newest record was captured: it then has no place in a stream. */
bool capture_has(const struct event *event);
/* Errors, where a capture forbids to this thread what could block or synchronise. They invalidate
 * the capture. */
CUresult capture_forbids(void);
CUresult capture_forbids_context(const struct context *context);
CUresult capture_forbids_stream(struct stream *stream);
CUresult capture_forbids_event(struct event *event);
void capture_forget_stream(struct stream *stream);
void capture_forget_event(struct event *event);

#endif
