/* Memory that the program knows by its address, and what it is told about memory. */
#include "driver.h"
#include "gate.h"
#include "job.h"
#include "launch.h"
#include "quota.h"

static CUresult settle(enum hook_index hook, CUresult result, const CUdeviceptr *address,
                       uint64_t bytes, CUcontext context) {
    struct ledger_entry entry = {.kind = LEDGER_POINTER,
                                 .key = result == CUDA_SUCCESS ? *address : 0,
                                 .bytes = bytes,
                                 .context = context};
    return quota_settle_taken(hook, result, &entry);
}

CUresult on_mem_alloc(enum hook_index hook, CUdeviceptr *address, size_t bytes) {
    if (!launch_gated())
        return REAL_OF(hook, cuMemAlloc_v2)(address, bytes);
    if (!quota_take(bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = REAL_OF(hook, cuMemAlloc_v2)(address, bytes);
    return settle(hook, result, address, bytes, quota_current_context());
}

CUresult on_mem_alloc_managed(enum hook_index hook, CUdeviceptr *address, size_t bytes,
                              unsigned int flags) {
    if (!launch_gated())
        return REAL_OF(hook, cuMemAllocManaged)(address, bytes, flags);
    if (!quota_take(bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = REAL_OF(hook, cuMemAllocManaged)(address, bytes, flags);
    return settle(hook, result, address, bytes, quota_current_context());
}

/* Only the driver knows the pitch: what it comes to more is taken afterwards, or else the memory
 * given back. */
CUresult on_mem_alloc_pitch(enum hook_index hook, CUdeviceptr *address, size_t *pitch, size_t width,
                            size_t height, unsigned int element_bytes) {
    if (!launch_gated())
        return REAL_OF(hook, cuMemAllocPitch_v2)(address, pitch, width, height, element_bytes);
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(width, height, &bytes) || !quota_take(bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result =
        REAL_OF(hook, cuMemAllocPitch_v2)(address, pitch, width, height, element_bytes);
    if (result == CUDA_SUCCESS) {
        uint64_t padding_bytes = *pitch * height - bytes;
        if (!quota_take(padding_bytes)) {
            REAL(cuMemFree_v2)(*address);
            quota_give(bytes);
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        bytes += padding_bytes;
    }
    return settle(hook, result, address, bytes, quota_current_context());
}

/* What comes from a pool is freed by itself, not with a context. */
CUresult on_mem_alloc_async(enum hook_index hook, CUdeviceptr *address, size_t bytes,
                            CUstream stream) {
    if (!launch_gated())
        return REAL_OF(hook, cuMemAllocAsync)(address, bytes, stream);
    if (!quota_take(bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = REAL_OF(hook, cuMemAllocAsync)(address, bytes, stream);
    return settle(hook, result, address, bytes, NULL);
}

CUresult on_mem_alloc_from_pool_async(enum hook_index hook, CUdeviceptr *address, size_t bytes,
                                      CUmemoryPool pool, CUstream stream) {
    if (!launch_gated())
        return REAL_OF(hook, cuMemAllocFromPoolAsync)(address, bytes, pool, stream);
    if (!quota_take(bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = REAL_OF(hook, cuMemAllocFromPoolAsync)(address, bytes, pool, stream);
    return settle(hook, result, address, bytes, NULL);
}

CUresult on_mem_free(enum hook_index hook, CUdeviceptr address) {
    if (!launch_gated())
        return REAL_OF(hook, cuMemFree_v2)(address);
    struct ledger_entry entry;
    bool known = quota_forget(LEDGER_POINTER, address, &entry);
    return quota_settle_freed(hook, REAL_OF(hook, cuMemFree_v2)(address), known, &entry);
}

CUresult on_mem_free_async(enum hook_index hook, CUdeviceptr address, CUstream stream) {
    if (!launch_gated())
        return REAL_OF(hook, cuMemFreeAsync)(address, stream);
    struct ledger_entry entry;
    bool known = quota_forget(LEDGER_POINTER, address, &entry);
    return quota_settle_freed(hook, REAL_OF(hook, cuMemFreeAsync)(address, stream), known, &entry);
}

/* The quota is the device's size, as far as the program can see. What the driver itself says of a
 * NULL pointer, it says. */
CUresult on_mem_get_info(enum hook_index hook, size_t *free, size_t *total) {
    bool gated = launch_gated();
    CUresult result = REAL_OF(hook, cuMemGetInfo_v2)(free, total);
    uint64_t quota_bytes = gated ? gate_quota_bytes() : 0;
    if (result != CUDA_SUCCESS || quota_bytes == 0)
        return result;
    if (total != NULL && *total > quota_bytes)
        *total = quota_bytes;
    if (free != NULL) {
        uint64_t left_bytes = job_left_bytes(quota_bytes);
        *free = *free < left_bytes ? *free : left_bytes;
    }
    return result;
}

CUresult on_device_total_mem(enum hook_index hook, size_t *bytes, CUdevice device) {
    bool gated = launch_gated();
    CUresult result = REAL_OF(hook, cuDeviceTotalMem_v2)(bytes, device);
    uint64_t quota_bytes = gated ? gate_quota_bytes() : 0;
    if (result == CUDA_SUCCESS && quota_bytes != 0 && bytes != NULL && *bytes > quota_bytes)
        *bytes = quota_bytes;
    return result;
}
