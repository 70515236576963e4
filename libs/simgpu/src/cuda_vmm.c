/* Virtual memory management: addresses, physical memory, and mappings between them. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cuda_graph.h"

enum { GRANULARITY = 2 << 20 };

static pthread_mutex_t physical_lock = PTHREAD_MUTEX_INITIALIZER; /* holds none but the device's */

/* Handles are addresses of these, kept in a table because programs may hand in anything. */
enum { PHYSICALS = 65536 };
static struct physical *physicals[PHYSICALS];

static CUresult find_physical(CUmemGenericAllocationHandle handle, struct physical **found) {
    if (handle == 0 || handle > PHYSICALS || !physicals[handle - 1])
        return CUDA_ERROR_INVALID_VALUE;
    *found = physicals[handle - 1];
    return CUDA_SUCCESS;
}

static CUmemGenericAllocationHandle handle_of(const struct physical *physical) {
    for (unsigned i = 0; i < PHYSICALS; i++)
        if (physicals[i] == physical)
            return i + 1;
    return 0;
}

static CUresult keep_physical(struct physical *physical, CUmemGenericAllocationHandle *handle) {
    for (unsigned i = 0; i < PHYSICALS; i++) {
        if (physicals[i])
            continue;
        physicals[i] = physical;
        *handle = i + 1;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/* Memory lives as long as its handle or a mapping does: releasing the handle frees nothing that is
 * still mapped. */
static void drop(struct physical *physical) {
    if (--physical->references)
        return;
    close(physical->fd);
    memory_give(physical->gpu, physical->charged_bytes);
    free(physical);
}

static CUresult check_properties(const CUmemAllocationProp *properties, struct gpu **gpu) {
    CUresult result = enter();
    if (result)
        return result;
    if (!properties || properties->type != 1)
        return CUDA_ERROR_INVALID_VALUE;
    if (properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
        properties->requestedHandleTypes & ~CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_NOT_SUPPORTED;
    return gpu_of(properties->location.id, gpu);
}

CUDA_API CUresult cuMemGetAllocationGranularity(size_t *granularity,
                                                const CUmemAllocationProp *properties, int option) {
    struct gpu *gpu;
    CUresult result = check_properties(properties, &gpu);
    if (result)
        return result;
    if (!granularity || option < 0 || option > 1)
        return CUDA_ERROR_INVALID_VALUE;
    *granularity = GRANULARITY;
    return CUDA_SUCCESS;
}

static CUresult make_physical(struct gpu *gpu, size_t bytes, uint64_t charged, int fd,
                              const CUmemAllocationProp *properties,
                              CUmemGenericAllocationHandle *handle) {
    struct physical *physical = calloc(1, sizeof *physical);
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    if (physical) {
        *physical = (struct physical){.gpu = gpu,
                                      .charged_bytes = charged,
                                      .bytes = bytes,
                                      .fd = fd,
                                      .references = 1,
                                      .handles = 1,
                                      .properties = *properties};
        pthread_mutex_lock(&physical_lock);
        result = keep_physical(physical, handle);
        pthread_mutex_unlock(&physical_lock);
    }
    if (result)
        free(physical);
    return result;
}

CUDA_API CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes,
                              const CUmemAllocationProp *properties, unsigned long long flags) {
    struct gpu *gpu;
    CUresult result = check_properties(properties, &gpu);
    result = result ? result : capture_forbids();
    if (result)
        return result;
    if (!handle || !bytes || bytes % GRANULARITY || flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (gpu->client == SIMGPU_NONE)
        return CUDA_ERROR_INVALID_CONTEXT;
    result = memory_take(gpu, bytes);
    if (result)
        return result;
    int fd = memfd_create("simgpu-memory", MFD_CLOEXEC);
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0)
        result = make_physical(gpu, bytes, bytes, fd, properties, handle);
    else
        result = CUDA_ERROR_OUT_OF_MEMORY;
    if (result) {
        memory_give(gpu, bytes);
        if (fd >= 0)
            close(fd);
    }
    return result;
}

CUDA_API CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    struct physical *physical;
    CUresult result = enter();
    if (result)
        return result;
    pthread_mutex_lock(&physical_lock);
    result = find_physical(handle, &physical);
    if (result == CUDA_SUCCESS) {
        if (--physical->handles == 0)
            physicals[handle - 1] = NULL;
        drop(physical);
    }
    pthread_mutex_unlock(&physical_lock);
    return result;
}

CUDA_API CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *properties,
                                                         CUmemGenericAllocationHandle handle) {
    struct physical *physical;
    CUresult result = enter();
    if (result)
        return result;
    if (!properties)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&physical_lock);
    result = find_physical(handle, &physical);
    if (result == CUDA_SUCCESS)
        *properties = physical->properties;
    pthread_mutex_unlock(&physical_lock);
    return result;
}

/* --- addresses --- */

CUDA_API CUresult cuMemAddressReserve(CUdeviceptr *address, size_t bytes, size_t alignment,
                                      CUdeviceptr wish, unsigned long long flags) {
    (void)wish; /* a hint, which the real driver may ignore too */
    CUresult result = enter();
    if (result)
        return result;
    if (!address || !bytes || bytes % GRANULARITY || flags ||
        (alignment && alignment & (alignment - 1)))
        return CUDA_ERROR_INVALID_VALUE;
    void *start = space_take(bytes, alignment > GRANULARITY ? alignment : GRANULARITY);
    if (!start)
        return CUDA_ERROR_OUT_OF_MEMORY;
    mprotect(start, bytes, PROT_NONE);
    result = block_add(&(struct block){.start = (uintptr_t)start,
                                       .bytes = bytes,
                                       .mapped_bytes = bytes,
                                       .kind = BLOCK_RESERVED,
                                       .gpu = &driver.gpus[0],
                                       .fd = -1});
    if (result)
        munmap(start, bytes);
    else
        *address = (uintptr_t)start;
    return result;
}

CUDA_API CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
    struct block block;
    CUresult result = enter();
    if (result)
        return result;
    if (!block_find((uintptr_t)address, &block) || block.kind != BLOCK_RESERVED ||
        block.start != address || block.bytes != bytes || !block_remove((uintptr_t)address, &block))
        return CUDA_ERROR_INVALID_VALUE;
    munmap((void *)block.start, block.mapped_bytes);
    return CUDA_SUCCESS;
}

static struct block reserved_part(uintptr_t start, size_t bytes) {
    return (struct block){.start = start,
                          .bytes = bytes,
                          .mapped_bytes = bytes,
                          .kind = BLOCK_RESERVED,
                          .gpu = &driver.gpus[0],
                          .fd = -1};
}

/* Puts a mapping in the place of part of a reservation, which is cut in up to two rests. */
static CUresult cut(const struct block *reserved, const struct block *mapping) {
    struct block removed;
    if (!block_remove(reserved->start, &removed))
        return CUDA_ERROR_INVALID_VALUE;
    uintptr_t end = mapping->start + mapping->bytes;
    uintptr_t reserved_end = reserved->start + reserved->bytes;
    CUresult result = block_add(mapping);
    if (result == CUDA_SUCCESS && mapping->start > reserved->start) {
        struct block rest = reserved_part(reserved->start, mapping->start - reserved->start);
        result = block_add(&rest);
    }
    if (result == CUDA_SUCCESS && reserved_end > end) {
        struct block rest = reserved_part(end, reserved_end - end);
        result = block_add(&rest);
    }
    return result;
}

CUDA_API CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset,
                           CUmemGenericAllocationHandle handle, unsigned long long flags) {
    struct physical *physical;
    struct block reserved;
    CUresult result = enter();
    if (result)
        return result;
    if (!bytes || bytes % GRANULARITY || offset || flags ||
        !block_find((uintptr_t)address, &reserved) || reserved.kind != BLOCK_RESERVED ||
        address + bytes > reserved.start + reserved.bytes)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&physical_lock);
    result = find_physical(handle, &physical);
    if (result == CUDA_SUCCESS && bytes > physical->bytes)
        result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS) {
        struct block mapping = {.start = (uintptr_t)address,
                                .bytes = bytes,
                                .mapped_bytes = bytes,
                                .kind = BLOCK_MAPPED,
                                .gpu = physical->gpu,
                                .fd = -1,
                                .physical = physical};
        /* Accessible from cuMemSetAccess on. */
        if (mmap((void *)(uintptr_t)address, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, physical->fd,
                 0) == MAP_FAILED)
            result = CUDA_ERROR_MAP_FAILED;
        result = result ? result : cut(&reserved, &mapping);
        if (result == CUDA_SUCCESS)
            physical->references++;
    }
    pthread_mutex_unlock(&physical_lock);
    return result;
}

/* Back to a reservation without memory, joined with reservations beside it. */
static void give_back(struct block rest) {
    struct block neighbour;
    mmap((void *)rest.start, rest.bytes, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    rest = reserved_part(rest.start, rest.bytes);
    if (block_find(rest.start - 1, &neighbour) && neighbour.kind == BLOCK_RESERVED &&
        block_remove(neighbour.start, &neighbour)) {
        rest.bytes += neighbour.bytes;
        rest.start = neighbour.start;
    }
    if (block_find(rest.start + rest.bytes, &neighbour) && neighbour.kind == BLOCK_RESERVED &&
        block_remove(neighbour.start, &neighbour))
        rest.bytes += neighbour.bytes;
    rest.mapped_bytes = rest.bytes;
    block_add(&rest);
}

CUDA_API CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
    struct block block;
    CUresult result = enter();
    if (result)
        return result;
    for (CUdeviceptr at = address; at < address + bytes; at += block.bytes)
        if (!block_find((uintptr_t)at, &block) || block.kind != BLOCK_MAPPED || block.start != at ||
            at + block.bytes > address + bytes)
            return CUDA_ERROR_INVALID_VALUE;
    for (CUdeviceptr at = address; at < address + bytes; at += block.bytes) {
        if (!block_remove((uintptr_t)at, &block))
            return CUDA_ERROR_INVALID_VALUE;
        give_back(block);
        mapping_free(&block);
    }
    return CUDA_SUCCESS;
}

void mapping_free(const struct block *block) {
    pthread_mutex_lock(&physical_lock);
    drop(block->physical);
    pthread_mutex_unlock(&physical_lock);
}

CUDA_API CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access,
                                 size_t count) {
    struct block block;
    CUresult result = enter();
    if (result)
        return result;
    if (!access || !count)
        return CUDA_ERROR_INVALID_VALUE;
    for (CUdeviceptr at = address; at < address + bytes; at = block.start + block.bytes)
        if (!block_find((uintptr_t)at, &block) || block.kind != BLOCK_MAPPED)
            return CUDA_ERROR_INVALID_VALUE;
    int protection = access[0].flags == 3   ? PROT_READ | PROT_WRITE
                     : access[0].flags == 1 ? PROT_READ
                                            : PROT_NONE;
    return mprotect((void *)(uintptr_t)address, bytes, protection) == 0 ? CUDA_SUCCESS
                                                                        : CUDA_ERROR_INVALID_VALUE;
}

CUDA_API CUresult cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location,
                                 CUdeviceptr address) {
    struct block block;
    CUresult result = enter();
    if (result)
        return result;
    if (!flags || !location || !block_find((uintptr_t)address, &block) ||
        block.kind != BLOCK_MAPPED)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = 3;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address) {
    struct block block;
    CUresult result = enter();
    if (result)
        return result;
    if (!handle || !block_find((uintptr_t)address, &block) || block.kind != BLOCK_MAPPED)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&physical_lock);
    struct physical *physical = block.physical;
    *handle = handle_of(physical);
    if (!*handle)
        result = keep_physical(physical, handle);
    if (result == CUDA_SUCCESS) {
        physical->handles++;
        physical->references++;
    }
    pthread_mutex_unlock(&physical_lock);
    return result;
}

/* --- between processes --- */

CUDA_API CUresult cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle,
                                               int type, unsigned long long flags) {
    struct physical *physical;
    CUresult result = enter();
    if (result)
        return result;
    if (!shareable || flags)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&physical_lock);
    result = find_physical(handle, &physical);
    if (result == CUDA_SUCCESS && (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ||
                                   physical->properties.requestedHandleTypes != type))
        result = CUDA_ERROR_INVALID_VALUE;
    int fd = result ? -1 : fcntl(physical->fd, F_DUPFD_CLOEXEC, 0);
    pthread_mutex_unlock(&physical_lock);
    if (result == CUDA_SUCCESS && fd < 0)
        return CUDA_ERROR_OPERATING_SYSTEM;
    if (result == CUDA_SUCCESS)
        *(int *)shareable = fd;
    return result;
}

/* What is imported is charged to the process that made it. */
CUDA_API CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle,
                                                 void *shareable, int type) {
    struct context *context;
    struct stat status;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!handle || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_INVALID_VALUE;
    int fd = fcntl((int)(intptr_t)shareable, F_DUPFD_CLOEXEC, 0);
    if (fd < 0 || fstat(fd, &status) != 0 || status.st_size % GRANULARITY || !status.st_size) {
        if (fd >= 0)
            close(fd);
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUmemAllocationProp properties = {
        .type = 1,
        .requestedHandleTypes = type,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = context->gpu->ordinal}};
    result = make_physical(context->gpu, (size_t)status.st_size, 0, fd, &properties, handle);
    if (result)
        close(fd);
    return result;
}
