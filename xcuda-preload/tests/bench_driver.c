/* A driver that does nothing, for benchmarks: a launch is done at once, and has taken `idle_takes`
 * of a time of its own. Threads share nothing in it, so that what they wait for is the library's.
 */
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "cuda_types.h"

#define EXPORT        __attribute__((visibility("default")))
#define OWN           _Thread_local __attribute__((tls_model("initial-exec")))
#define MEMORY_BYTES  (UINT64_C(64) << 30)
#define FIRST_ADDRESS UINT64_C(0x7f0000000000)

enum { LINE_BYTES = 64, BLOCK_BYTES = 512, FREED = 1 << 17 };

struct CUctx_st {
    int number;
};

struct CUstream_st {
    int64_t done_ns; /* what was launched so far has taken */
};

struct CUevent_st {
    int64_t at_ns;
};

static int64_t takes_ns;
static struct CUctx_st primary = {1};
static OWN CUcontext current;
static OWN struct CUstream_st own;
static OWN int thread_mode;
static OWN uint64_t calls;

static struct CUstream_st *stream_of(CUstream stream) {
    return stream == NULL || stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD ? &own
                                                                                          : stream;
}

static CUresult enqueue(CUstream stream) {
    calls++;
    stream_of(stream)->done_ns += takes_ns;
    return CUDA_SUCCESS;
}

/* ---- what benchmarks ask ----------------------------------------------------------------------
 */

/* From now on a launch takes so long. */
EXPORT void idle_takes(int64_t duration_ns) {
    takes_ns = duration_ns;
}

/* Calls of this thread that a launch may cause, launches included. */
EXPORT uint64_t idle_calls(void) {
    return calls;
}

/* ---- contexts ---------------------------------------------------------------------------------
 */

EXPORT CUresult cuInit(unsigned int flags) {
    (void)flags;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    (void)device;
    *context = &primary;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active) {
    (void)device;
    *flags = 0;
    *active = 1;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext *context) {
    calls++;
    *context = current;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
    calls++;
    current = context;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSynchronize(void) {
    return CUDA_SUCCESS;
}

/* ---- streams and events -----------------------------------------------------------------------
 */

EXPORT CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
    (void)flags;
    *stream = aligned_alloc(LINE_BYTES, LINE_BYTES);
    (*stream)->done_ns = 0;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetCtx(CUstream stream, CUcontext *context) {
    (void)stream;
    calls++;
    *context = current;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamSynchronize(CUstream stream) {
    (void)stream;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamQuery(CUstream stream) {
    (void)stream;
    calls++;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamIsCapturing(CUstream stream, int *status) {
    (void)stream;
    calls++;
    *status = 0;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuThreadExchangeStreamCaptureMode(int *mode) {
    int before = thread_mode;
    calls++;
    thread_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventCreate(CUevent *event, unsigned int flags) {
    (void)flags;
    calls++;
    *event = calloc(1, sizeof **event);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventRecord(CUevent event, CUstream stream) {
    calls++;
    event->at_ns = stream_of(stream)->done_ns;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventQuery(CUevent event) {
    (void)event;
    calls++;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    calls++;
    *milliseconds = (float)((double)(end->at_ns - start->at_ns) / 1e6);
    return CUDA_SUCCESS;
}

/* ---- work -------------------------------------------------------------------------------------
 */

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned int x, unsigned int y, unsigned int z,
                               unsigned int block_x, unsigned int block_y, unsigned int block_z,
                               unsigned int shared, CUstream stream, void **parameters,
                               void **extra) {
    (void)function, (void)x, (void)y, (void)z, (void)block_x, (void)block_y, (void)block_z;
    (void)shared, (void)parameters, (void)extra;
    return enqueue(stream);
}

EXPORT CUresult cuLaunchKernel_ptsz(CUfunction function, unsigned int x, unsigned int y,
                                    unsigned int z, unsigned int block_x, unsigned int block_y,
                                    unsigned int block_z, unsigned int shared, CUstream stream,
                                    void **parameters, void **extra) {
    (void)function, (void)x, (void)y, (void)z, (void)block_x, (void)block_y, (void)block_z;
    (void)shared, (void)parameters, (void)extra;
    return enqueue(stream);
}

EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function,
                                 void **parameters, void **extra) {
    (void)function, (void)parameters, (void)extra;
    return enqueue(config->hStream);
}

EXPORT CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned int x, unsigned int y,
                                          unsigned int z, unsigned int block_x,
                                          unsigned int block_y, unsigned int block_z,
                                          unsigned int shared, CUstream stream, void **parameters) {
    (void)function, (void)x, (void)y, (void)z, (void)block_x, (void)block_y, (void)block_z;
    (void)shared, (void)parameters;
    return enqueue(stream);
}

EXPORT CUresult cuGraphLaunch(CUgraphExec graph, CUstream stream) {
    (void)graph;
    return enqueue(stream);
}

EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes,
                                     CUstream stream) {
    (void)to, (void)from, (void)bytes;
    return enqueue(stream);
}

EXPORT CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t bytes,
                                CUstream stream) {
    (void)address, (void)value, (void)bytes;
    return enqueue(stream);
}

/* ---- memory, of one thread --------------------------------------------------------------------
 */

static uint64_t next_address = FIRST_ADDRESS;
static uint64_t freed[FREED];
static unsigned freed_count;

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    if (bytes > BLOCK_BYTES)
        return CUDA_ERROR_INVALID_VALUE;
    if (freed_count > 0) {
        *address = freed[--freed_count];
        return CUDA_SUCCESS;
    }
    *address = next_address;
    next_address += BLOCK_BYTES;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemFree_v2(CUdeviceptr address) {
    if (freed_count == FREED)
        return CUDA_ERROR_INVALID_VALUE;
    freed[freed_count++] = address;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    *free_bytes = *total = MEMORY_BYTES;
    return CUDA_SUCCESS;
}
