/* Memory that the program knows by its address, and what it is told about memory. */
#include "capture.h"
#include "driver.h"
#include "gate.h"
#include "job.h"
#include "launch.h"
#include "quota.h"
#include "quota_graphs.h"
#include "quota_pools.h"

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

/* ---- from pools --------------------------------------------------------------------------------
 */

/* What is captured becomes part of a graph, and counts with that (quota_graphs.c). In a callback
 * the driver refuses, and tells so. */
static bool counts(CUstream stream) {
    return launch_gated() && self.in_callback == 0 && !(capture_any() && capture_covers(stream));
}

static void remember(CUdeviceptr address, const struct pool_wish *wish) {
    struct ledger_entry entry = {.kind = LEDGER_POOLED,
                                 .key = address,
                                 .bytes = wish->bytes,
                                 .object = (uint64_t)wish->pool};
    quota_remember(&entry);
}

static CUresult settle_pooled(enum hook_index hook, CUresult result, CUdeviceptr *address,
                              CUstream stream, const struct pool_wish *wish) {
    bool made = result == CUDA_SUCCESS && *address != 0;
    if (result != CUDA_SUCCESS)
        job_note_result(hook, result);
    if (pool_settle(wish, made)) {
        if (made && wish->pool >= 0)
            remember(*address, wish);
        return result;
    }
    REAL(cuMemFreeAsync)(*address, stream);
    pool_left(wish->pool, wish->bytes);
    *address = 0;
    job_note_refusal(wish->bytes);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult on_mem_alloc_async(enum hook_index hook, CUdeviceptr *address, size_t bytes,
                            CUstream stream) {
    bool own = hook == HOOK_cuMemAllocAsync_ptsz;
    CUstream named = stream_named(stream, own ? CU_STREAM_PER_THREAD : CU_STREAM_LEGACY);
    if (!counts(named)) {
        quota_graphs_note_capture();
        return REAL_OF(hook, cuMemAllocAsync)(address, bytes, stream);
    }
    struct pool_wish wish;
    int pool = pool_of_stream(named);
    if (pool == POOL_UNKNOWN) { /* it cannot be asked what the pool keeps */
        if (!quota_take(bytes))
            return CUDA_ERROR_OUT_OF_MEMORY;
        CUresult result = REAL_OF(hook, cuMemAllocAsync)(address, bytes, stream);
        return settle(hook, result, address, bytes, NULL);
    }
    if (!pool_wish(&wish, pool, bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = REAL_OF(hook, cuMemAllocAsync)(address, bytes, stream);
    return settle_pooled(hook, result, address, named, &wish);
}

CUresult on_mem_alloc_from_pool_async(enum hook_index hook, CUdeviceptr *address, size_t bytes,
                                      CUmemoryPool handle, CUstream stream) {
    bool own = hook == HOOK_cuMemAllocFromPoolAsync_ptsz;
    CUstream named = stream_named(stream, own ? CU_STREAM_PER_THREAD : CU_STREAM_LEGACY);
    if (!counts(named)) {
        quota_graphs_note_capture();
        return REAL_OF(hook, cuMemAllocFromPoolAsync)(address, bytes, handle, stream);
    }
    struct pool_wish wish;
    int pool = pool_of(handle);
    if (pool == POOL_UNKNOWN) {
        if (!quota_take(bytes))
            return CUDA_ERROR_OUT_OF_MEMORY;
        CUresult result = REAL_OF(hook, cuMemAllocFromPoolAsync)(address, bytes, handle, stream);
        return settle(hook, result, address, bytes, NULL);
    }
    if (!pool_wish(&wish, pool, bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = REAL_OF(hook, cuMemAllocFromPoolAsync)(address, bytes, handle, stream);
    return settle_pooled(hook, result, address, named, &wish);
}

/* ---- freeing -----------------------------------------------------------------------------------
 */

/* Either kind of pointer may be freed in either way. */
static bool forget(CUdeviceptr address, struct ledger_entry *entry) {
    return quota_forget(LEDGER_POINTER, address, entry) ||
           quota_forget(LEDGER_POOLED, address, entry);
}

static CUresult settle_freed(enum hook_index hook, CUresult result, bool known,
                             const struct ledger_entry *entry) {
    if (!known || entry->kind == LEDGER_POINTER || result != CUDA_SUCCESS)
        return quota_settle_freed(hook, result, known, entry);
    quota_pooled_gone(entry);
    return result;
}

CUresult on_mem_free(enum hook_index hook, CUdeviceptr address) {
    if (!launch_gated())
        return REAL_OF(hook, cuMemFree_v2)(address);
    struct ledger_entry entry;
    bool known = forget(address, &entry);
    return settle_freed(hook, REAL_OF(hook, cuMemFree_v2)(address), known, &entry);
}

CUresult on_mem_free_async(enum hook_index hook, CUdeviceptr address, CUstream stream) {
    if (!launch_gated())
        return REAL_OF(hook, cuMemFreeAsync)(address, stream);
    struct ledger_entry entry;
    bool known = forget(address, &entry);
    return settle_freed(hook, REAL_OF(hook, cuMemFreeAsync)(address, stream), known, &entry);
}

/* ---- pools -------------------------------------------------------------------------------------
 */

/* Pools of the host's memory are none of ours. Those of no place in particular, which the driver
 * moves about, are. */
CUresult on_mem_pool_create(enum hook_index hook, CUmemoryPool *pool, const CUmemPoolProps *props) {
    bool gated = launch_gated();
    CUresult result = REAL_OF(hook, cuMemPoolCreate)(pool, props);
    if (!gated || result != CUDA_SUCCESS)
        return result;
    if (props->location.type >= CU_MEM_LOCATION_TYPE_HOST &&
        props->location.type <= CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT)
        pool_excuse(*pool);
    return result;
}

/* Another pool may get the handle as soon as the driver has it back. */
CUresult on_mem_pool_destroy(enum hook_index hook, CUmemoryPool handle) {
    if (!launch_gated())
        return REAL_OF(hook, cuMemPoolDestroy)(handle);
    pool_current_changed();
    int pool = pool_known(handle);
    pool_close(pool);
    CUresult result = REAL_OF(hook, cuMemPoolDestroy)(handle);
    pool_current_changed(); /* somebody may have asked meanwhile */
    if (result == CUDA_SUCCESS)
        pool_gone(pool);
    else
        pool_reopen(pool, handle);
    return result;
}

CUresult on_mem_pool_trim(enum hook_index hook, CUmemoryPool handle, size_t keep) {
    bool gated = launch_gated();
    CUresult result = REAL_OF(hook, cuMemPoolTrimTo)(handle, keep);
    if (gated && result == CUDA_SUCCESS)
        pool_look(pool_known(handle));
    return result;
}

CUresult on_device_set_mem_pool(enum hook_index hook, CUdevice device, CUmemoryPool pool) {
    bool gated = launch_gated();
    CUresult result = REAL_OF(hook, cuDeviceSetMemPool)(device, pool);
    if (gated)
        pool_current_changed();
    return result;
}

CUresult on_mem_set_mem_pool(enum hook_index hook, CUmemLocation *location, int type,
                             CUmemoryPool pool) {
    bool gated = launch_gated();
    CUresult result = REAL_OF(hook, cuMemSetMemPool)(location, type, pool);
    if (gated)
        pool_current_changed();
    return result;
}

/* ---- what the program sees ---------------------------------------------------------------------
 */

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
        quota_trim();
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
