/* The driver behind the hooks: where its functions are, and which of them are hooked. */
#ifndef XCUDA_DRIVER_H
#define XCUDA_DRIVER_H

#include <stdatomic.h>
#include <stdbool.h>

#include "hooks.h"
#include "visibility.h"

struct hook {
    const char *name;
    void *function; /* what is exported under the name */
};

extern const struct hook hook_table[HOOK_COUNT];

/* The driver's own functions, by index; where it lacks one, a function that answers
 * CUDA_ERROR_NO_DEVICE. Not to be looked at before driver_find, which launch_gated calls. */
extern HIDDEN void *hook_real[HOOK_COUNT];

/* Calls the driver's function of this name. */
#define REAL(name) ((fn_##name)hook_real[HOOK_##name])

/* The same through the index that a handler got: the twins of a function share its type. */
#define REAL_OF(hook, name) ((fn_##name)hook_real[hook])

/* Functions of the driver that are used here and not hooked. */
struct driver {
    CUresult (*event_create)(CUevent *event, unsigned int flags);
    CUresult (*event_destroy)(CUevent event);
    CUresult (*event_record)(CUevent event, CUstream stream);
    CUresult (*event_elapsed)(float *milliseconds, CUevent start, CUevent end);
    CUresult (*event_query)(CUevent event);
    CUresult (*stream_query)(CUstream stream);
    CUresult (*stream_get_ctx)(CUstream stream, CUcontext *context);
    CUresult (*stream_is_capturing)(CUstream stream, int *status);
    CUresult (*exchange_capture_mode)(int *mode);
    CUresult (*ctx_get_current)(CUcontext *context);
    CUresult (*ctx_set_current)(CUcontext context);
    CUresult (*ctx_synchronize)(void);
    CUresult (*mem_get_info)(size_t *free, size_t *total);
    CUresult (*primary_ctx_state)(CUdevice device, unsigned int *flags, int *active);
    CUresult (*ctx_get_device)(CUdevice *device);
    CUresult (*device_get_pool)(CUmemoryPool *pool, CUdevice device);
    CUresult (*pool_get)(CUmemoryPool pool, int attribute, void *value);
    CUresult (*graph_memory_get)(CUdevice device, int attribute, void *value);
    CUresult (*graph_get_nodes)(CUgraph graph, CUgraphNode *nodes, size_t *count);
    CUresult (*graph_node_type)(CUgraphNode node, int *type);
    CUresult (*graph_child)(CUgraphNode node, CUgraph *graph);
    CUresult (*graph_alloc_params)(CUgraphNode node, CUDA_MEM_ALLOC_NODE_PARAMS *params);
    CUresult (*graph_free_params)(CUgraphNode node, CUdeviceptr *address);
};

extern struct driver driver;

/* Finds the driver that the program has loaded. Cheap once it is found. False when there is none.
 */
bool driver_find(void);

/* In a child after fork. */
void driver_forget_lock(void);

/* The hook that stands in for a function of the driver, else the function itself. */
void *driver_route(void *function);

/* The hook of this name, or HOOK_COUNT. */
enum hook_index driver_hook_named(const char *name);

#endif
