/* The variants of calls for programs whose default stream is that of the thread: stream 0 means it.
 * (cuLaunchKernelEx has its stream in its configuration.) */
#include "cuda_driver.h"

CUDA_API CUresult cuStreamBeginCapture_v2_ptsz(CUstream handle, CUstreamCaptureMode mode) {
    return cuStreamBeginCapture_v2(own_stream(handle), mode);
}

CUDA_API CUresult cuStreamBeginCapture_ptsz(CUstream handle) {
    return cuStreamBeginCapture(own_stream(handle));
}

CUDA_API CUresult cuStreamBeginCaptureToGraph_ptsz(CUstream handle, CUgraph graph,
                                                   const CUgraphNode *dependencies,
                                                   const CUgraphEdgeData *edges, size_t count,
                                                   CUstreamCaptureMode mode) {
    return cuStreamBeginCaptureToGraph(own_stream(handle), graph, dependencies, edges, count, mode);
}

CUDA_API CUresult cuStreamEndCapture_ptsz(CUstream handle, CUgraph *graph) {
    return cuStreamEndCapture(own_stream(handle), graph);
}

CUDA_API CUresult cuStreamGetCaptureInfo_v2_ptsz(CUstream handle, CUstreamCaptureStatus *status,
                                                 uint64_t *id, CUgraph *graph,
                                                 const CUgraphNode **dependencies, size_t *count) {
    return cuStreamGetCaptureInfo_v2(own_stream(handle), status, id, graph, dependencies, count);
}

CUDA_API CUresult cuStreamGetCaptureInfo_v3_ptsz(CUstream handle, CUstreamCaptureStatus *status,
                                                 uint64_t *id, CUgraph *graph,
                                                 const CUgraphNode **dependencies,
                                                 const CUgraphEdgeData **edges, size_t *count) {
    return cuStreamGetCaptureInfo_v3(own_stream(handle), status, id, graph, dependencies, edges,
                                     count);
}

CUDA_API CUresult cuStreamGetCaptureInfo_ptsz(CUstream handle, CUstreamCaptureStatus *status,
                                              uint64_t *id) {
    return cuStreamGetCaptureInfo(own_stream(handle), status, id);
}

CUDA_API CUresult cuStreamIsCapturing_ptsz(CUstream handle, CUstreamCaptureStatus *status) {
    return cuStreamIsCapturing(own_stream(handle), status);
}

CUDA_API CUresult cuStreamUpdateCaptureDependencies_ptsz(CUstream handle, CUgraphNode *dependencies,
                                                         size_t count, unsigned flags) {
    return cuStreamUpdateCaptureDependencies(own_stream(handle), dependencies, count, flags);
}

CUDA_API CUresult cuStreamUpdateCaptureDependencies_v2_ptsz(CUstream handle,
                                                            CUgraphNode *dependencies,
                                                            const CUgraphEdgeData *edges,
                                                            size_t count, unsigned flags) {
    return cuStreamUpdateCaptureDependencies_v2(own_stream(handle), dependencies, edges, count,
                                                flags);
}

CUDA_API CUresult cuMemcpyAsync_ptsz(CUdeviceptr to, CUdeviceptr from, size_t bytes,
                                     CUstream stream) {
    return cuMemcpyAsync(to, from, bytes, own_stream(stream));
}

CUDA_API CUresult cuMemcpyHtoDAsync_v2_ptsz(CUdeviceptr to, const void *from, size_t bytes,
                                            CUstream stream) {
    return cuMemcpyHtoDAsync_v2(to, from, bytes, own_stream(stream));
}

CUDA_API CUresult cuMemcpyDtoHAsync_v2_ptsz(void *to, CUdeviceptr from, size_t bytes,
                                            CUstream stream) {
    return cuMemcpyDtoHAsync_v2(to, from, bytes, own_stream(stream));
}

CUDA_API CUresult cuMemcpyDtoDAsync_v2_ptsz(CUdeviceptr to, CUdeviceptr from, size_t bytes,
                                            CUstream stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, own_stream(stream));
}

CUDA_API CUresult cuMemcpyPeerAsync_ptsz(CUdeviceptr to, CUcontext to_context, CUdeviceptr from,
                                         CUcontext from_context, size_t bytes, CUstream stream) {
    return cuMemcpyPeerAsync(to, to_context, from, from_context, bytes, own_stream(stream));
}

CUDA_API CUresult cuMemcpy2DAsync_v2_ptsz(const CUDA_MEMCPY2D *params, CUstream stream) {
    return cuMemcpy2DAsync_v2(params, own_stream(stream));
}

CUDA_API CUresult cuMemcpy3DAsync_v2_ptsz(const CUDA_MEMCPY3D *params, CUstream stream) {
    return cuMemcpy3DAsync_v2(params, own_stream(stream));
}

CUDA_API CUresult cuMemcpy3DPeerAsync_ptsz(const CUDA_MEMCPY3D *params, CUstream stream) {
    return cuMemcpy3DPeerAsync(params, own_stream(stream));
}

CUDA_API CUresult cuMemcpyHtoAAsync_v2_ptsz(CUarray array, size_t offset, const void *from,
                                            size_t bytes, CUstream stream) {
    return cuMemcpyHtoAAsync_v2(array, offset, from, bytes, own_stream(stream));
}

CUDA_API CUresult cuMemcpyAtoHAsync_v2_ptsz(void *to, CUarray array, size_t offset, size_t bytes,
                                            CUstream stream) {
    return cuMemcpyAtoHAsync_v2(to, array, offset, bytes, own_stream(stream));
}

CUDA_API CUresult cuMemPrefetchAsync_v2_ptsz(CUdeviceptr address, size_t bytes,
                                             CUmemLocation location, unsigned flags,
                                             CUstream handle) {
    return cuMemPrefetchAsync_v2(address, bytes, location, flags, own_stream(handle));
}

CUDA_API CUresult cuMemPrefetchAsync_ptsz(CUdeviceptr address, size_t bytes, CUdevice device,
                                          CUstream handle) {
    return cuMemPrefetchAsync(address, bytes, device, own_stream(handle));
}

CUDA_API CUresult cuEventRecordWithFlags_ptsz(CUevent event, CUstream handle, unsigned flags) {
    return cuEventRecordWithFlags(event, own_stream(handle), flags);
}

CUDA_API CUresult cuEventRecord_ptsz(CUevent event, CUstream handle) {
    return cuEventRecord(event, own_stream(handle));
}

CUDA_API CUresult cuMemsetD8Async_ptsz(CUdeviceptr to, unsigned char value, size_t count,
                                       CUstream stream) {
    return cuMemsetD8Async(to, value, count, own_stream(stream));
}

CUDA_API CUresult cuMemsetD16Async_ptsz(CUdeviceptr to, unsigned short value, size_t count,
                                        CUstream stream) {
    return cuMemsetD16Async(to, value, count, own_stream(stream));
}

CUDA_API CUresult cuMemsetD32Async_ptsz(CUdeviceptr to, unsigned value, size_t count,
                                        CUstream stream) {
    return cuMemsetD32Async(to, value, count, own_stream(stream));
}

CUDA_API CUresult cuMemsetD2D8Async_ptsz(CUdeviceptr to, size_t pitch, unsigned char value,
                                         size_t width, size_t height, CUstream stream) {
    return cuMemsetD2D8Async(to, pitch, value, width, height, own_stream(stream));
}

CUDA_API CUresult cuMemsetD2D16Async_ptsz(CUdeviceptr to, size_t pitch, unsigned short value,
                                          size_t width, size_t height, CUstream stream) {
    return cuMemsetD2D16Async(to, pitch, value, width, height, own_stream(stream));
}

CUDA_API CUresult cuMemsetD2D32Async_ptsz(CUdeviceptr to, size_t pitch, unsigned value,
                                          size_t width, size_t height, CUstream stream) {
    return cuMemsetD2D32Async(to, pitch, value, width, height, own_stream(stream));
}

CUDA_API CUresult cuGraphLaunch_ptsz(CUgraphExec exec, CUstream handle) {
    return cuGraphLaunch(exec, own_stream(handle));
}

CUDA_API CUresult cuGraphUpload_ptsz(CUgraphExec exec, CUstream handle) {
    return cuGraphUpload(exec, own_stream(handle));
}

CUDA_API CUresult cuLaunchKernel_ptsz(CUfunction kernel, unsigned grid_x, unsigned grid_y,
                                      unsigned grid_z, unsigned block_x, unsigned block_y,
                                      unsigned block_z, unsigned shared_bytes, CUstream stream,
                                      void **params, void **extra) {
    return cuLaunchKernel(kernel, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes,
                          own_stream(stream), params, extra);
}

CUDA_API CUresult cuLaunchCooperativeKernel_ptsz(CUfunction kernel, unsigned grid_x,
                                                 unsigned grid_y, unsigned grid_z, unsigned block_x,
                                                 unsigned block_y, unsigned block_z,
                                                 unsigned shared_bytes, CUstream stream,
                                                 void **params) {
    return cuLaunchCooperativeKernel(kernel, grid_x, grid_y, grid_z, block_x, block_y, block_z,
                                     shared_bytes, own_stream(stream), params);
}

CUDA_API CUresult cuMemAllocAsync_ptsz(CUdeviceptr *address, size_t bytes, CUstream handle) {
    return cuMemAllocAsync(address, bytes, own_stream(handle));
}

CUDA_API CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *address, size_t bytes,
                                               CUmemoryPool pool, CUstream handle) {
    return cuMemAllocFromPoolAsync(address, bytes, pool, own_stream(handle));
}

CUDA_API CUresult cuMemFreeAsync_ptsz(CUdeviceptr address, CUstream handle) {
    return cuMemFreeAsync(address, own_stream(handle));
}

CUDA_API CUresult cuStreamSynchronize_ptsz(CUstream handle) {
    return cuStreamSynchronize(own_stream(handle));
}

CUDA_API CUresult cuStreamQuery_ptsz(CUstream handle) {
    return cuStreamQuery(own_stream(handle));
}

CUDA_API CUresult cuStreamGetPriority_ptsz(CUstream handle, int *priority) {
    return cuStreamGetPriority(own_stream(handle), priority);
}

CUDA_API CUresult cuStreamGetFlags_ptsz(CUstream handle, unsigned *flags) {
    return cuStreamGetFlags(own_stream(handle), flags);
}

CUDA_API CUresult cuStreamGetId_ptsz(CUstream handle, unsigned long long *id) {
    return cuStreamGetId(own_stream(handle), id);
}

CUDA_API CUresult cuStreamGetCtx_ptsz(CUstream handle, CUcontext *context) {
    return cuStreamGetCtx(own_stream(handle), context);
}

CUDA_API CUresult cuStreamGetCtx_v2_ptsz(CUstream handle, CUcontext *context,
                                         void **green_context) {
    return cuStreamGetCtx_v2(own_stream(handle), context, green_context);
}

CUDA_API CUresult cuStreamGetDevice_ptsz(CUstream handle, CUdevice *device) {
    return cuStreamGetDevice(own_stream(handle), device);
}

CUDA_API CUresult cuStreamWaitEvent_ptsz(CUstream handle, CUevent event, unsigned flags) {
    return cuStreamWaitEvent(own_stream(handle), event, flags);
}

CUDA_API CUresult cuLaunchHostFunc_ptsz(CUstream handle, CUhostFn function, void *user_data) {
    return cuLaunchHostFunc(own_stream(handle), function, user_data);
}

CUDA_API CUresult cuStreamAddCallback_ptsz(CUstream handle, CUstreamCallback callback,
                                           void *user_data, unsigned flags) {
    return cuStreamAddCallback(own_stream(handle), callback, user_data, flags);
}

CUDA_API CUresult cuStreamWaitValue32_v2_ptsz(CUstream handle, CUdeviceptr address, uint32_t value,
                                              unsigned flags) {
    return cuStreamWaitValue32_v2(own_stream(handle), address, value, flags);
}

CUDA_API CUresult cuStreamWaitValue64_v2_ptsz(CUstream handle, CUdeviceptr address, uint64_t value,
                                              unsigned flags) {
    return cuStreamWaitValue64_v2(own_stream(handle), address, value, flags);
}

CUDA_API CUresult cuStreamWriteValue32_v2_ptsz(CUstream handle, CUdeviceptr address, uint32_t value,
                                               unsigned flags) {
    return cuStreamWriteValue32_v2(own_stream(handle), address, value, flags);
}

CUDA_API CUresult cuStreamWriteValue64_v2_ptsz(CUstream handle, CUdeviceptr address, uint64_t value,
                                               unsigned flags) {
    return cuStreamWriteValue64_v2(own_stream(handle), address, value, flags);
}

CUDA_API CUresult cuStreamBatchMemOp_v2_ptsz(CUstream handle, unsigned count,
                                             CUstreamBatchMemOpParams *operations, unsigned flags) {
    return cuStreamBatchMemOp_v2(own_stream(handle), count, operations, flags);
}

CUDA_API CUresult cuStreamAttachMemAsync_ptsz(CUstream handle, CUdeviceptr address, size_t length,
                                              unsigned flags) {
    return cuStreamAttachMemAsync(own_stream(handle), address, length, flags);
}

CUDA_API CUresult cuLaunchKernelEx_ptsz(const CUlaunchConfig *config, CUfunction kernel,
                                        void **params, void **extra) {
    if (!config)
        return CUDA_ERROR_INVALID_VALUE;
    CUlaunchConfig own = *config;
    own.hStream = own_stream(own.hStream);
    return cuLaunchKernelEx(&own, kernel, params, extra);
}
