/* Memory and events of other processes on the same device. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda_graph.h"

struct memory_handle {
    uint32_t pid;
    int32_t fd; /* in that process */
    uint64_t bytes;
    uint64_t mapped_bytes;
    uint8_t uuid[16];
};

struct event_handle {
    uint32_t slot;
    uint32_t flags;
    uint64_t slot_id;
    uint8_t uuid[16];
};

_Static_assert(sizeof(struct memory_handle) <= sizeof(CUipcMemHandle), "fits in its handle");
_Static_assert(sizeof(struct event_handle) <= sizeof(CUipcEventHandle), "fits in its handle");

/* Moves a block's bytes, under the same addresses, to memory that others can map. */
static CUresult make_shareable(struct block *block) {
    int fd = memfd_create("simgpu-ipc", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)block->mapped_bytes) != 0) {
        if (fd >= 0)
            close(fd);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    const char *from = (const char *)block->start;
    for (size_t done = 0; done < block->mapped_bytes;) {
        ssize_t written = pwrite(fd, from + done, block->mapped_bytes - done, (off_t)done);
        if (written <= 0) {
            close(fd);
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        done += (size_t)written;
    }
    if (mmap((void *)block->start, block->mapped_bytes, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        close(fd);
        return CUDA_ERROR_MAP_FAILED;
    }
    block->fd = fd;
    block_update(block);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr address) {
    struct context *context;
    struct block block;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!handle || !block_find((uintptr_t)address, &block) || block.kind != BLOCK_DEVICE)
        return CUDA_ERROR_INVALID_VALUE;
    if (block.fd < 0) {
        result = wait_context(context); /* nothing may be written meanwhile */
        pthread_mutex_lock(&driver.mutex);
        if (result == CUDA_SUCCESS && block_find((uintptr_t)address, &block) && block.fd < 0)
            result = make_shareable(&block);
        pthread_mutex_unlock(&driver.mutex);
    }
    if (result)
        return result;
    struct memory_handle memory = {.pid = (uint32_t)getpid(),
                                   .fd = block.fd,
                                   .bytes = block.bytes,
                                   .mapped_bytes = block.mapped_bytes};
    memcpy(memory.uuid, block.gpu->shared.device->uuid, sizeof memory.uuid);
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &memory, sizeof memory);
    return CUDA_SUCCESS;
}

/* Imported memory is charged to the process that allocated it. */
CUDA_API CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *address, CUipcMemHandle handle,
                                        unsigned flags) {
    struct context *context;
    struct memory_handle memory;
    char path[64];
    CUresult result = enter_context(&context);
    if (result)
        return result;
    memcpy(&memory, &handle, sizeof memory);
    if (!address || flags > 1 ||
        memcmp(memory.uuid, context->gpu->shared.device->uuid, sizeof memory.uuid) != 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (memory.pid == (uint32_t)getpid()) /* not for use in the process itself */
        return CUDA_ERROR_INVALID_CONTEXT;
    snprintf(path, sizeof path, "/proc/%u/fd/%d", memory.pid, memory.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return CUDA_ERROR_INVALID_VALUE;
    void *start = mmap(NULL, memory.mapped_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (start == MAP_FAILED) {
        close(fd);
        return CUDA_ERROR_MAP_FAILED;
    }
    *address = (uintptr_t)start;
    return block_add(&(struct block){.start = (uintptr_t)start,
                                     .bytes = memory.bytes,
                                     .mapped_bytes = memory.mapped_bytes,
                                     .kind = BLOCK_IMPORTED,
                                     .context = context,
                                     .gpu = context->gpu,
                                     .fd = fd});
}

CUDA_API CUresult cuIpcOpenMemHandle(CUdeviceptr *address, CUipcMemHandle handle, unsigned flags) {
    return cuIpcOpenMemHandle_v2(address, handle, flags);
}

CUDA_API CUresult cuIpcCloseMemHandle(CUdeviceptr address) {
    struct context *context;
    struct block block;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!block_find((uintptr_t)address, &block) || block.kind != BLOCK_IMPORTED ||
        block.start != address)
        return CUDA_ERROR_INVALID_VALUE;
    result = wait_context(context);
    if (block_remove((uintptr_t)address, &block))
        device_free(&block);
    return result;
}

CUDA_API CUresult cuIpcGetEventHandle(CUipcEventHandle *handle, CUevent event) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!object_is(OBJECT_EVENT, event))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!handle || !(event->flags & CU_EVENT_INTERPROCESS))
        return CUDA_ERROR_INVALID_VALUE;
    struct event_handle its = {
        .slot = event->slot, .flags = event->flags, .slot_id = event->slot_id};
    memcpy(its.uuid, event->gpu->shared.device->uuid, sizeof its.uuid);
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &its, sizeof its);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuIpcOpenEventHandle(CUevent *opened, CUipcEventHandle handle) {
    struct context *context;
    struct event_handle its;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    memcpy(&its, &handle, sizeof its);
    const struct simgpu_device *device = context->gpu->shared.device;
    if (!opened || its.slot >= SIMGPU_EVENTS ||
        memcmp(its.uuid, device->uuid, sizeof its.uuid) != 0 ||
        device->events[its.slot].id != its.slot_id)
        return CUDA_ERROR_INVALID_VALUE;
    struct event *event = object_new(OBJECT_EVENT);
    if (!event)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *event = (struct event){.gpu = context->gpu,
                            .context = context,
                            .slot = its.slot,
                            .slot_id = its.slot_id,
                            .flags = its.flags,
                            .is_import = true};
    *opened = event;
    return CUDA_SUCCESS;
}
