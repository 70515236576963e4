/* Contexts: creating, destroying, the current one. */
#include "cuda_graph.h"

/* --- creating and destroying --- */

CUresult context_create(struct gpu *gpu, unsigned flags, unsigned sm_count, unsigned api_version,
                        struct context **created) {
    struct simgpu_device *device = gpu->shared.device;
    CUresult result = gpu_lock(gpu);
    if (result)
        return result;
    if (gpu->client == SIMGPU_NONE)
        result = become_client(gpu);
    int slot = -1;
    if (result == CUDA_SUCCESS) {
        slot = simgpu_context_create(device, gpu->client, thread_share(gpu, sm_count),
                                     device->kind.context_bytes);
        if (slot < 0)
            result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    gpu_unlock(gpu);
    if (result)
        return result;
    struct context *context = object_new(OBJECT_CONTEXT);
    struct stream *legacy = context ? object_new(OBJECT_STREAM) : NULL;
    if (!legacy)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *context = (struct context){.gpu = gpu,
                                .slot = (uint32_t)slot,
                                .id = device->contexts[slot].id,
                                .flags = flags,
                                .api_version = api_version,
                                .legacy = legacy,
                                .limits = {[CU_LIMIT_STACK_SIZE] = 1024,
                                           [CU_LIMIT_PRINTF_FIFO_SIZE] = 1 << 20,
                                           [CU_LIMIT_MALLOC_HEAP_SIZE] = 8 << 20,
                                           [CU_LIMIT_DEV_RUNTIME_SYNC_DEPTH] = 2,
                                           [CU_LIMIT_DEV_RUNTIME_PENDING_LAUNCH_COUNT] = 2048,
                                           [CU_LIMIT_MAX_L2_FETCH_GRANULARITY] = 64}};
    *legacy = (struct stream){
        .context = context, .slot = device->contexts[slot].legacy, .id = 1, .is_legacy = true};
    *created = context;
    return CUDA_SUCCESS;
}

CUresult context_destroy(struct context *context) {
    struct gpu *gpu = context->gpu;
    struct simgpu_device *device = gpu->shared.device;
    wait_context(context); /* if it has failed, there is nothing to wait for */
    blocks_forget(context);
    while (context->first_stream) {
        struct stream *stream = context->first_stream;
        context->first_stream = stream->next;
        capture_forget_stream(stream);
        object_free(OBJECT_STREAM, stream);
    }
    capture_forget_stream(context->legacy);
    object_free(OBJECT_STREAM, context->legacy);
    events_forget(context);
    simgpu_lock(&gpu->shared);
    if (driver.state == DRIVER_READY && device->contexts[context->slot].id == context->id)
        simgpu_context_destroy(device, context->slot);
    simgpu_unlock(&gpu->shared);
    object_free(OBJECT_CONTEXT, context);
    return CUDA_SUCCESS;
}

CUresult context_error(const struct context *context) {
    const struct simgpu_device *device = context->gpu->shared.device;
    uint32_t client = context->gpu->client;
    if (device->lost)
        return CUDA_ERROR_DEVICE_UNAVAILABLE;
    return (CUresult)device->clients[client].error;
}

/* --- calls: creating --- */

static CUresult create_and_push(CUcontext *created, unsigned flags, unsigned sm_count,
                                unsigned api_version, CUdevice device) {
    struct gpu *gpu;
    struct thread *thread = this_thread();
    CUresult result = enter();
    if (result)
        return result;
    if (!created || flags & ~(unsigned)CU_CTX_FLAGS_MASK)
        return CUDA_ERROR_INVALID_VALUE;
    result = gpu_of(device, &gpu);
    if (result)
        return result;
    if (thread->depth == CONTEXT_STACK)
        return CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&driver.mutex);
    result = context_create(gpu, flags, sm_count, api_version, created);
    pthread_mutex_unlock(&driver.mutex);
    if (result == CUDA_SUCCESS)
        thread->stack[thread->depth++] = *created;
    return result;
}

CUDA_API CUresult cuCtxCreate_v2(CUcontext *created, unsigned flags, CUdevice device) {
    return create_and_push(created, flags, 0, 3020, device);
}

CUDA_API CUresult cuCtxCreate(CUcontext *created, unsigned flags, CUdevice device) {
    return create_and_push(created, flags, 0, 3010, device);
}

static CUresult affinity(const CUexecAffinityParam *params, int count, unsigned *sm_count) {
    *sm_count = 0;
    if (count == 0)
        return CUDA_SUCCESS;
    if (count != 1 || !params || params->type != 0 || params->sm_count == 0)
        return CUDA_ERROR_INVALID_VALUE;
    *sm_count = params->sm_count;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxCreate_v3(CUcontext *created, CUexecAffinityParam *params, int count,
                                 unsigned flags, CUdevice device) {
    unsigned sm_count;
    CUresult result = affinity(params, count, &sm_count);
    return result ? result : create_and_push(created, flags, sm_count, 11040, device);
}

CUDA_API CUresult cuCtxCreate_v4(CUcontext *created, CUctxCreateParams *params, unsigned flags,
                                 CUdevice device) {
    unsigned sm_count = 0;
    if (params && params->cigParams)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (params) {
        CUresult result =
            affinity(params->execAffinityParams, params->numExecAffinityParams, &sm_count);
        if (result)
            return result;
    }
    return create_and_push(created, flags, sm_count, 12050, device);
}

static void leave_stack(const struct context *context) {
    struct thread *thread = this_thread();
    if (thread->depth && thread->stack[thread->depth - 1] == context)
        thread->depth--;
}

CUDA_API CUresult cuCtxDestroy_v2(CUcontext context) {
    CUresult result = enter();
    if (result)
        return result;
    if (!object_is(OBJECT_CONTEXT, context) || context->is_primary)
        return CUDA_ERROR_INVALID_CONTEXT;
    leave_stack(context);
    pthread_mutex_lock(&driver.mutex);
    result =
        object_is(OBJECT_CONTEXT, context) ? context_destroy(context) : CUDA_ERROR_INVALID_CONTEXT;
    pthread_mutex_unlock(&driver.mutex);
    return result;
}

CUDA_API CUresult cuCtxDestroy(CUcontext context) {
    return cuCtxDestroy_v2(context);
}

/* --- calls: the primary context --- */

CUDA_API CUresult cuDevicePrimaryCtxRetain(CUcontext *retained, CUdevice device) {
    struct gpu *gpu;
    CUresult result = enter();
    if (result)
        return result;
    if (!retained)
        return CUDA_ERROR_INVALID_VALUE;
    result = gpu_of(device, &gpu);
    if (result)
        return result;
    pthread_mutex_lock(&driver.mutex);
    if (!gpu->primary) {
        result = context_create(gpu, gpu->primary_flags, 0, 3020, &gpu->primary);
        if (result == CUDA_SUCCESS)
            gpu->primary->is_primary = true;
    }
    if (result == CUDA_SUCCESS) {
        gpu->primary_retained++;
        *retained = gpu->primary;
    }
    pthread_mutex_unlock(&driver.mutex);
    return result;
}

static void drop_primary(struct gpu *gpu) {
    if (gpu->primary)
        context_destroy(gpu->primary);
    gpu->primary = NULL;
    gpu->primary_retained = 0;
}

CUDA_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    struct gpu *gpu;
    CUresult result = enter();
    result = result ? result : gpu_of(device, &gpu);
    if (result)
        return result;
    pthread_mutex_lock(&driver.mutex);
    if (!gpu->primary_retained)
        result = CUDA_ERROR_INVALID_CONTEXT;
    else if (--gpu->primary_retained == 0)
        drop_primary(gpu);
    pthread_mutex_unlock(&driver.mutex);
    return result;
}

CUDA_API CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    return cuDevicePrimaryCtxRelease_v2(device);
}

CUDA_API CUresult cuDevicePrimaryCtxReset_v2(CUdevice device) {
    struct gpu *gpu;
    CUresult result = enter();
    result = result ? result : gpu_of(device, &gpu);
    if (result)
        return result;
    pthread_mutex_lock(&driver.mutex);
    drop_primary(gpu);
    pthread_mutex_unlock(&driver.mutex);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDevicePrimaryCtxReset(CUdevice device) {
    return cuDevicePrimaryCtxReset_v2(device);
}

CUDA_API CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned flags) {
    struct gpu *gpu;
    CUresult result = enter();
    result = result ? result : gpu_of(device, &gpu);
    if (result)
        return result;
    if (flags & ~(unsigned)CU_CTX_FLAGS_MASK)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&driver.mutex);
    gpu->primary_flags = flags;
    if (gpu->primary)
        gpu->primary->flags = flags;
    pthread_mutex_unlock(&driver.mutex);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDevicePrimaryCtxSetFlags(CUdevice device, unsigned flags) {
    return cuDevicePrimaryCtxSetFlags_v2(device, flags);
}

CUDA_API CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    struct gpu *gpu;
    CUresult result = enter();
    result = result ? result : gpu_of(device, &gpu);
    if (result)
        return result;
    pthread_mutex_lock(&driver.mutex);
    if (flags)
        *flags = gpu->primary_flags;
    if (active)
        *active = gpu->primary != NULL;
    pthread_mutex_unlock(&driver.mutex);
    return CUDA_SUCCESS;
}

/* --- calls: the current context --- */

CUDA_API CUresult cuCtxPushCurrent_v2(CUcontext context) {
    struct thread *thread = this_thread();
    CUresult result = enter();
    if (result)
        return result;
    if (!object_is(OBJECT_CONTEXT, context))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (thread->depth == CONTEXT_STACK)
        return CUDA_ERROR_OUT_OF_MEMORY;
    thread->stack[thread->depth++] = context;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxPushCurrent(CUcontext context) {
    return cuCtxPushCurrent_v2(context);
}

CUDA_API CUresult cuCtxPopCurrent_v2(CUcontext *popped) {
    struct thread *thread = this_thread();
    CUresult result = enter();
    if (result)
        return result;
    if (!thread->depth)
        return CUDA_ERROR_INVALID_CONTEXT;
    thread->depth--;
    if (popped)
        *popped = thread->stack[thread->depth];
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxPopCurrent(CUcontext *popped) {
    return cuCtxPopCurrent_v2(popped);
}

CUDA_API CUresult cuCtxSetCurrent(CUcontext context) {
    struct thread *thread = this_thread();
    CUresult result = enter();
    if (result)
        return result;
    if (!context) {
        if (thread->depth)
            thread->depth--;
        return CUDA_SUCCESS;
    }
    if (!object_is(OBJECT_CONTEXT, context))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (!thread->depth)
        thread->depth = 1;
    thread->stack[thread->depth - 1] = context;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxGetCurrent(CUcontext *current) {
    struct thread *thread = this_thread();
    CUresult result = enter();
    if (result)
        return result;
    if (!current)
        return CUDA_ERROR_INVALID_VALUE;
    *current = thread->depth ? thread->stack[thread->depth - 1] : NULL;
    return CUDA_SUCCESS;
}

/* The context of a call that may name one; NULL names the current one. */
static CUresult named_or_current(CUcontext handle, struct context **context) {
    if (!handle)
        return enter_context(context);
    CUresult result = enter();
    if (result)
        return result;
    if (!object_is(OBJECT_CONTEXT, handle))
        return CUDA_ERROR_INVALID_CONTEXT;
    *context = handle;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxGetDevice_v2(CUdevice *device, CUcontext handle) {
    struct context *context;
    CUresult result = named_or_current(handle, &context);
    if (result)
        return result;
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    *device = context->gpu->ordinal;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxGetDevice(CUdevice *device) {
    return cuCtxGetDevice_v2(device, NULL);
}

CUDA_API CUresult cuCtxSynchronize_v2(CUcontext handle) {
    struct context *context;
    CUresult result = named_or_current(handle, &context);
    result = result ? result : capture_forbids_context(context);
    return result ? result : wait_context(context);
}

CUDA_API CUresult cuCtxSynchronize(void) {
    return cuCtxSynchronize_v2(NULL);
}

CUDA_API CUresult cuCtxGetFlags(unsigned *flags) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!flags)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = context->flags;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxSetFlags(unsigned flags) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    context->flags = flags;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxGetId(CUcontext handle, unsigned long long *id) {
    struct context *context;
    CUresult result = named_or_current(handle, &context);
    if (result)
        return result;
    if (!id)
        return CUDA_ERROR_INVALID_VALUE;
    *id = context->id;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxGetApiVersion(CUcontext handle, unsigned *version) {
    struct context *context;
    CUresult result = named_or_current(handle, &context);
    if (result)
        return result;
    if (!version)
        return CUDA_ERROR_INVALID_VALUE;
    *version = context->api_version;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!value)
        return CUDA_ERROR_INVALID_VALUE;
    if (limit >= CU_LIMIT_MAX)
        return CUDA_ERROR_UNSUPPORTED_LIMIT;
    *value = context->limits[limit];
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxSetLimit(CUlimit limit, size_t value) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (limit >= CU_LIMIT_MAX)
        return CUDA_ERROR_UNSUPPORTED_LIMIT;
    context->limits[limit] = value;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (least)
        *least = 0;
    if (greatest)
        *greatest = -5;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxGetExecAffinity(CUexecAffinityParam *affinity_param, int type) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!affinity_param || type != 0)
        return CUDA_ERROR_INVALID_VALUE;
    const struct simgpu_device *device = context->gpu->shared.device;
    affinity_param->type = 0;
    affinity_param->sm_count =
        (unsigned)(device->contexts[context->slot].thread_share * device->kind.sm_count + 0.5);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxGetCacheConfig(int *config) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!config)
        return CUDA_ERROR_INVALID_VALUE;
    *config = 0; /* no preference: the simulated SMs have no caches to divide */
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxSetCacheConfig(int config) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    return config < 0 || config > 3 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxResetPersistingL2Cache(void) {
    struct context *context;
    return enter_context(&context);
}
