#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

#include "symbols.h"

struct driver driver;

/* Answers for every function that the driver lacks, whatever its arguments. */
static CUresult missing(void) {
    return CUDA_ERROR_NO_DEVICE;
}

/* Innermost: nothing is called under it. Symbols are looked up before, since the loader has a lock
 * of its own, under which it calls constructors that may come here. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic bool found;
void *hook_real[HOOK_COUNT];

/* From a function of the driver to its hook: open addressing, never full. */
enum { ROUTES = 512 };
_Static_assert(HOOK_COUNT * 2 < ROUTES, "raise ROUTES");
static struct route {
    void *function;
    void *hook;
} routes[ROUTES];

static unsigned first_route(const void *function) {
    return (unsigned)(((uintptr_t)function * UINT64_C(0x9e3779b97f4a7c15)) >> 55) % ROUTES;
}

static void add_route(void *function, void *hook) {
    unsigned i = first_route(function);
    while (routes[i].function != NULL && routes[i].function != function)
        i = (i + 1) % ROUTES;
    if (routes[i].function == NULL) /* two names of one function: either hook will do */
        routes[i] = (struct route){function, hook};
}

static void *look_up(void *library, const char *name) {
    void *function = symbols_real_dlsym(library, name);
    return function == NULL ? (void *)missing : function;
}

static const struct {
    const char *name;
    void *field;
} plain[] = {
    {"cuEventCreate", &driver.event_create},
    {"cuEventDestroy_v2", &driver.event_destroy},
    {"cuEventRecord", &driver.event_record},
    {"cuEventElapsedTime", &driver.event_elapsed},
    {"cuEventQuery", &driver.event_query},
    {"cuStreamQuery", &driver.stream_query},
    {"cuStreamGetCtx", &driver.stream_get_ctx},
    {"cuStreamIsCapturing", &driver.stream_is_capturing},
    {"cuThreadExchangeStreamCaptureMode", &driver.exchange_capture_mode},
    {"cuCtxGetCurrent", &driver.ctx_get_current},
    {"cuCtxSetCurrent", &driver.ctx_set_current},
    {"cuCtxSynchronize", &driver.ctx_synchronize},
    {"cuMemGetInfo_v2", &driver.mem_get_info},
    {"cuDevicePrimaryCtxGetState", &driver.primary_ctx_state},
    {"cuCtxGetDevice", &driver.ctx_get_device},
    {"cuDeviceGetMemPool", &driver.device_get_pool},
    {"cuMemPoolGetAttribute", &driver.pool_get},
    {"cuDeviceGetGraphMemAttribute", &driver.graph_memory_get},
    {"cuGraphGetNodes", &driver.graph_get_nodes},
    {"cuGraphNodeGetType", &driver.graph_node_type},
    {"cuGraphChildGraphNodeGetGraph", &driver.graph_child},
    {"cuGraphMemAllocNodeGetParams", &driver.graph_alloc_params},
    {"cuGraphMemFreeNodeGetParams", &driver.graph_free_params},
};
enum { PLAIN = sizeof plain / sizeof *plain };

struct functions {
    void *hooked[HOOK_COUNT];
    void *plain[PLAIN];
};

static void look_up_all(void *library, struct functions *functions) {
    for (unsigned i = 0; i < HOOK_COUNT; i++)
        functions->hooked[i] = look_up(library, hook_table[i].name);
    for (unsigned i = 0; i < PLAIN; i++)
        functions->plain[i] = look_up(library, plain[i].name);
}

/* Under the lock. */
static void take_functions(const struct functions *functions) {
    for (unsigned i = 0; i < HOOK_COUNT; i++) {
        hook_real[i] = functions->hooked[i];
        if (hook_real[i] != (void *)missing)
            add_route(hook_real[i], hook_table[i].function);
    }
    for (unsigned i = 0; i < PLAIN; i++)
        memcpy(plain[i].field, &functions->plain[i], sizeof functions->plain[i]);
}

/* Holding the handle keeps the driver where it is; it never lets itself be unloaded anyway. */
bool driver_find(void) {
    if (atomic_load_explicit(&found, memory_order_acquire))
        return true;
    struct functions functions;
    void *library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    if (library != NULL)
        look_up_all(library, &functions);
    pthread_mutex_lock(&lock);
    if (!atomic_load_explicit(&found, memory_order_relaxed)) {
        if (library != NULL) {
            take_functions(&functions);
            atomic_store_explicit(&found, true, memory_order_release);
        } else {
            for (unsigned i = 0; i < HOOK_COUNT; i++)
                hook_real[i] = (void *)missing;
        }
    }
    pthread_mutex_unlock(&lock);
    return library != NULL;
}

void driver_forget_lock(void) {
    pthread_mutex_init(&lock, NULL);
}

void *driver_route(void *function) {
    if (!driver_find())
        return function;
    for (unsigned i = first_route(function); routes[i].function != NULL; i = (i + 1) % ROUTES) {
        if (routes[i].function == function)
            return routes[i].hook;
    }
    return function;
}

/* Names are asked for some hundred times in the life of a program; the table is no longer. */
enum hook_index driver_hook_named(const char *name) {
    unsigned i = 0;
    while (i < HOOK_COUNT && strcmp(hook_table[i].name, name) != 0)
        i++;
    return (enum hook_index)i;
}
