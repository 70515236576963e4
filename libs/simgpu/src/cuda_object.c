/* Objects behind handles. Programs hand in handles of destroyed objects and plain garbage; each
 * kind lives in a region of its own, so that a handle can be judged without touching it. */
#include <string.h>
#include <sys/mman.h>

#include "cuda_graph.h"

struct layout {
    size_t size;     /* of one object, flag included */
    size_t capacity; /* objects */
};

struct header {
    _Atomic uint32_t in_use;
    uint32_t next_free; /* 1 + index */
};

#define SIZED(type, count) {sizeof(struct header) + sizeof(struct type), count}

static const struct layout layouts[OBJECT_KINDS] = {
    [OBJECT_CONTEXT] = SIZED(context, 1024), [OBJECT_STREAM] = SIZED(stream, 16384),
    [OBJECT_EVENT] = SIZED(event, 65536),    [OBJECT_MODULE] = SIZED(module, 65536),
    [OBJECT_KERNEL] = SIZED(kernel, 65536),  [OBJECT_GRAPH] = SIZED(graph, 65536),
    [OBJECT_NODE] = SIZED(node, 1 << 20),    [OBJECT_GRAPH_EXEC] = SIZED(graph_exec, 65536),
    [OBJECT_POOL] = SIZED(pool, 4096),       [OBJECT_ARRAY] = SIZED(array, 65536),
    [OBJECT_MIPMAP] = SIZED(mipmap, 16384),
};

static struct {
    _Atomic(char *) start;
    uint32_t touched;
    uint32_t free;
} regions[OBJECT_KINDS];

static pthread_mutex_t objects_lock = PTHREAD_MUTEX_INITIALIZER; /* innermost of all */

static size_t stride(enum object_kind kind) {
    return (layouts[kind].size + 63) & ~(size_t)63;
}

static struct header *header_at(enum object_kind kind, uint32_t index) {
    return (struct header *)(regions[kind].start + stride(kind) * index);
}

static uint32_t take_index(enum object_kind kind) {
    uint32_t index = regions[kind].free;
    if (index) {
        regions[kind].free = header_at(kind, index - 1)->next_free;
        return index - 1;
    }
    if (!regions[kind].start) {
        void *start = mmap(NULL, stride(kind) * layouts[kind].capacity, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (start == MAP_FAILED)
            return UINT32_MAX;
        regions[kind].start = start;
    }
    return regions[kind].touched < layouts[kind].capacity ? regions[kind].touched++ : UINT32_MAX;
}

void *object_new(enum object_kind kind) {
    pthread_mutex_lock(&objects_lock);
    uint32_t index = take_index(kind);
    pthread_mutex_unlock(&objects_lock);
    if (index == UINT32_MAX)
        return NULL;
    struct header *header = header_at(kind, index);
    memset(header + 1, 0, layouts[kind].size - sizeof *header);
    header->in_use = 1;
    return header + 1;
}

void object_free(enum object_kind kind, void *object) {
    struct header *header = (struct header *)object - 1;
    header->in_use = 0;
    pthread_mutex_lock(&objects_lock);
    header->next_free = regions[kind].free;
    regions[kind].free = 1 + (uint32_t)(((char *)header - regions[kind].start) / stride(kind));
    pthread_mutex_unlock(&objects_lock);
}

bool object_is(enum object_kind kind, const void *handle) {
    uintptr_t start = (uintptr_t)regions[kind].start;
    uintptr_t at = (uintptr_t)handle - sizeof(struct header);
    if (!start || at < start || at >= start + stride(kind) * layouts[kind].capacity)
        return false;
    if ((at - start) % stride(kind))
        return false;
    return ((const struct header *)at)->in_use == 1;
}
