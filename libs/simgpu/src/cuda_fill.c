/* Memsets. */
#include "cuda_graph.h"

CUresult fill_check(const struct fill *fill) {
    if (!fill->width || !fill->height)
        return CUDA_SUCCESS;
    size_t span = fill->pitch * (fill->height - 1) + fill->width;
    if (fill->address % fill->value_bytes || !is_device_range(fill->address, span) ||
        (fill->height > 1 && fill->pitch < fill->width))
        return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

CUresult fill_submit(struct stream *stream, const struct fill *fill) {
    if (!fill->width || !fill->height)
        return CUDA_SUCCESS;
    struct effect *effect = effect_new(EFFECT_FILL);
    if (!effect)
        return CUDA_ERROR_OUT_OF_MEMORY;
    effect->region = (struct region){.to = (char *)(uintptr_t)fill->address,
                                     .to_pitch = fill->pitch,
                                     .width = fill->width,
                                     .height = fill->height,
                                     .depth = 1};
    effect->value = fill->value;
    effect->value_bytes = fill->value_bytes;
    struct simgpu_work work = simgpu_transfer(stream->context->gpu->shared.device, SIMGPU_MEMSET,
                                              fill->width * fill->height);
    return submit(stream, work, effect, NULL, NULL);
}

static CUresult fill_in(CUstream handle, CUdeviceptr address, size_t pitch, unsigned value,
                        unsigned value_bytes, size_t width, size_t height) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    struct fill fill = {.address = address,
                        .pitch = pitch,
                        .width = width * value_bytes,
                        .height = height,
                        .value = value,
                        .value_bytes = value_bytes};
    result = fill_check(&fill);
    if (result)
        return result;
    bool captured;
    result = capture_of(stream, &captured);
    if (result)
        return result;
    if (!captured)
        return fill_submit(stream, &fill);
    struct node node = {.type = CU_GRAPH_NODE_TYPE_MEMSET, .fill = fill};
    return capture_node(stream, &node);
}

/* Memsets of device memory do not wait for their end, not even those without "Async". */
CUDA_API CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
    return fill_in(CU_STREAM_LEGACY, to, 0, value, 1, count, 1);
}

CUDA_API CUresult cuMemsetD8_v2_ptds(CUdeviceptr to, unsigned char value, size_t count) {
    return fill_in(CU_STREAM_PER_THREAD, to, 0, value, 1, count, 1);
}

CUDA_API CUresult cuMemsetD16_v2(CUdeviceptr to, unsigned short value, size_t count) {
    return fill_in(CU_STREAM_LEGACY, to, 0, value, 2, count, 1);
}

CUDA_API CUresult cuMemsetD16_v2_ptds(CUdeviceptr to, unsigned short value, size_t count) {
    return fill_in(CU_STREAM_PER_THREAD, to, 0, value, 2, count, 1);
}

CUDA_API CUresult cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count) {
    return fill_in(CU_STREAM_LEGACY, to, 0, value, 4, count, 1);
}

CUDA_API CUresult cuMemsetD32_v2_ptds(CUdeviceptr to, unsigned value, size_t count) {
    return fill_in(CU_STREAM_PER_THREAD, to, 0, value, 4, count, 1);
}

CUDA_API CUresult cuMemsetD2D8_v2(CUdeviceptr to, size_t pitch, unsigned char value, size_t width,
                                  size_t height) {
    return fill_in(CU_STREAM_LEGACY, to, pitch, value, 1, width, height);
}

CUDA_API CUresult cuMemsetD2D16_v2(CUdeviceptr to, size_t pitch, unsigned short value, size_t width,
                                   size_t height) {
    return fill_in(CU_STREAM_LEGACY, to, pitch, value, 2, width, height);
}

CUDA_API CUresult cuMemsetD2D32_v2(CUdeviceptr to, size_t pitch, unsigned value, size_t width,
                                   size_t height) {
    return fill_in(CU_STREAM_LEGACY, to, pitch, value, 4, width, height);
}

CUDA_API CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count,
                                  CUstream stream) {
    return fill_in(stream, to, 0, value, 1, count, 1);
}

CUDA_API CUresult cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t count,
                                   CUstream stream) {
    return fill_in(stream, to, 0, value, 2, count, 1);
}

CUDA_API CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
    return fill_in(stream, to, 0, value, 4, count, 1);
}

CUDA_API CUresult cuMemsetD2D8Async(CUdeviceptr to, size_t pitch, unsigned char value, size_t width,
                                    size_t height, CUstream stream) {
    return fill_in(stream, to, pitch, value, 1, width, height);
}

CUDA_API CUresult cuMemsetD2D16Async(CUdeviceptr to, size_t pitch, unsigned short value,
                                     size_t width, size_t height, CUstream stream) {
    return fill_in(stream, to, pitch, value, 2, width, height);
}

CUDA_API CUresult cuMemsetD2D32Async(CUdeviceptr to, size_t pitch, unsigned value, size_t width,
                                     size_t height, CUstream stream) {
    return fill_in(stream, to, pitch, value, 4, width, height);
}
