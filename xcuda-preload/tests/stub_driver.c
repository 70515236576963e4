/* A driver without a device, for tests that are about the library in front of it, and for counting
 * instructions. A kernel "function" is a number: how many nanoseconds it takes. Streams work in
 * order, one beside the other; times are computed, nothing is done. Rules for captures and
 * callbacks are the real driver's, as far as the library could break them.
 *
 * With STUB_TIMELESS in the environment an event is complete when it is asked for the second time:
 * the device is always a little behind, and how fast the machine is has no part in it. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda_types.h"

enum {
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_PERMITTED = 800,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
};
enum { CAPTURE_NONE, CAPTURE_ACTIVE, CAPTURE_INVALIDATED };
enum { MODE_GLOBAL, MODE_THREAD_LOCAL, MODE_RELAXED };

#define EXPORT        __attribute__((visibility("default")))
#define MEMORY_BYTES  (UINT64_C(16) << 30)
#define CONTEXT_BYTES (UINT64_C(300) << 20)

struct CUctx_st {
    int number;
};

struct CUstream_st {
    _Atomic int64_t idle_at_ns; /* when what was launched so far is done */
    int capture;
    int mode;
    uint64_t captured; /* launches */
};

struct CUevent_st {
    int64_t at_ns;
    _Atomic unsigned asked; /* how often, since it was recorded */
};

struct CUgraphExec_st {
    int64_t duration_ns;
};

/* What a test may ask for; see stub_calls. */
static _Atomic uint64_t calls;
static _Atomic uint64_t launches;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct CUctx_st primary = {1};
static _Atomic int primary_references;
static struct CUstream_st legacy;
static _Thread_local struct CUstream_st own;
static _Thread_local CUcontext current;
static _Thread_local int thread_mode;
static _Thread_local int in_callback;
static struct CUstream_st *global_capture;
static _Atomic uint64_t used_bytes;
static _Atomic uint64_t next_address = UINT64_C(0x7f0000000000);

static struct {
    uint64_t address, bytes;
} blocks[1 << 17];
enum { BLOCKS = sizeof blocks / sizeof *blocks };

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static bool timeless;

__attribute__((constructor)) static void read_environment(void) {
    timeless = getenv("STUB_TIMELESS") != NULL;
}

/* When a stream that is idle can begin. */
static int64_t begin_ns(void) {
    return timeless ? 0 : now_ns();
}

static bool is_past(int64_t at_ns) {
    return timeless || now_ns() >= at_ns;
}

static void sleep_until(int64_t at_ns) {
    if (timeless)
        return;
    struct timespec at = {at_ns / 1000000000, at_ns % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) != 0)
        continue;
}

static struct CUstream_st *stream_of(CUstream stream) {
    if (stream == NULL || stream == CU_STREAM_LEGACY)
        return &legacy;
    return stream == CU_STREAM_PER_THREAD ? &own : stream;
}

static struct CUstream_st *own_of(CUstream stream) {
    return stream == NULL ? &own : stream_of(stream);
}

/* Every call that a program may count. */
static void count(void) {
    atomic_fetch_add_explicit(&calls, 1, memory_order_relaxed);
}

/* A call that would break a capture in global mode breaks it. */
static CUresult unsafe(void) {
    if (in_callback > 0)
        return CUDA_ERROR_NOT_PERMITTED;
    if (thread_mode == MODE_RELAXED)
        return CUDA_SUCCESS;
    pthread_mutex_lock(&lock);
    struct CUstream_st *broken = global_capture;
    if (broken != NULL)
        broken->capture = CAPTURE_INVALIDATED;
    pthread_mutex_unlock(&lock);
    return broken == NULL ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

/* A stream that is captured must not be asked, whatever the mode. */
static CUresult touch(struct CUstream_st *stream) {
    if (stream->capture == CAPTURE_NONE)
        return CUDA_SUCCESS;
    stream->capture = CAPTURE_INVALIDATED;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

static CUresult enqueue(struct CUstream_st *stream, int64_t duration_ns) {
    count();
    if (in_callback > 0)
        return CUDA_ERROR_NOT_PERMITTED;
    if (stream->capture != CAPTURE_NONE) {
        stream->captured++;
        return stream->capture == CAPTURE_ACTIVE ? CUDA_SUCCESS
                                                 : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    atomic_fetch_add_explicit(&launches, 1, memory_order_relaxed);
    if (duration_ns == 0)
        return CUDA_SUCCESS;
    int64_t now = begin_ns(), from = atomic_load(&stream->idle_at_ns);
    while (!atomic_compare_exchange_weak(&stream->idle_at_ns, &from,
                                         (from > now ? from : now) + duration_ns))
        continue;
    return CUDA_SUCCESS;
}

/* ---- what tests ask ----------------------------------------------------------------------------
 */

EXPORT uint64_t stub_calls(void) {
    return atomic_load(&calls);
}

EXPORT uint64_t stub_launches(void) {
    return atomic_load(&launches);
}

EXPORT uint64_t stub_used_bytes(void) {
    return atomic_load(&used_bytes);
}

/* ---- contexts ----------------------------------------------------------------------------------
 */

EXPORT CUresult cuInit(unsigned int flags) {
    (void)flags;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? CUDA_SUCCESS : 101;
}

EXPORT CUresult cuCtxCreate_v2(CUcontext *context, unsigned int flags, CUdevice device) {
    (void)flags, (void)device;
    *context = calloc(1, sizeof **context);
    current = *context;
    atomic_fetch_add(&used_bytes, CONTEXT_BYTES);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxDestroy_v2(CUcontext context) {
    if (current == context)
        current = NULL;
    free(context);
    atomic_fetch_sub(&used_bytes, CONTEXT_BYTES);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    (void)device;
    if (atomic_fetch_add(&primary_references, 1) == 0)
        atomic_fetch_add(&used_bytes, CONTEXT_BYTES);
    *context = &primary;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    (void)device;
    if (atomic_fetch_sub(&primary_references, 1) == 1)
        atomic_fetch_sub(&used_bytes, CONTEXT_BYTES);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active) {
    (void)device;
    *flags = 0;
    *active = atomic_load(&primary_references) > 0;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext *context) {
    count();
    *context = current;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
    current = context;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSynchronize(void) {
    CUresult result = unsafe();
    if (result == CUDA_SUCCESS)
        sleep_until(atomic_load(&legacy.idle_at_ns));
    return result;
}

/* ---- streams and events ------------------------------------------------------------------------
 */

EXPORT CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
    (void)flags;
    *stream = calloc(1, sizeof **stream);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamDestroy_v2(CUstream stream) {
    free(stream);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetCtx(CUstream stream, CUcontext *context) {
    (void)stream;
    count();
    *context = current;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamSynchronize(CUstream stream) {
    struct CUstream_st *named = stream_of(stream);
    CUresult result = unsafe();
    if (result == CUDA_SUCCESS)
        result = touch(named);
    if (result == CUDA_SUCCESS)
        sleep_until(atomic_load(&named->idle_at_ns));
    return result;
}

EXPORT CUresult cuStreamSynchronize_ptsz(CUstream stream) {
    sleep_until(atomic_load(&own_of(stream)->idle_at_ns));
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamQuery(CUstream stream) {
    struct CUstream_st *named = stream_of(stream);
    count();
    CUresult result = unsafe();
    if (result == CUDA_SUCCESS)
        result = touch(named);
    if (result != CUDA_SUCCESS)
        return result;
    return is_past(atomic_load(&named->idle_at_ns)) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

EXPORT CUresult cuEventCreate(CUevent *event, unsigned int flags) {
    (void)flags;
    count();
    *event = calloc(1, sizeof **event);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventRecord(CUevent event, CUstream stream) {
    struct CUstream_st *named = stream_of(stream);
    count();
    CUresult result = touch(named);
    if (result != CUDA_SUCCESS)
        return result;
    int64_t now = begin_ns(), idle = atomic_load(&named->idle_at_ns);
    event->at_ns = idle > now ? idle : now;
    atomic_store(&event->asked, 0);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventQuery(CUevent event) {
    count();
    CUresult result = unsafe();
    if (result != CUDA_SUCCESS)
        return result;
    return is_past(event->at_ns) && (!timeless || atomic_fetch_add(&event->asked, 1) > 0)
               ? CUDA_SUCCESS
               : CUDA_ERROR_NOT_READY;
}

EXPORT CUresult cuEventSynchronize(CUevent event) {
    sleep_until(event->at_ns);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    count();
    *milliseconds = (float)((double)(end->at_ns - start->at_ns) / 1e6);
    return CUDA_SUCCESS;
}

/* ---- captures ----------------------------------------------------------------------------------
 */

EXPORT CUresult cuStreamBeginCapture_v2(CUstream stream, int mode) {
    struct CUstream_st *named = stream_of(stream);
    named->capture = CAPTURE_ACTIVE;
    named->mode = mode;
    named->captured = 0;
    pthread_mutex_lock(&lock);
    if (mode == MODE_GLOBAL)
        global_capture = named;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    struct CUstream_st *named = stream_of(stream);
    pthread_mutex_lock(&lock);
    bool whole = named->capture == CAPTURE_ACTIVE;
    named->capture = CAPTURE_NONE;
    if (global_capture == named)
        global_capture = NULL;
    pthread_mutex_unlock(&lock);
    *graph = (CUgraph)(uintptr_t)(named->captured + 1);
    return whole ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
}

EXPORT CUresult cuStreamIsCapturing(CUstream stream, int *status) {
    *status = stream_of(stream)->capture;
    return in_callback > 0 ? CUDA_ERROR_NOT_PERMITTED : CUDA_SUCCESS;
}

EXPORT CUresult cuThreadExchangeStreamCaptureMode(int *mode) {
    int before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void *data) {
    sleep_until(atomic_load(&stream_of(stream)->idle_at_ns));
    in_callback++;
    function(data);
    in_callback--;
    return CUDA_SUCCESS;
}

/* ---- work --------------------------------------------------------------------------------------
 */

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned int x, unsigned int y, unsigned int z,
                               unsigned int block_x, unsigned int block_y, unsigned int block_z,
                               unsigned int shared, CUstream stream, void **parameters,
                               void **extra) {
    (void)x, (void)y, (void)z, (void)block_x, (void)block_y, (void)block_z;
    (void)shared, (void)parameters, (void)extra;
    return enqueue(stream_of(stream), (int64_t)(uintptr_t)function);
}

EXPORT CUresult cuLaunchKernel_ptsz(CUfunction function, unsigned int x, unsigned int y,
                                    unsigned int z, unsigned int block_x, unsigned int block_y,
                                    unsigned int block_z, unsigned int shared, CUstream stream,
                                    void **parameters, void **extra) {
    (void)x, (void)y, (void)z, (void)block_x, (void)block_y, (void)block_z;
    (void)shared, (void)parameters, (void)extra;
    return enqueue(own_of(stream), (int64_t)(uintptr_t)function);
}

EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function,
                                 void **parameters, void **extra) {
    (void)parameters, (void)extra;
    return enqueue(stream_of(config->hStream), (int64_t)(uintptr_t)function);
}

EXPORT CUresult cuLaunchKernelEx_ptsz(const CUlaunchConfig *config, CUfunction function,
                                      void **parameters, void **extra) {
    (void)parameters, (void)extra;
    return enqueue(own_of(config->hStream), (int64_t)(uintptr_t)function);
}

EXPORT CUresult cuGraphLaunch_ptsz(CUgraphExec graph, CUstream stream) {
    return enqueue(own_of(stream), (int64_t)(uintptr_t)graph);
}

EXPORT CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned int x, unsigned int y,
                                          unsigned int z, unsigned int block_x,
                                          unsigned int block_y, unsigned int block_z,
                                          unsigned int shared, CUstream stream, void **parameters) {
    (void)x, (void)y, (void)z, (void)block_x, (void)block_y, (void)block_z;
    (void)shared, (void)parameters;
    return enqueue(stream_of(stream), (int64_t)(uintptr_t)function);
}

EXPORT CUresult cuGraphLaunch(CUgraphExec graph, CUstream stream) {
    return enqueue(stream_of(stream), (int64_t)(uintptr_t)graph);
}

EXPORT CUresult cuMemsetD8_v2(CUdeviceptr address, unsigned char value, size_t bytes) {
    (void)address, (void)value, (void)bytes;
    return enqueue(&legacy, 0);
}

EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes,
                                     CUstream stream) {
    (void)to, (void)from, (void)bytes;
    return enqueue(stream_of(stream), 0);
}

EXPORT CUresult cuMemcpyDtoDAsync_v2_ptsz(CUdeviceptr to, CUdeviceptr from, size_t bytes,
                                          CUstream stream) {
    (void)to, (void)from, (void)bytes;
    return enqueue(own_of(stream), 0);
}

EXPORT CUresult cuMemsetD32Async(CUdeviceptr address, unsigned int value, size_t count,
                                 CUstream stream) {
    (void)address, (void)value, (void)count;
    return enqueue(stream_of(stream), 0);
}

/* ---- memory ------------------------------------------------------------------------------------
 */

static unsigned place_of(uint64_t address) {
    return (unsigned)(address >> 9) % BLOCKS;
}

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    if (bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (atomic_fetch_add(&used_bytes, bytes) + bytes > MEMORY_BYTES) {
        atomic_fetch_sub(&used_bytes, bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *address = atomic_fetch_add(&next_address, 512);
    blocks[place_of(*address)].address = *address;
    blocks[place_of(*address)].bytes = bytes;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemFree_v2(CUdeviceptr address) {
    if (blocks[place_of(address)].address != address)
        return CUDA_ERROR_INVALID_VALUE;
    blocks[place_of(address)].address = 0;
    atomic_fetch_sub(&used_bytes, blocks[place_of(address)].bytes);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    if (total != NULL)
        *total = MEMORY_BYTES;
    if (free_bytes != NULL)
        *free_bytes = MEMORY_BYTES - atomic_load(&used_bytes);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    (void)device;
    *bytes = MEMORY_BYTES;
    return CUDA_SUCCESS;
}

/* ---- routing -----------------------------------------------------------------------------------
 */

EXPORT CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version,
                                    uint64_t flags, void *status);

EXPORT CUresult cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(symbol, function, version, flags, NULL);
}

/* As the real one: what the name means depends on the version that the program was built for, and
 * on the flag for per-thread streams. */
EXPORT CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version,
                                    uint64_t flags, void *status) {
    const struct {
        const char *name;
        int since;
        bool per_thread;
        void *function;
    } known[] = {
        {"cuLaunchKernel", 7000, true, (void *)cuLaunchKernel_ptsz},
        {"cuLaunchKernel", 4000, false, (void *)cuLaunchKernel},
        {"cuMemAlloc", 3020, false, (void *)cuMemAlloc_v2},
        {"cuMemFree", 3020, false, (void *)cuMemFree_v2},
        {"cuInit", 2000, false, (void *)cuInit},
        {"cuGetProcAddress", 12000, false, (void *)cuGetProcAddress_v2},
        {"cuGetProcAddress", 11030, false, (void *)cuGetProcAddress},
    };
    if (symbol == NULL || function == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *function = NULL;
    for (size_t i = 0; i < sizeof known / sizeof *known && *function == NULL; i++) {
        bool wanted = strcmp(known[i].name, symbol) == 0 && version >= known[i].since;
        if (wanted && (!known[i].per_thread || flags & 2))
            *function = known[i].function;
    }
    if (status != NULL)
        *(int *)status = *function == NULL;
    return *function == NULL ? CUDA_ERROR_NOT_FOUND : CUDA_SUCCESS;
}
