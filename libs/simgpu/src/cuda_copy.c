/* Copies. Their bytes move when the model has ended them (see cuda_effect.c). */
#include <stdlib.h>
#include <string.h>

#include "cuda_graph.h"

enum { STAGED_BYTES = 64 * 1024 }; /* of pageable memory, copied before the call returns */

/* --- what a copy is --- */

struct end_of_copy {
    bool on_device;
    bool pageable;
};

static struct end_of_copy end_of(uintptr_t address) {
    struct block block;
    if (!block_find(address, &block))
        return (struct end_of_copy){.pageable = true};
    return (struct end_of_copy){.on_device = block_is_on_device(&block)};
}

static void classify(struct copy *copy, struct end_of_copy from, struct end_of_copy to) {
    copy->from_pageable = from.pageable;
    copy->to_pageable = to.pageable;
    if (from.on_device)
        copy->kind = to.on_device ? SIMGPU_COPY_D2D : SIMGPU_COPY_D2H;
    else /* host to host goes through the device too */
        copy->kind = to.on_device ? SIMGPU_COPY_H2D : SIMGPU_COPY_D2H;
}

/* One end of a CUDA_MEMCPY3D: where its first byte is. */
struct place {
    char *start;
    size_t pitch, slice;
    struct end_of_copy end;
};

static CUresult place_of(CUmemorytype type, const void *host, CUdeviceptr device, CUarray array,
                         size_t x, size_t y, size_t z, size_t pitch, size_t height,
                         struct place *place) {
    if (type == CU_MEMORYTYPE_ARRAY) {
        CUresult result = array_place(array, &place->start, &place->pitch, &place->slice);
        if (result)
            return result;
        place->end = (struct end_of_copy){.on_device = true};
    } else {
        if (type != CU_MEMORYTYPE_HOST && type != CU_MEMORYTYPE_DEVICE &&
            type != CU_MEMORYTYPE_UNIFIED)
            return CUDA_ERROR_INVALID_VALUE;
        place->start = type == CU_MEMORYTYPE_HOST ? (char *)host : (char *)(uintptr_t)device;
        if (!place->start)
            return CUDA_ERROR_INVALID_VALUE;
        place->pitch = pitch;
        place->slice = pitch * height;
        place->end = end_of((uintptr_t)place->start);
        if (type == CU_MEMORYTYPE_DEVICE && place->end.pageable)
            return CUDA_ERROR_INVALID_VALUE;
    }
    place->start += x + y * place->pitch + z * place->slice;
    return CUDA_SUCCESS;
}

CUresult copy_of(const CUDA_MEMCPY3D *p, struct copy *copy) {
    struct place from;
    struct place to;
    if (!p)
        return CUDA_ERROR_INVALID_VALUE;
    size_t rows = p->Height ? p->Height : 1;
    size_t slices = p->Depth ? p->Depth : 1;
    size_t from_pitch = p->srcPitch ? p->srcPitch : p->srcXInBytes + p->WidthInBytes;
    size_t to_pitch = p->dstPitch ? p->dstPitch : p->dstXInBytes + p->WidthInBytes;
    CUresult result =
        place_of(p->srcMemoryType, p->srcHost, p->srcDevice, p->srcArray, p->srcXInBytes, p->srcY,
                 p->srcZ, from_pitch, p->srcHeight ? p->srcHeight : rows, &from);
    if (result)
        return result;
    result = place_of(p->dstMemoryType, p->dstHost, p->dstDevice, p->dstArray, p->dstXInBytes,
                      p->dstY, p->dstZ, to_pitch, p->dstHeight ? p->dstHeight : rows, &to);
    if (result)
        return result;
    if (rows > 1 && (p->WidthInBytes > from.pitch || p->WidthInBytes > to.pitch))
        return CUDA_ERROR_INVALID_VALUE;
    classify(copy, from.end, to.end);
    copy->region = (struct region){.from = from.start,
                                   .to = to.start,
                                   .from_pitch = from.pitch,
                                   .from_slice = from.slice,
                                   .to_pitch = to.pitch,
                                   .to_slice = to.slice,
                                   .width = p->WidthInBytes,
                                   .height = rows,
                                   .depth = slices};
    return CUDA_SUCCESS;
}

static CUresult linear(CUdeviceptr to, CUdeviceptr from, size_t bytes, struct copy *copy) {
    if ((!to || !from) && bytes)
        return CUDA_ERROR_INVALID_VALUE;
    classify(copy, end_of((uintptr_t)from), end_of((uintptr_t)to));
    copy->region = (struct region){.from = (const char *)(uintptr_t)from,
                                   .to = (char *)(uintptr_t)to,
                                   .width = bytes,
                                   .height = 1,
                                   .depth = 1};
    return CUDA_SUCCESS;
}

bool is_device_range(CUdeviceptr address, size_t bytes) {
    struct block block;
    for (CUdeviceptr end = address + bytes; address < end; address = block.start + block.bytes)
        if (!block_find((uintptr_t)address, &block) || block.kind == BLOCK_RESERVED)
            return false;
    return true;
}

/* --- submitting --- */

/* Small pageable sources are taken before the call returns, so that the program may reuse them. */
static bool stage(struct effect *effect) {
    const struct region *r = &effect->region;
    effect->owned = malloc(r->width * r->height * r->depth);
    if (!effect->owned)
        return false;
    struct effect taken = {.kind = EFFECT_COPY, .region = *r};
    taken.region.to = effect->owned;
    taken.region.to_pitch = r->width;
    taken.region.to_slice = r->width * r->height;
    effect_run(&taken);
    effect->region.from = effect->owned;
    effect->region.from_pitch = taken.region.to_pitch;
    effect->region.from_slice = taken.region.to_slice;
    return true;
}

CUresult copy_submit(struct stream *stream, const struct copy *copy, bool synchronous) {
    size_t bytes = copy->region.width * copy->region.height * copy->region.depth;
    struct gpu *gpu = stream->context->gpu;
    uint64_t sequence;
    if (!bytes)
        return CUDA_SUCCESS;
    struct effect *effect = effect_new(EFFECT_COPY);
    if (!effect)
        return CUDA_ERROR_OUT_OF_MEMORY;
    effect->region = copy->region;
    bool waits = synchronous || copy->to_pageable;
    if (copy->from_pageable && !waits)
        waits = bytes > STAGED_BYTES || !stage(effect);
    struct simgpu_work work = simgpu_transfer(gpu->shared.device, copy->kind, bytes);
    CUresult result = submit(stream, work, effect, NULL, &sequence);
    if (result || !waits)
        return result;
    return wait_stream(gpu, stream->slot, sequence);
}

/* A copy in a stream, or a node of its capture. */
static CUresult copy_in(CUstream handle, const struct copy *copy, const CUDA_MEMCPY3D *params) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    bool captured;
    result = capture_of(stream, &captured);
    if (result)
        return result;
    if (!captured)
        return copy_submit(stream, copy, false);
    struct node node = {.type = CU_GRAPH_NODE_TYPE_MEMCPY, .copy = *copy};
    if (params)
        node.copy_params = *params;
    return capture_node(stream, &node);
}

static CUresult copy_now(CUstream handle, const struct copy *copy) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    result = result ? result : capture_forbids();
    result = result ? result : capture_forbids_stream(stream);
    return result ? result : copy_submit(stream, copy, true);
}

/* --- calls: linear --- */

enum direction { ANY, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE };

static CUresult checked(CUdeviceptr to, CUdeviceptr from, size_t bytes, enum direction direction,
                        struct copy *copy) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (bytes && (direction == HOST_TO_DEVICE || direction == DEVICE_TO_DEVICE) &&
        !is_device_range(to, bytes))
        return CUDA_ERROR_INVALID_VALUE;
    if (bytes && (direction == DEVICE_TO_HOST || direction == DEVICE_TO_DEVICE) &&
        !is_device_range(from, bytes))
        return CUDA_ERROR_INVALID_VALUE;
    return linear(to, from, bytes, copy);
}

static CUresult linear_now(CUstream handle, CUdeviceptr to, CUdeviceptr from, size_t bytes,
                           enum direction direction) {
    struct copy copy;
    CUresult result = checked(to, from, bytes, direction, &copy);
    return result ? result : copy_now(handle, &copy);
}

static CUresult linear_in(CUstream handle, CUdeviceptr to, CUdeviceptr from, size_t bytes,
                          enum direction direction) {
    struct copy copy;
    CUresult result = checked(to, from, bytes, direction, &copy);
    return result ? result : copy_in(handle, &copy, NULL);
}

static CUdeviceptr as_device(const void *host) {
    return (CUdeviceptr)(uintptr_t)host;
}

CUDA_API CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return linear_now(CU_STREAM_LEGACY, to, from, bytes, ANY);
}

CUDA_API CUresult cuMemcpy_ptds(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return linear_now(CU_STREAM_PER_THREAD, to, from, bytes, ANY);
}

CUDA_API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
    return linear_now(CU_STREAM_LEGACY, to, as_device(from), bytes, HOST_TO_DEVICE);
}

CUDA_API CUresult cuMemcpyHtoD_v2_ptds(CUdeviceptr to, const void *from, size_t bytes) {
    return linear_now(CU_STREAM_PER_THREAD, to, as_device(from), bytes, HOST_TO_DEVICE);
}

CUDA_API CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    return linear_now(CU_STREAM_LEGACY, as_device(to), from, bytes, DEVICE_TO_HOST);
}

CUDA_API CUresult cuMemcpyDtoH_v2_ptds(void *to, CUdeviceptr from, size_t bytes) {
    return linear_now(CU_STREAM_PER_THREAD, as_device(to), from, bytes, DEVICE_TO_HOST);
}

/* Within a device even the synchronous call only waits for its turn, not for its end. */
CUDA_API CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return linear_in(CU_STREAM_LEGACY, to, from, bytes, DEVICE_TO_DEVICE);
}

CUDA_API CUresult cuMemcpyDtoD_v2_ptds(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return linear_in(CU_STREAM_PER_THREAD, to, from, bytes, DEVICE_TO_DEVICE);
}

CUDA_API CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return linear_in(stream, to, from, bytes, ANY);
}

CUDA_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes,
                                       CUstream stream) {
    return linear_in(stream, to, as_device(from), bytes, HOST_TO_DEVICE);
}

CUDA_API CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return linear_in(stream, as_device(to), from, bytes, DEVICE_TO_HOST);
}

CUDA_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes,
                                       CUstream stream) {
    return linear_in(stream, to, from, bytes, DEVICE_TO_DEVICE);
}

CUDA_API CUresult cuMemcpyPeer(CUdeviceptr to, CUcontext to_context, CUdeviceptr from,
                               CUcontext from_context, size_t bytes) {
    (void)to_context;
    (void)from_context;
    return linear_now(CU_STREAM_LEGACY, to, from, bytes, DEVICE_TO_DEVICE);
}

CUDA_API CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from,
                                    CUcontext from_context, size_t bytes, CUstream stream) {
    (void)to_context;
    (void)from_context;
    return linear_in(stream, to, from, bytes, DEVICE_TO_DEVICE);
}

/* --- calls: boxes and arrays --- */

static CUDA_MEMCPY3D from_2d(const CUDA_MEMCPY2D *p) {
    return (CUDA_MEMCPY3D){.srcXInBytes = p->srcXInBytes,
                           .srcY = p->srcY,
                           .srcMemoryType = p->srcMemoryType,
                           .srcHost = p->srcHost,
                           .srcDevice = p->srcDevice,
                           .srcArray = p->srcArray,
                           .srcPitch = p->srcPitch,
                           .dstXInBytes = p->dstXInBytes,
                           .dstY = p->dstY,
                           .dstMemoryType = p->dstMemoryType,
                           .dstHost = p->dstHost,
                           .dstDevice = p->dstDevice,
                           .dstArray = p->dstArray,
                           .dstPitch = p->dstPitch,
                           .WidthInBytes = p->WidthInBytes,
                           .Height = p->Height,
                           .Depth = 1};
}

static CUresult box_now(CUstream stream, const CUDA_MEMCPY3D *params) {
    struct context *context;
    struct copy copy;
    CUresult result = enter_context(&context);
    result = result ? result : copy_of(params, &copy);
    return result ? result : copy_now(stream, &copy);
}

static CUresult box_in(CUstream stream, const CUDA_MEMCPY3D *params) {
    struct context *context;
    struct copy copy;
    CUresult result = enter_context(&context);
    result = result ? result : copy_of(params, &copy);
    return result ? result : copy_in(stream, &copy, params);
}

CUDA_API CUresult cuMemcpy2D_v2(const CUDA_MEMCPY2D *params) {
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_MEMCPY3D box = from_2d(params);
    return box_now(CU_STREAM_LEGACY, &box);
}

CUDA_API CUresult cuMemcpy2D_v2_ptds(const CUDA_MEMCPY2D *params) {
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_MEMCPY3D box = from_2d(params);
    return box_now(CU_STREAM_PER_THREAD, &box);
}

CUDA_API CUresult cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D *params) {
    return cuMemcpy2D_v2(params);
}

CUDA_API CUresult cuMemcpy2DUnaligned_v2_ptds(const CUDA_MEMCPY2D *params) {
    return cuMemcpy2D_v2_ptds(params);
}

CUDA_API CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *params, CUstream stream) {
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_MEMCPY3D box = from_2d(params);
    return box_in(stream, &box);
}

CUDA_API CUresult cuMemcpy3D_v2(const CUDA_MEMCPY3D *params) {
    return box_now(CU_STREAM_LEGACY, params);
}

CUDA_API CUresult cuMemcpy3D_v2_ptds(const CUDA_MEMCPY3D *params) {
    return box_now(CU_STREAM_PER_THREAD, params);
}

CUDA_API CUresult cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D *params, CUstream stream) {
    return box_in(stream, params);
}

/* Between devices: the layout is the same, with contexts where the other has nothing. */
CUDA_API CUresult cuMemcpy3DPeer(const CUDA_MEMCPY3D *params) {
    return box_now(CU_STREAM_LEGACY, params);
}

CUDA_API CUresult cuMemcpy3DPeer_ptds(const CUDA_MEMCPY3D *params) {
    return box_now(CU_STREAM_PER_THREAD, params);
}

CUDA_API CUresult cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D *params, CUstream stream) {
    return box_in(stream, params);
}

static CUDA_MEMCPY3D row(size_t bytes) {
    return (CUDA_MEMCPY3D){.WidthInBytes = bytes, .Height = 1, .Depth = 1};
}

static CUDA_MEMCPY3D row_to_array(CUarray array, size_t offset, size_t bytes) {
    CUDA_MEMCPY3D params = row(bytes);
    params.dstMemoryType = CU_MEMORYTYPE_ARRAY;
    params.dstArray = array;
    params.dstXInBytes = offset;
    return params;
}

static CUDA_MEMCPY3D row_from_array(CUarray array, size_t offset, size_t bytes) {
    CUDA_MEMCPY3D params = row(bytes);
    params.srcMemoryType = CU_MEMORYTYPE_ARRAY;
    params.srcArray = array;
    params.srcXInBytes = offset;
    return params;
}

CUDA_API CUresult cuMemcpyHtoA_v2(CUarray array, size_t offset, const void *from, size_t bytes) {
    CUDA_MEMCPY3D params = row_to_array(array, offset, bytes);
    params.srcMemoryType = CU_MEMORYTYPE_HOST;
    params.srcHost = from;
    return box_now(CU_STREAM_LEGACY, &params);
}

CUDA_API CUresult cuMemcpyAtoH_v2(void *to, CUarray array, size_t offset, size_t bytes) {
    CUDA_MEMCPY3D params = row_from_array(array, offset, bytes);
    params.dstMemoryType = CU_MEMORYTYPE_HOST;
    params.dstHost = to;
    return box_now(CU_STREAM_LEGACY, &params);
}

CUDA_API CUresult cuMemcpyDtoA_v2(CUarray array, size_t offset, CUdeviceptr from, size_t bytes) {
    CUDA_MEMCPY3D params = row_to_array(array, offset, bytes);
    params.srcMemoryType = CU_MEMORYTYPE_DEVICE;
    params.srcDevice = from;
    return box_in(CU_STREAM_LEGACY, &params);
}

CUDA_API CUresult cuMemcpyAtoD_v2(CUdeviceptr to, CUarray array, size_t offset, size_t bytes) {
    CUDA_MEMCPY3D params = row_from_array(array, offset, bytes);
    params.dstMemoryType = CU_MEMORYTYPE_DEVICE;
    params.dstDevice = to;
    return box_in(CU_STREAM_LEGACY, &params);
}

CUDA_API CUresult cuMemcpyAtoA_v2(CUarray to, size_t to_offset, CUarray from, size_t from_offset,
                                  size_t bytes) {
    CUDA_MEMCPY3D params = row_from_array(from, from_offset, bytes);
    params.dstMemoryType = CU_MEMORYTYPE_ARRAY;
    params.dstArray = to;
    params.dstXInBytes = to_offset;
    return box_in(CU_STREAM_LEGACY, &params);
}

CUDA_API CUresult cuMemcpyHtoAAsync_v2(CUarray array, size_t offset, const void *from, size_t bytes,
                                       CUstream stream) {
    CUDA_MEMCPY3D params = row_to_array(array, offset, bytes);
    params.srcMemoryType = CU_MEMORYTYPE_HOST;
    params.srcHost = from;
    return box_in(stream, &params);
}

CUDA_API CUresult cuMemcpyAtoHAsync_v2(void *to, CUarray array, size_t offset, size_t bytes,
                                       CUstream stream) {
    CUDA_MEMCPY3D params = row_from_array(array, offset, bytes);
    params.dstMemoryType = CU_MEMORYTYPE_HOST;
    params.dstHost = to;
    return box_in(stream, &params);
}

/* --- managed memory --- */

/* Pages of managed memory are in no place here: a prefetch only takes the time of its link. */
CUDA_API CUresult cuMemPrefetchAsync_v2(CUdeviceptr address, size_t bytes, CUmemLocation location,
                                        unsigned flags, CUstream handle) {
    struct stream *stream;
    struct block block;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    if (flags || !bytes || !block_find((uintptr_t)address, &block) || block.kind != BLOCK_MANAGED ||
        address + bytes > block.start + block.bytes)
        return CUDA_ERROR_INVALID_VALUE;
    bool captured;
    result = capture_of(stream, &captured);
    if (result || captured)
        return result ? result : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    bool to_device = location.type == CU_MEM_LOCATION_TYPE_DEVICE;
    return submit(stream,
                  simgpu_transfer(stream->context->gpu->shared.device,
                                  to_device ? SIMGPU_COPY_H2D : SIMGPU_COPY_D2H, bytes),
                  NULL, NULL, NULL);
}

CUDA_API CUresult cuMemPrefetchAsync(CUdeviceptr address, size_t bytes, CUdevice device,
                                     CUstream handle) {
    CUmemLocation location = {
        .type = device < 0 ? CU_MEM_LOCATION_TYPE_HOST : CU_MEM_LOCATION_TYPE_DEVICE, .id = device};
    return cuMemPrefetchAsync_v2(address, bytes, location, 0, handle);
}

CUDA_API CUresult cuMemAdvise_v2(CUdeviceptr address, size_t bytes, int advice,
                                 CUmemLocation location) {
    struct context *context;
    struct block block;
    (void)location;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (advice < 1 || advice > 6 || !block_find((uintptr_t)address, &block) ||
        block.kind != BLOCK_MANAGED || address + bytes > block.start + block.bytes)
        return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuMemAdvise(CUdeviceptr address, size_t bytes, int advice, CUdevice device) {
    return cuMemAdvise_v2(address, bytes, advice, (CUmemLocation){.id = device});
}
