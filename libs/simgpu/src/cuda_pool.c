/* Stream-ordered allocation. A pool holds on to as much as its release threshold says. */
#include <string.h>
#include <sys/mman.h>

#include "cuda_graph.h"

static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER; /* holds none but the device's */

static struct pool *pool_new(struct gpu *gpu, bool is_default) {
    struct pool *pool = object_new(OBJECT_POOL);
    if (!pool)
        return NULL;
    pool->gpu = gpu;
    pool->is_default = is_default;
    for (int i = CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES;
         i <= CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES; i++)
        pool->settings[i] = 1;
    return pool;
}

static struct pool *default_pool(struct gpu *gpu) {
    pthread_mutex_lock(&pool_lock);
    if (!gpu->default_pool)
        gpu->default_pool = pool_new(gpu, true);
    struct pool *pool = gpu->default_pool;
    pthread_mutex_unlock(&pool_lock);
    return pool;
}

static struct pool *current_pool(struct gpu *gpu) {
    return gpu->current_pool ? gpu->current_pool : default_pool(gpu);
}

/* Gives back what is held and not in use, down to `keep` bytes held. Under the pool lock. */
static void trim(struct pool *pool, uint64_t keep) {
    uint64_t least = pool->used > keep ? pool->used : keep;
    if (pool->reserved <= least)
        return;
    memory_give(pool->gpu, pool->reserved - least);
    pool->reserved = least;
}

static CUresult pool_take(struct pool *pool, uint64_t bytes) {
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&pool_lock);
    uint64_t needed = pool->used + bytes;
    if (pool->max_bytes && needed > pool->max_bytes)
        result = CUDA_ERROR_OUT_OF_MEMORY;
    else if (needed > pool->reserved)
        result = memory_take(pool->gpu, needed - pool->reserved);
    if (result == CUDA_SUCCESS) {
        pool->used = needed;
        pool->reserved = needed > pool->reserved ? needed : pool->reserved;
        pool->used_high = needed > pool->used_high ? needed : pool->used_high;
        if (pool->reserved > pool->reserved_high)
            pool->reserved_high = pool->reserved;
    }
    pthread_mutex_unlock(&pool_lock);
    return result;
}

static void pool_give(struct pool *pool, uint64_t bytes) {
    pthread_mutex_lock(&pool_lock);
    pool->used -= bytes;
    trim(pool, pool->release_threshold);
    bool last = pool->destroyed && pool->used == 0;
    pthread_mutex_unlock(&pool_lock);
    if (last)
        object_free(OBJECT_POOL, pool);
}

void pool_free(const struct block *block) {
    munmap((void *)block->start, block->mapped_bytes);
    pool_give(block->pool, block->charged_bytes);
}

static CUresult allocate(CUdeviceptr *address, size_t bytes, struct pool *pool, CUstream handle) {
    enum { ALIGNMENT = 512, PAGE = 4096 };
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    if (!address || !pool || !object_is(OBJECT_POOL, pool) || pool->destroyed)
        return CUDA_ERROR_INVALID_VALUE;
    bool captured;
    result = capture_of(stream, &captured);
    if (result)
        return result;
    if (captured) {
        struct node content;
        result = node_allocation(pool->gpu, bytes, &content);
        result = result ? result : capture_node(stream, &content);
        if (result == CUDA_SUCCESS)
            *address = content.address;
        return result;
    }
    if (!bytes) {
        *address = 0;
        return CUDA_SUCCESS;
    }
    if (bytes > pool->gpu->shared.device->kind.memory_bytes)
        return CUDA_ERROR_OUT_OF_MEMORY;
    uint64_t charged = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    result = pool_take(pool, charged);
    if (result == CUDA_ERROR_OUT_OF_MEMORY) { /* frees that have been reached may help */
        apply_effects(pool->gpu);
        result = pool_take(pool, charged);
    }
    if (result)
        return result;
    size_t mapped = (bytes + PAGE - 1) / PAGE * PAGE;
    struct block block = {.start = (uintptr_t)space_take(mapped, PAGE),
                          .bytes = bytes,
                          .mapped_bytes = mapped,
                          .kind = BLOCK_POOL,
                          .gpu = pool->gpu,
                          .charged_bytes = charged,
                          .fd = -1,
                          .pool = pool};
    result = block.start ? block_add(&block) : CUDA_ERROR_OUT_OF_MEMORY;
    result = result ? result : submit(stream, mark_work(), NULL, NULL, NULL);
    if (result) {
        pool_give(pool, charged);
        return result;
    }
    *address = block.start;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuMemAllocAsync(CUdeviceptr *address, size_t bytes, CUstream handle) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    return result ? result : allocate(address, bytes, current_pool(stream->context->gpu), handle);
}

CUDA_API CUresult cuMemAllocFromPoolAsync(CUdeviceptr *address, size_t bytes, CUmemoryPool pool,
                                          CUstream handle) {
    CUresult result = enter();
    return result ? result : allocate(address, bytes, pool, handle);
}

CUDA_API CUresult cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
    struct stream *stream;
    struct block block;
    CUresult result = stream_of(handle, &stream);
    if (result || !address)
        return result;
    if (!block_find((uintptr_t)address, &block) || block.start != address ||
        (block.kind != BLOCK_POOL && block.kind != BLOCK_DEVICE && block.kind != BLOCK_GRAPH))
        return CUDA_ERROR_INVALID_VALUE;
    bool captured;
    result = capture_of(stream, &captured);
    if (result)
        return result;
    if (captured) {
        struct node content;
        result = node_release(address, &content);
        return result ? result : capture_node(stream, &content);
    }
    if (block.kind == BLOCK_GRAPH) /* its graph's, as long as that exists */
        return submit(stream, mark_work(), NULL, NULL, NULL);
    struct effect *effect = effect_new(EFFECT_FREE);
    if (!effect)
        return CUDA_ERROR_OUT_OF_MEMORY;
    effect->address = address;
    return submit(stream, mark_work(), effect, NULL, NULL);
}

/* --- pools --- */

static CUresult check_pool(CUmemoryPool pool) {
    CUresult result = enter();
    if (result)
        return result;
    return object_is(OBJECT_POOL, pool) && !pool->destroyed ? CUDA_SUCCESS
                                                            : CUDA_ERROR_INVALID_VALUE;
}

CUDA_API CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *properties) {
    struct gpu *gpu;
    CUresult result = enter();
    if (result)
        return result;
    if (!pool || !properties || properties->allocType != 1)
        return CUDA_ERROR_INVALID_VALUE;
    if (properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE || properties->handleTypes)
        return CUDA_ERROR_NOT_SUPPORTED;
    result = gpu_of(properties->location.id, &gpu);
    if (result)
        return result;
    if (gpu->client == SIMGPU_NONE)
        return CUDA_ERROR_INVALID_CONTEXT;
    *pool = pool_new(gpu, false);
    if (!*pool)
        return CUDA_ERROR_OUT_OF_MEMORY;
    (*pool)->max_bytes = properties->maxSize;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuMemPoolDestroy(CUmemoryPool pool) {
    CUresult result = check_pool(pool);
    if (result)
        return result;
    if (pool->is_default)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&pool_lock);
    pool->destroyed = true;
    pool->release_threshold = 0;
    trim(pool, 0);
    bool empty = pool->used == 0;
    if (pool->gpu->current_pool == pool)
        pool->gpu->current_pool = NULL;
    pthread_mutex_unlock(&pool_lock);
    if (empty)
        object_free(OBJECT_POOL, pool);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t keep) {
    CUresult result = check_pool(pool);
    if (result)
        return result;
    apply_effects(pool->gpu);
    pthread_mutex_lock(&pool_lock);
    trim(pool, keep);
    pthread_mutex_unlock(&pool_lock);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute,
                                        void *value) {
    CUresult result = check_pool(pool);
    if (result)
        return result;
    if (!value)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&pool_lock);
    switch (attribute) {
    case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
        pool->settings[attribute] = *(int *)value != 0;
        break;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
        pool->release_threshold = *(uint64_t *)value;
        break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
        pool->reserved_high = pool->reserved;
        result = *(uint64_t *)value ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
        break;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        pool->used_high = pool->used;
        result = *(uint64_t *)value ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
        break;
    default:
        result = CUDA_ERROR_INVALID_VALUE;
    }
    pthread_mutex_unlock(&pool_lock);
    return result;
}

CUDA_API CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute,
                                        void *value) {
    CUresult result = check_pool(pool);
    if (result)
        return result;
    if (!value)
        return CUDA_ERROR_INVALID_VALUE;
    apply_effects(pool->gpu);
    pthread_mutex_lock(&pool_lock);
    switch (attribute) {
    case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
        *(int *)value = (int)pool->settings[attribute];
        break;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
        *(uint64_t *)value = pool->release_threshold;
        break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
        *(uint64_t *)value = pool->reserved;
        break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
        *(uint64_t *)value = pool->reserved_high;
        break;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
        *(uint64_t *)value = pool->used;
        break;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        *(uint64_t *)value = pool->used_high;
        break;
    default:
        result = CUDA_ERROR_INVALID_VALUE;
    }
    pthread_mutex_unlock(&pool_lock);
    return result;
}

CUDA_API CUresult cuMemPoolSetAccess(CUmemoryPool pool, const CUmemAccessDesc *access,
                                     size_t count) {
    CUresult result = check_pool(pool);
    if (result)
        return result;
    return count && !access ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUDA_API CUresult cuMemPoolGetAccess(int *flags, CUmemoryPool pool, CUmemLocation *location) {
    CUresult result = check_pool(pool);
    if (result)
        return result;
    if (!flags || !location)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = 3; /* every device of the process can read and write it */
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device) {
    struct gpu *gpu;
    CUresult result = enter();
    result = result ? result : gpu_of(device, &gpu);
    if (result)
        return result;
    if (!pool)
        return CUDA_ERROR_INVALID_VALUE;
    *pool = default_pool(gpu);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice device) {
    struct gpu *gpu;
    CUresult result = enter();
    result = result ? result : gpu_of(device, &gpu);
    if (result)
        return result;
    if (!pool)
        return CUDA_ERROR_INVALID_VALUE;
    *pool = current_pool(gpu);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDeviceSetMemPool(CUdevice device, CUmemoryPool pool) {
    struct gpu *gpu;
    CUresult result = check_pool(pool);
    result = result ? result : gpu_of(device, &gpu);
    if (result)
        return result;
    gpu->current_pool = pool;
    return CUDA_SUCCESS;
}
