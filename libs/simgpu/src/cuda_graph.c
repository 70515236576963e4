/* Graphs: making them, adding and taking out nodes, walking through them. */
#include <stdlib.h>
#include <string.h>

#include "cuda_graph.h"

/* --- graphs and nodes --- */

struct graph *graph_new(void) {
    return object_new(OBJECT_GRAPH);
}

static void free_content(struct node *node) {
    free(node->after);
    free(node->params);
    free(node->param_pointers);
    if (node->child)
        graph_free(node->child);
}

void graph_free(struct graph *graph) {
    while (graph->first) {
        struct node *node = graph->first;
        graph->first = node->next;
        free_content(node);
        object_free(OBJECT_NODE, node);
    }
    object_free(OBJECT_GRAPH, graph);
}

static struct graph *copy_graph(const struct graph *graph);

bool own_params(struct node *node, const char *params) {
    const struct kernel *kernel = node->launch.kernel;
    node->params = malloc(kernel->params_bytes + 1);
    node->param_pointers = malloc((kernel->param_count + 1) * sizeof(void *));
    if (!node->params || !node->param_pointers)
        return false;
    memcpy(node->params, params, kernel->params_bytes);
    for (unsigned i = 0; i < kernel->param_count; i++)
        node->param_pointers[i] = node->params + kernel->param_offset[i];
    return true;
}

struct node *graph_add(struct graph *graph, const struct node *content, struct node *const *after,
                       size_t count) {
    struct node *node = object_new(OBJECT_NODE);
    if (!node)
        return NULL;
    *node = *content;
    node->graph = graph;
    node->next = NULL;
    node->origin = NULL;
    node->params = NULL;
    node->param_pointers = NULL;
    node->child = NULL;
    node->after_count = count;
    node->after = malloc((count + 1) * sizeof(struct node *));
    bool complete = node->after != NULL;
    if (complete && count)
        memcpy(node->after, after, count * sizeof(struct node *));
    if (complete && node->type == CU_GRAPH_NODE_TYPE_KERNEL)
        complete = own_params(node, content->params);
    if (complete && node->type == CU_GRAPH_NODE_TYPE_GRAPH)
        complete = (node->child = copy_graph(content->child)) != NULL;
    if (!complete) {
        free_content(node);
        object_free(OBJECT_NODE, node);
        return NULL;
    }
    if (node->child)
        node->child->is_child = true;
    *(graph->last ? &graph->last->next : &graph->first) = node;
    graph->last = node;
    graph->node_count++;
    return node;
}

/* Nodes of the copy lie in the same order, and remember their origins. */
static struct graph *copy_graph(const struct graph *graph) {
    struct graph *copy = graph_new();
    struct node **copies = malloc((graph->node_count + 1) * sizeof(struct node *));
    bool complete = copy && copies;
    unsigned count = 0;
    for (struct node *node = graph->first; node; node = node->next)
        node->index = count++;
    count = 0;
    for (struct node *node = graph->first; node && complete; node = node->next) {
        copies[count] = graph_add(copy, node, NULL, 0);
        complete = copies[count] != NULL;
        if (complete)
            copies[count++]->origin = node;
    }
    for (struct node *node = graph->first; node && complete; node = node->next) {
        struct node *its = copies[node->index];
        struct node **after = malloc((node->after_count + 1) * sizeof(struct node *));
        complete = after != NULL;
        for (size_t i = 0; complete && i < node->after_count; i++)
            after[i] = copies[node->after[i]->index];
        free(its->after);
        its->after = after;
        its->after_count = complete ? node->after_count : 0;
    }
    free(copies);
    if (complete)
        return copy;
    if (copy)
        graph_free(copy);
    return NULL;
}

/* --- calls: building --- */

CUresult check_graph(CUgraph graph) {
    CUresult result = enter();
    if (result)
        return result;
    return object_is(OBJECT_GRAPH, graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult check_node(CUgraphNode node) {
    CUresult result = enter();
    if (result)
        return result;
    return object_is(OBJECT_NODE, node) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult add_node(CUgraphNode *added, CUgraph graph, const CUgraphNode *after, size_t count,
                  const struct node *content) {
    CUresult result = check_graph(graph);
    if (result)
        return result;
    if (!added || (count && !after))
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++)
        if (!object_is(OBJECT_NODE, after[i]) || after[i]->graph != graph)
            return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&driver.mutex);
    *added = graph_add(graph, content, after, count);
    pthread_mutex_unlock(&driver.mutex);
    return *added ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUDA_API CUresult cuGraphCreate(CUgraph *graph, unsigned flags) {
    CUresult result = enter();
    if (result)
        return result;
    if (!graph || flags)
        return CUDA_ERROR_INVALID_VALUE;
    *graph = graph_new();
    return *graph ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUDA_API CUresult cuGraphDestroy(CUgraph graph) {
    CUresult result = check_graph(graph);
    if (result)
        return result;
    if (graph->is_child)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&driver.mutex);
    graph_free(graph);
    pthread_mutex_unlock(&driver.mutex);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphClone(CUgraph *copy, CUgraph graph) {
    CUresult result = check_graph(graph);
    if (result)
        return result;
    if (!copy)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&driver.mutex);
    *copy = copy_graph(graph);
    pthread_mutex_unlock(&driver.mutex);
    return *copy ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUDA_API CUresult cuGraphNodeFindInClone(CUgraphNode *found, CUgraphNode original, CUgraph copy) {
    CUresult result = check_graph(copy);
    if (result)
        return result;
    for (struct node *node = copy->first; node && found; node = node->next)
        if (node->origin == original) {
            *found = node;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_VALUE;
}
CUDA_API CUresult cuGraphAddDependencies(CUgraph graph, const CUgraphNode *from,
                                         const CUgraphNode *to, size_t count) {
    CUresult result = check_graph(graph);
    if (result)
        return result;
    for (size_t i = 0; i < count; i++) {
        if (!object_is(OBJECT_NODE, from[i]) || !object_is(OBJECT_NODE, to[i]) ||
            from[i]->graph != graph || to[i]->graph != graph)
            return CUDA_ERROR_INVALID_VALUE;
        struct node *node = to[i];
        struct node **grown = realloc(node->after, (node->after_count + 1) * sizeof(struct node *));
        if (!grown)
            return CUDA_ERROR_OUT_OF_MEMORY;
        node->after = grown;
        node->after[node->after_count++] = from[i];
    }
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphAddDependencies_v2(CUgraph graph, const CUgraphNode *from,
                                            const CUgraphNode *to, const CUgraphEdgeData *edges,
                                            size_t count) {
    (void)edges;
    return cuGraphAddDependencies(graph, from, to, count);
}
/* --- calls: looking --- */

CUDA_API CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count) {
    CUresult result = check_graph(graph);
    if (result)
        return result;
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    size_t at = 0;
    for (struct node *node = graph->first; node && nodes && at < *count; node = node->next)
        nodes[at++] = node;
    *count = nodes ? at : graph->node_count;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphGetRootNodes(CUgraph graph, CUgraphNode *nodes, size_t *count) {
    CUresult result = check_graph(graph);
    if (result)
        return result;
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    size_t at = 0;
    for (struct node *node = graph->first; node; node = node->next) {
        if (node->after_count)
            continue;
        if (nodes && at < *count)
            nodes[at] = node;
        at += !nodes || at < *count;
    }
    *count = at;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphGetEdges(CUgraph graph, CUgraphNode *from, CUgraphNode *to,
                                  size_t *count) {
    CUresult result = check_graph(graph);
    if (result)
        return result;
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    size_t at = 0;
    for (struct node *node = graph->first; node; node = node->next)
        for (size_t i = 0; i < node->after_count && (!from || at < *count); i++, at++) {
            if (!from || !to)
                continue;
            from[at] = node->after[i];
            to[at] = node;
        }
    *count = at;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphGetEdges_v2(CUgraph graph, CUgraphNode *from, CUgraphNode *to,
                                     CUgraphEdgeData *edges, size_t *count) {
    CUresult result = cuGraphGetEdges(graph, from, to, count);
    if (result == CUDA_SUCCESS && edges)
        memset(edges, 0, *count * sizeof *edges);
    return result;
}
CUDA_API CUresult cuGraphDestroyNode(CUgraphNode node) {
    CUresult result = check_node(node);
    if (result)
        return result;
    struct graph *graph = node->graph;
    struct node *previous = NULL;
    pthread_mutex_lock(&driver.mutex);
    for (struct node *other = graph->first; other; other = other->next) {
        if (other->next == node)
            previous = other;
        size_t kept = 0;
        for (size_t i = 0; i < other->after_count; i++)
            if (other->after[i] != node)
                other->after[kept++] = other->after[i];
        other->after_count = kept;
    }
    *(previous ? &previous->next : &graph->first) = node->next;
    if (graph->last == node)
        graph->last = previous;
    graph->node_count--;
    free_content(node);
    object_free(OBJECT_NODE, node);
    pthread_mutex_unlock(&driver.mutex);
    return CUDA_SUCCESS;
}
