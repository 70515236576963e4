/* Streams. */
#include "cuda_graph.h"

enum { PRIORITY_GREATEST = -5, PRIORITY_LEAST = 0 };

CUresult stream_new(struct context *context, unsigned flags, int priority,
                    struct stream **created) {
    struct gpu *gpu = context->gpu;
    struct stream *stream = object_new(OBJECT_STREAM);
    if (!stream)
        return CUDA_ERROR_OUT_OF_MEMORY;
    priority = priority < PRIORITY_GREATEST ? PRIORITY_GREATEST : priority;
    priority = priority > PRIORITY_LEAST ? PRIORITY_LEAST : priority;
    CUresult result = gpu_lock(gpu);
    int slot = -1;
    if (result == CUDA_SUCCESS) {
        slot = simgpu_stream_create(gpu->shared.device, context->slot,
                                    flags & CU_STREAM_NON_BLOCKING ? SIMGPU_STREAM_NON_BLOCKING : 0,
                                    priority);
        gpu_unlock(gpu);
        result = slot < 0 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
    }
    if (result) {
        object_free(OBJECT_STREAM, stream);
        return result;
    }
    static _Atomic uint64_t last_id = 2; /* 1 and 2 are the default streams */
    *stream = (struct stream){.context = context,
                              .slot = (uint32_t)slot,
                              .flags = flags,
                              .priority = priority,
                              .id = ++last_id};
    pthread_mutex_lock(&driver.mutex);
    stream->next = context->first_stream;
    if (stream->next)
        stream->next->previous = stream;
    context->first_stream = stream;
    pthread_mutex_unlock(&driver.mutex);
    *created = stream;
    return CUDA_SUCCESS;
}

void stream_forget(struct stream *stream) {
    struct context *context = stream->context;
    struct gpu *gpu = context->gpu;
    capture_forget_stream(stream);
    pthread_mutex_lock(&driver.mutex);
    if (stream->next)
        stream->next->previous = stream->previous;
    *(stream->previous ? &stream->previous->next : &context->first_stream) = stream->next;
    pthread_mutex_unlock(&driver.mutex);
    if (gpu_lock(gpu) == CUDA_SUCCESS) {
        simgpu_stream_destroy(gpu->shared.device, stream->slot);
        gpu_unlock(gpu);
    }
    object_free(OBJECT_STREAM, stream);
}

/* The default stream of this thread in its current context. */
static CUresult find_own(struct context *context, struct stream **found) {
    struct thread *thread = this_thread();
    struct stream **link = &thread->own_streams;
    while (*link) {
        struct stream *stream = *link;
        if (!object_is(OBJECT_STREAM, stream) || !stream->is_own) {
            *link = NULL; /* went with their context; others are made anew */
            break;
        }
        if (stream->context == context) {
            *found = stream;
            return CUDA_SUCCESS;
        }
        link = &stream->next_own;
    }
    CUresult result = stream_new(context, 0, 0, found);
    if (result)
        return result;
    (*found)->is_own = true;
    (*found)->next_own = thread->own_streams;
    thread->own_streams = *found;
    this_thread_ends();
    return CUDA_SUCCESS;
}

CUresult stream_of(CUstream handle, struct stream **stream) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!handle || handle == CU_STREAM_LEGACY) {
        *stream = context->legacy;
        return CUDA_SUCCESS;
    }
    if (handle == CU_STREAM_PER_THREAD)
        return find_own(context, stream);
    if (!object_is(OBJECT_STREAM, handle))
        return CUDA_ERROR_INVALID_HANDLE;
    *stream = handle;
    return context_error(handle->context);
}

CUstream own_stream(CUstream handle) {
    return handle ? handle : CU_STREAM_PER_THREAD;
}

/* --- calls --- */

CUDA_API CUresult cuStreamCreateWithPriority(CUstream *created, unsigned flags, int priority) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!created || flags & ~(unsigned)CU_STREAM_NON_BLOCKING)
        return CUDA_ERROR_INVALID_VALUE;
    return stream_new(context, flags, priority, created);
}

CUDA_API CUresult cuStreamCreate(CUstream *created, unsigned flags) {
    return cuStreamCreateWithPriority(created, flags, 0);
}

CUDA_API CUresult cuStreamDestroy_v2(CUstream stream) {
    CUresult result = enter();
    if (result)
        return result;
    if (!object_is(OBJECT_STREAM, stream) || stream->is_legacy || stream->is_own)
        return CUDA_ERROR_INVALID_HANDLE;
    stream_forget(stream);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuStreamDestroy(CUstream stream) {
    return cuStreamDestroy_v2(stream);
}

CUDA_API CUresult cuStreamSynchronize(CUstream handle) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    result = result ? result : capture_forbids_stream(stream);
    if (result)
        return result;
    struct simgpu_device *device = stream->context->gpu->shared.device;
    return wait_stream(stream->context->gpu, stream->slot, device->streams[stream->slot].enqueued);
}

CUDA_API CUresult cuStreamQuery(CUstream handle) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    result = result ? result : capture_forbids_stream(stream);
    if (result)
        return result;
    struct simgpu_device *device = stream->context->gpu->shared.device;
    return query_stream(stream->context->gpu, stream->slot, device->streams[stream->slot].enqueued);
}

CUDA_API CUresult cuStreamGetPriority(CUstream handle, int *priority) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    if (!priority)
        return CUDA_ERROR_INVALID_VALUE;
    *priority = stream->priority;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuStreamGetFlags(CUstream handle, unsigned *flags) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    if (!flags)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = stream->flags;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuStreamGetId(CUstream handle, unsigned long long *id) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    if (!id)
        return CUDA_ERROR_INVALID_VALUE;
    *id = stream->id;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuStreamGetCtx(CUstream handle, CUcontext *context) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    if (!context)
        return CUDA_ERROR_INVALID_VALUE;
    *context = stream->context;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuStreamGetCtx_v2(CUstream handle, CUcontext *context, void **green_context) {
    if (green_context)
        *green_context = NULL;
    return cuStreamGetCtx(handle, context);
}

CUDA_API CUresult cuStreamGetDevice(CUstream handle, CUdevice *device) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    *device = stream->context->gpu->ordinal;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuStreamWaitEvent(CUstream handle, CUevent event, unsigned flags) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    if (!object_is(OBJECT_EVENT, event))
        return CUDA_ERROR_INVALID_HANDLE;
    if (flags > 1)
        return CUDA_ERROR_INVALID_VALUE;
    bool captured;
    result = capture_of(stream, &captured);
    if (result)
        return result;
    if (captured || capture_has(event))
        return capture_wait(stream, event);
    return event_wait(stream, event);
}

/* Host functions and callbacks; a captured one becomes a node. */
static CUresult submit_call(CUstream handle, const struct call *call) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    bool captured;
    result = capture_of(stream, &captured);
    if (result)
        return result;
    if (captured && call->kind == CALL_CALLBACK)
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (captured) {
        struct node node = {.type = CU_GRAPH_NODE_TYPE_HOST,
                            .host = {.fn = call->function, .userData = call->user_data}};
        return capture_node(stream, &node);
    }
    return submit(stream, endless_work(SIMGPU_HOST_FUNCTION), NULL, call, NULL);
}

CUDA_API CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void *user_data) {
    if (!function)
        return CUDA_ERROR_INVALID_VALUE;
    return submit_call(
        handle,
        &(struct call){.kind = CALL_FUNCTION, .function = function, .user_data = user_data});
}

CUDA_API CUresult cuStreamAddCallback(CUstream handle, CUstreamCallback callback, void *user_data,
                                      unsigned flags) {
    if (!callback || flags)
        return CUDA_ERROR_INVALID_VALUE;
    return submit_call(handle, &(struct call){.kind = CALL_CALLBACK,
                                              .callback = callback,
                                              .stream = handle,
                                              .user_data = user_data});
}

/* --- words in memory --- */

static CUresult submit_word(CUstream handle, const struct effect *write, const struct call *wait) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    bool captured;
    result = capture_of(stream, &captured);
    if (result)
        return result;
    if (captured) {
        struct node node = {.type = CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, .waits = wait != NULL};
        if (wait)
            node.wait = *wait;
        else
            node.write = *write;
        return capture_node(stream, &node);
    }
    return word_submit(stream, write, wait);
}

CUresult word_submit(struct stream *stream, const struct effect *write, const struct call *wait) {
    if (wait)
        return submit(stream, endless_work(SIMGPU_HOST_FUNCTION), NULL, wait, NULL);
    struct effect *effect = effect_new(EFFECT_STORE);
    if (!effect)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *effect = *write;
    return submit(stream, mark_work(), effect, NULL, NULL);
}

static CUresult wait_value(CUstream handle, CUdeviceptr address, uint64_t value, unsigned bytes,
                           unsigned flags) {
    unsigned condition = flags & ~(1U << 30); /* the flush flag has nothing to flush */
    if (!address || address % bytes || condition > 3)
        return CUDA_ERROR_INVALID_VALUE;
    return submit_word(handle, NULL,
                       &(struct call){.kind = CALL_WAIT,
                                      .address = address,
                                      .value = value,
                                      .value_bytes = bytes,
                                      .condition = condition});
}

static CUresult write_value(CUstream handle, CUdeviceptr address, uint64_t value, unsigned bytes,
                            unsigned flags) {
    if (!address || address % bytes || flags > 1)
        return CUDA_ERROR_INVALID_VALUE;
    return submit_word(
        handle,
        &(struct effect){
            .kind = EFFECT_STORE, .address = address, .value = value, .value_bytes = bytes},
        NULL);
}

CUDA_API CUresult cuStreamWaitValue32_v2(CUstream handle, CUdeviceptr address, uint32_t value,
                                         unsigned flags) {
    return wait_value(handle, address, value, 4, flags);
}

CUDA_API CUresult cuStreamWaitValue64_v2(CUstream handle, CUdeviceptr address, uint64_t value,
                                         unsigned flags) {
    return wait_value(handle, address, value, 8, flags);
}

CUDA_API CUresult cuStreamWriteValue32_v2(CUstream handle, CUdeviceptr address, uint32_t value,
                                          unsigned flags) {
    return write_value(handle, address, value, 4, flags);
}

CUDA_API CUresult cuStreamWriteValue64_v2(CUstream handle, CUdeviceptr address, uint64_t value,
                                          unsigned flags) {
    return write_value(handle, address, value, 8, flags);
}

CUDA_API CUresult cuStreamBatchMemOp_v2(CUstream handle, unsigned count,
                                        CUstreamBatchMemOpParams *operations, unsigned flags) {
    if (!operations || count > 256 || flags)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_SUCCESS;
    for (unsigned i = 0; i < count && result == CUDA_SUCCESS; i++) {
        const CUstreamBatchMemOpParams *o = &operations[i];
        switch (o->operation) {
        case CU_STREAM_MEM_OP_WAIT_VALUE_32:
            result = wait_value(handle, o->word.address, (uint32_t)o->word.value, 4, o->word.flags);
            break;
        case CU_STREAM_MEM_OP_WAIT_VALUE_64:
            result = wait_value(handle, o->word.address, o->word.value, 8, o->word.flags);
            break;
        case CU_STREAM_MEM_OP_WRITE_VALUE_32:
            result =
                write_value(handle, o->word.address, (uint32_t)o->word.value, 4, o->word.flags);
            break;
        case CU_STREAM_MEM_OP_WRITE_VALUE_64:
            result = write_value(handle, o->word.address, o->word.value, 8, o->word.flags);
            break;
        default:
            result = CUDA_ERROR_NOT_SUPPORTED;
        }
    }
    return result;
}

CUDA_API CUresult cuStreamAttachMemAsync(CUstream handle, CUdeviceptr address, size_t length,
                                         unsigned flags) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    struct block block;
    if (!block_find((uintptr_t)address, &block) || block.kind != BLOCK_MANAGED || flags == 0 ||
        flags > 4 || length > block.bytes)
        return CUDA_ERROR_INVALID_VALUE;
    bool captured;
    result = capture_of(stream, &captured);
    if (result || captured)
        return result ? result : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return submit(stream, mark_work(), NULL, NULL, NULL);
}
