/* Arrays: pitched memory with a format. Nothing samples them here; they hold bytes and are copied.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda_graph.h"

static unsigned bytes_of_format(int format) {
    switch (format) {
    case 1: /* unsigned 8 */
    case 8: /* signed 8 */
        return 1;
    case 2:
    case 9:
    case 16: /* half */
        return 2;
    case 3:
    case 10:
    case 32: /* float */
        return 4;
    default:
        return 0;
    }
}

static CUresult lay_out(struct array *array, size_t *bytes) {
    const CUDA_ARRAY3D_DESCRIPTOR *d = &array->descriptor;
    unsigned element = bytes_of_format(d->Format) * d->NumChannels;
    if (!element || !d->Width ||
        (d->NumChannels != 1 && d->NumChannels != 2 && d->NumChannels != 4))
        return CUDA_ERROR_INVALID_VALUE;
    size_t rows = d->Height ? d->Height : 1;
    size_t slices = d->Depth ? d->Depth : 1;
    array->pitch = (d->Width * element + 511) / 512 * 512;
    array->slice = array->pitch * rows;
    *bytes = array->slice * slices;
    return CUDA_SUCCESS;
}

CUresult array_place(CUarray array, char **start, size_t *pitch, size_t *slice) {
    if (!object_is(OBJECT_ARRAY, array))
        return CUDA_ERROR_INVALID_HANDLE;
    *start = (char *)array->start;
    *pitch = array->pitch;
    *slice = array->slice;
    return CUDA_SUCCESS;
}

static CUresult enter_allocation(struct context **context) {
    CUresult result = enter_context(context);
    return result ? result : capture_forbids();
}

CUDA_API CUresult cuArray3DCreate_v2(CUarray *created, const CUDA_ARRAY3D_DESCRIPTOR *descriptor) {
    struct context *context;
    size_t bytes;
    CUresult result = enter_allocation(&context);
    if (result)
        return result;
    if (!created || !descriptor)
        return CUDA_ERROR_INVALID_VALUE;
    struct array *array = object_new(OBJECT_ARRAY);
    if (!array)
        return CUDA_ERROR_OUT_OF_MEMORY;
    array->descriptor = *descriptor;
    result = lay_out(array, &bytes);
    result = result ? result : device_alloc(context, bytes, BLOCK_DEVICE, &array->block);
    if (result) {
        object_free(OBJECT_ARRAY, array);
        return result;
    }
    array->start = array->block.start;
    *created = array;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuArrayCreate_v2(CUarray *created, const CUDA_ARRAY_DESCRIPTOR *descriptor) {
    if (!descriptor)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_ARRAY3D_DESCRIPTOR wide = {.Width = descriptor->Width,
                                    .Height = descriptor->Height,
                                    .Format = descriptor->Format,
                                    .NumChannels = descriptor->NumChannels};
    return cuArray3DCreate_v2(created, &wide);
}

CUDA_API CUresult cuArrayDestroy(CUarray array) {
    struct context *context;
    struct block block;
    CUresult result = enter_allocation(&context);
    if (result)
        return result;
    if (!object_is(OBJECT_ARRAY, array) || array->is_level)
        return CUDA_ERROR_INVALID_HANDLE;
    result = wait_context(context);
    if (block_remove(array->start, &block))
        device_free(&block);
    object_free(OBJECT_ARRAY, array);
    return result;
}

CUDA_API CUresult cuArray3DGetDescriptor_v2(CUDA_ARRAY3D_DESCRIPTOR *descriptor, CUarray array) {
    CUresult result = enter();
    if (result)
        return result;
    if (!object_is(OBJECT_ARRAY, array))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!descriptor)
        return CUDA_ERROR_INVALID_VALUE;
    *descriptor = array->descriptor;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuArrayGetDescriptor_v2(CUDA_ARRAY_DESCRIPTOR *descriptor, CUarray array) {
    CUDA_ARRAY3D_DESCRIPTOR wide;
    CUresult result = cuArray3DGetDescriptor_v2(&wide, array);
    if (result)
        return result;
    if (!descriptor)
        return CUDA_ERROR_INVALID_VALUE;
    *descriptor = (CUDA_ARRAY_DESCRIPTOR){.Width = wide.Width,
                                          .Height = wide.Height,
                                          .Format = wide.Format,
                                          .NumChannels = wide.NumChannels};
    return CUDA_SUCCESS;
}

/* --- mipmaps --- */

static size_t halved(size_t size) {
    return size > 1 ? size / 2 : size;
}

/* Makes the levels, and gives the bytes that they need together. */
static CUresult make_levels(struct mipmap *mipmap, CUDA_ARRAY3D_DESCRIPTOR descriptor,
                            unsigned levels, size_t *total) {
    *total = 0;
    for (unsigned i = 0; i < levels; i++) {
        size_t bytes;
        struct array *array = object_new(OBJECT_ARRAY);
        if (!array)
            return CUDA_ERROR_OUT_OF_MEMORY;
        mipmap->levels[mipmap->level_count++] = array;
        array->is_level = true;
        array->descriptor = descriptor;
        CUresult result = lay_out(array, &bytes);
        if (result)
            return result;
        array->start = *total; /* to be moved to where the memory is */
        *total += bytes;
        descriptor.Width = halved(descriptor.Width);
        descriptor.Height = halved(descriptor.Height);
        if (!(descriptor.Flags & CUDA_ARRAY3D_LAYERED))
            descriptor.Depth = halved(descriptor.Depth);
    }
    return CUDA_SUCCESS;
}

static void free_mipmap(struct mipmap *mipmap) {
    for (unsigned i = 0; i < mipmap->level_count; i++)
        object_free(OBJECT_ARRAY, mipmap->levels[i]);
    object_free(OBJECT_MIPMAP, mipmap);
}

CUDA_API CUresult cuMipmappedArrayCreate(CUmipmappedArray *created,
                                         const CUDA_ARRAY3D_DESCRIPTOR *descriptor,
                                         unsigned levels) {
    struct context *context;
    size_t bytes;
    CUresult result = enter_allocation(&context);
    if (result)
        return result;
    if (!created || !descriptor || !levels || levels > MIPMAP_LEVELS)
        return CUDA_ERROR_INVALID_VALUE;
    struct mipmap *mipmap = object_new(OBJECT_MIPMAP);
    if (!mipmap)
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = make_levels(mipmap, *descriptor, levels, &bytes);
    result = result ? result : device_alloc(context, bytes, BLOCK_DEVICE, &mipmap->block);
    if (result) {
        free_mipmap(mipmap);
        return result;
    }
    for (unsigned i = 0; i < levels; i++)
        mipmap->levels[i]->start += mipmap->block.start;
    *created = mipmap;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuMipmappedArrayGetLevel(CUarray *array, CUmipmappedArray mipmap,
                                           unsigned level) {
    CUresult result = enter();
    if (result)
        return result;
    if (!object_is(OBJECT_MIPMAP, mipmap))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!array || level >= mipmap->level_count)
        return CUDA_ERROR_INVALID_VALUE;
    *array = mipmap->levels[level];
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuMipmappedArrayDestroy(CUmipmappedArray mipmap) {
    struct context *context;
    struct block block;
    CUresult result = enter_allocation(&context);
    if (result)
        return result;
    if (!object_is(OBJECT_MIPMAP, mipmap))
        return CUDA_ERROR_INVALID_HANDLE;
    result = wait_context(context);
    if (block_remove(mipmap->block.start, &block))
        device_free(&block);
    free_mipmap(mipmap);
    return result;
}
