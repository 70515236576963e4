/* Memory: what is allocated where. A device pointer is an address of this process: the bytes of
 * device memory are anonymous pages, which cost nothing until they are touched. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda_graph.h"

enum { ALIGNMENT = 512, PAGE = 4096 };

/* --- space and charge --- */

static size_t round_up(size_t bytes, size_t to) {
    return (bytes + to - 1) / to * to;
}

void *space_take(size_t bytes, size_t alignment) {
    size_t room = alignment > PAGE ? bytes + alignment : bytes;
    char *start = mmap(NULL, room, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    if (alignment <= PAGE)
        return start;
    char *aligned = (char *)round_up((uintptr_t)start, alignment);
    if (aligned > start)
        munmap(start, (size_t)(aligned - start));
    char *end = aligned + bytes;
    if (start + room > end)
        munmap(end, (size_t)(start + room - end));
    return aligned;
}

CUresult memory_take(struct gpu *gpu, uint64_t bytes) {
    CUresult result = gpu_lock(gpu);
    if (result)
        return result;
    bool taken = simgpu_memory_take(gpu->shared.device, gpu->client, bytes);
    gpu_unlock(gpu);
    return taken ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* Also for a client that has failed: its memory is its own until it ends. */
void memory_give(struct gpu *gpu, uint64_t bytes) {
    if (!bytes)
        return;
    simgpu_lock(&gpu->shared);
    if (driver.state == DRIVER_READY)
        simgpu_memory_give(gpu->shared.device, gpu->client, bytes);
    simgpu_unlock(&gpu->shared);
}

CUresult device_alloc(struct context *context, size_t bytes, enum block_kind kind,
                      struct block *block) {
    struct gpu *gpu = context->gpu;
    if (bytes == 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (bytes > gpu->shared.device->kind.memory_bytes)
        return CUDA_ERROR_OUT_OF_MEMORY;
    uint64_t charged = round_up(bytes, ALIGNMENT);
    CUresult result = memory_take(gpu, charged);
    if (result)
        return result;
    size_t mapped = round_up(bytes, PAGE);
    void *start = space_take(mapped, PAGE);
    *block = (struct block){.start = (uintptr_t)start,
                            .bytes = bytes,
                            .mapped_bytes = mapped,
                            .kind = kind,
                            .context = context,
                            .gpu = gpu,
                            .charged_bytes = charged,
                            .fd = -1};
    result = start ? block_add(block) : CUDA_ERROR_OUT_OF_MEMORY;
    if (result) {
        memory_give(gpu, charged);
        if (start)
            munmap(start, mapped);
    }
    return result;
}

void device_free(const struct block *block) {
    if (block->kind == BLOCK_POOL) {
        pool_free(block);
        return;
    }
    if (block->kind == BLOCK_MAPPED) {
        mapping_free(block);
        return;
    }
    if (block->kind != BLOCK_REGISTERED)
        munmap((void *)block->start, block->mapped_bytes);
    if (block->fd >= 0)
        close(block->fd);
    memory_give(block->gpu, block->charged_bytes);
}

/* --- calls: device memory --- */

/* The context of an allocation or a release, neither of which a capture need allow. */
static CUresult enter_allocation(struct context **context) {
    CUresult result = enter_context(context);
    return result ? result : capture_forbids();
}

CUDA_API CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    struct context *context;
    struct block block;
    CUresult result = enter_allocation(&context);
    if (result)
        return result;
    if (!address)
        return CUDA_ERROR_INVALID_VALUE;
    result = device_alloc(context, bytes, BLOCK_DEVICE, &block);
    if (result == CUDA_SUCCESS)
        *address = block.start;
    return result;
}

CUDA_API CUresult cuMemAllocPitch_v2(CUdeviceptr *address, size_t *pitch, size_t width,
                                     size_t height, unsigned element_bytes) {
    if (!pitch || (element_bytes != 4 && element_bytes != 8 && element_bytes != 16))
        return CUDA_ERROR_INVALID_VALUE;
    size_t row = round_up(width, ALIGNMENT);
    CUresult result = cuMemAlloc_v2(address, row * height);
    if (result == CUDA_SUCCESS)
        *pitch = row;
    return result;
}

CUDA_API CUresult cuMemAllocManaged(CUdeviceptr *address, size_t bytes, unsigned flags) {
    struct context *context;
    struct block block;
    CUresult result = enter_allocation(&context);
    if (result)
        return result;
    if (!address || (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST))
        return CUDA_ERROR_INVALID_VALUE;
    result = device_alloc(context, bytes, BLOCK_MANAGED, &block);
    if (result == CUDA_SUCCESS)
        *address = block.start;
    return result;
}

CUDA_API CUresult cuMemFree_v2(CUdeviceptr address) {
    struct context *context;
    struct block block;
    CUresult result = enter_allocation(&context);
    if (result || !address)
        return result;
    if (!block_find((uintptr_t)address, &block) || block.start != address ||
        (block.kind != BLOCK_DEVICE && block.kind != BLOCK_MANAGED && block.kind != BLOCK_POOL))
        return CUDA_ERROR_INVALID_VALUE;
    /* What is queued may still use it: a release waits for that, as the real one does. */
    result = wait_context(block.context ? block.context : context);
    if (result)
        return result;
    if (!block_remove((uintptr_t)address, &block))
        return CUDA_ERROR_INVALID_VALUE; /* another thread was faster */
    device_free(&block);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    struct gpu *gpu = context->gpu;
    struct simgpu_device *device = gpu->shared.device;
    result = gpu_lock(gpu);
    if (result)
        return result;
    const struct simgpu_client *client = &device->clients[gpu->client];
    uint64_t left = simgpu_memory_free(device);
    uint64_t total = device->kind.memory_bytes - device->kind.reserved_bytes;
    if (client->memory_limit_bytes && client->memory_limit_bytes < total) {
        uint64_t own = client->memory_limit_bytes - client->memory_bytes;
        left = own < left ? own : left;
        total = client->memory_limit_bytes;
    }
    gpu_unlock(gpu);
    if (free_bytes)
        *free_bytes = left;
    if (total_bytes)
        *total_bytes = total;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr address) {
    struct context *context;
    struct block block;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!block_find((uintptr_t)address, &block) || !block_is_on_device(&block))
        return CUDA_ERROR_NOT_FOUND;
    if (base)
        *base = block.start;
    if (bytes)
        *bytes = block.bytes;
    return CUDA_SUCCESS;
}

/* --- calls: host memory --- */

CUDA_API CUresult cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    struct context *context;
    CUresult result = enter_allocation(&context);
    if (result)
        return result;
    if (!address || !bytes || flags > 7)
        return CUDA_ERROR_INVALID_VALUE;
    size_t mapped = round_up(bytes, PAGE);
    void *start = space_take(mapped, PAGE);
    if (!start)
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = block_add(&(struct block){.start = (uintptr_t)start,
                                       .bytes = bytes,
                                       .mapped_bytes = mapped,
                                       .kind = BLOCK_HOST,
                                       .context = context,
                                       .gpu = context->gpu,
                                       .flags = flags,
                                       .fd = -1});
    if (result)
        munmap(start, mapped);
    else
        *address = start;
    return result;
}

CUDA_API CUresult cuMemAllocHost_v2(void **address, size_t bytes) {
    return cuMemHostAlloc(address, bytes, CU_MEMHOSTALLOC_DEVICEMAP);
}

static CUresult release_host(void *address, enum block_kind kind, CUresult unknown) {
    struct context *context;
    struct block block;
    CUresult result = enter_allocation(&context);
    if (result)
        return result;
    if (!block_find((uintptr_t)address, &block) || block.start != (uintptr_t)address ||
        block.kind != kind)
        return unknown;
    if (block.context)
        result = wait_context(block.context);
    if (result)
        return result;
    if (!block_remove((uintptr_t)address, &block))
        return unknown;
    device_free(&block);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuMemFreeHost(void *address) {
    return release_host(address, BLOCK_HOST, CUDA_ERROR_INVALID_VALUE);
}

CUDA_API CUresult cuMemHostRegister_v2(void *address, size_t bytes, unsigned flags) {
    struct context *context;
    struct block block;
    CUresult result = enter_allocation(&context);
    if (result)
        return result;
    if (!address || !bytes || flags > 15)
        return CUDA_ERROR_INVALID_VALUE;
    if (block_find((uintptr_t)address, &block) ||
        block_find((uintptr_t)address + bytes - 1, &block))
        return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    return block_add(&(struct block){.start = (uintptr_t)address,
                                     .bytes = bytes,
                                     .kind = BLOCK_REGISTERED,
                                     .context = context,
                                     .gpu = context->gpu,
                                     .flags = flags,
                                     .fd = -1});
}

CUDA_API CUresult cuMemHostUnregister(void *address) {
    return release_host(address, BLOCK_REGISTERED, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

CUDA_API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *address, void *host, unsigned flags) {
    struct context *context;
    struct block block;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!address || flags || !block_find((uintptr_t)host, &block) ||
        (block.kind != BLOCK_HOST && block.kind != BLOCK_REGISTERED))
        return CUDA_ERROR_INVALID_VALUE;
    *address = (CUdeviceptr)(uintptr_t)host;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuMemHostGetFlags(unsigned *flags, void *host) {
    struct context *context;
    struct block block;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!flags || !block_find((uintptr_t)host, &block) || block.kind != BLOCK_HOST)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = block.flags;
    return CUDA_SUCCESS;
}

/* --- calls: what a pointer is --- */

static CUresult attribute_of(const struct block *block, CUdeviceptr address,
                             CUpointer_attribute attribute, void *data) {
    bool on_device = block_is_on_device(block);
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        *(CUcontext *)data = block->context;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)data = on_device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        *(CUdeviceptr *)data = address;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        if (on_device && block->kind != BLOCK_MANAGED)
            return CUDA_ERROR_INVALID_VALUE;
        *(void **)data = (void *)(uintptr_t)address;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
        *(int *)data = 0;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
        *(unsigned long long *)data = block->id;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        *(int *)data = block->kind == BLOCK_MANAGED;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *(int *)data = block->gpu->ordinal;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
        *(int *)data = block->kind == BLOCK_DEVICE;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        *(CUdeviceptr *)data = block->start;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        *(size_t *)data = block->bytes;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MAPPED:
        *(int *)data = block->kind != BLOCK_RESERVED;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
        *(unsigned long long *)data =
            block->kind == BLOCK_MAPPED ? CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR : 0;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
        *(unsigned *)data = 3;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
        *(CUmemoryPool *)data = block->pool;
        return CUDA_SUCCESS;
    default:
        return attribute < 1 || attribute > 22 ? CUDA_ERROR_INVALID_VALUE
                                               : CUDA_ERROR_NOT_SUPPORTED;
    }
}

CUDA_API CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute,
                                        CUdeviceptr address) {
    struct block block;
    CUresult result = enter();
    if (result)
        return result;
    if (!data || !block_find((uintptr_t)address, &block))
        return CUDA_ERROR_INVALID_VALUE;
    return attribute_of(&block, address, attribute, data);
}

/* For an address that is not CUDA's, everything is 0, and that is no error. */
CUDA_API CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute *attributes,
                                         void **data, CUdeviceptr address) {
    struct block block;
    CUresult result = enter();
    if (result)
        return result;
    if (!attributes || !data)
        return CUDA_ERROR_INVALID_VALUE;
    bool known = block_find((uintptr_t)address, &block);
    for (unsigned i = 0; i < count && result == CUDA_SUCCESS; i++) {
        if (!known)
            *(unsigned *)data[i] = attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL ? -2U : 0;
        else
            result = attribute_of(&block, address, attributes[i], data[i]);
    }
    return result;
}
