/* Physical memory (cuMemCreate): it is free when its last handle and its last mapping are gone. A
 * handle's number may be used again while mappings of the old memory remain, so the memory has an
 * entry of its own, with a number of ours. */
#include "driver.h"
#include "job.h"
#include "launch.h"
#include "quota.h"

/* Mappings lie on such borders at least. */
#define LEAST_GRANULARITY UINT64_C(65536)

static uint64_t next_object = 1; /* under the ledger's lock */

static bool on_device(const CUmemAllocationProp *prop) {
    return prop != NULL && (prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE ||
                            prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE_LOCALITY_DOMAIN);
}

/* One reference less. Returns the bytes that this frees. */
static uint64_t drop(struct ledger *ledger, uint64_t object) {
    struct ledger_entry *entry = ledger_find(ledger, LEDGER_OBJECT, object), gone;
    if (entry == NULL || --entry->references > 0)
        return 0;
    return ledger_take(ledger, LEDGER_OBJECT, object, &gone) ? gone.bytes : 0;
}

/* A handle or mapping that was there under the same name has gone unseen. Returns the bytes that
 * this frees. */
static uint64_t note(struct ledger *ledger, const struct ledger_entry *entry) {
    struct ledger_entry gone;
    ledger_add(ledger, entry, &gone);
    uint32_t references =
        gone.kind == LEDGER_HANDLE ? gone.references : gone.kind != LEDGER_NOTHING;
    uint64_t freed_bytes = 0;
    while (references-- > 0)
        freed_bytes += drop(ledger, gone.object);
    return freed_bytes;
}

CUresult on_mem_create(enum hook_index hook, CUmemGenericAllocationHandle *handle, size_t bytes,
                       const CUmemAllocationProp *prop, unsigned long long flags) {
    if (!launch_gated() || !on_device(prop))
        return REAL_OF(hook, cuMemCreate)(handle, bytes, prop, flags);
    if (!quota_take(bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = REAL_OF(hook, cuMemCreate)(handle, bytes, prop, flags);
    if (result != CUDA_SUCCESS) {
        quota_give(bytes);
        job_note_result(hook, result);
        return result;
    }
    struct ledger *ledger = quota_lock();
    uint64_t object = next_object++;
    note(ledger, &(struct ledger_entry){
                     .kind = LEDGER_OBJECT, .key = object, .references = 1, .bytes = bytes});
    uint64_t freed_bytes =
        note(ledger, &(struct ledger_entry){
                         .kind = LEDGER_HANDLE, .key = *handle, .references = 1, .object = object});
    quota_unlock();
    if (freed_bytes > 0)
        quota_give(freed_bytes);
    return result;
}

static void add_reference(struct ledger *ledger, uint64_t object) {
    struct ledger_entry *entry = ledger_find(ledger, LEDGER_OBJECT, object);
    if (entry != NULL)
        entry->references++;
}

/* The handle is taken out first, as its number may be another's as soon as the driver has it back.
 */
CUresult on_mem_release(enum hook_index hook, CUmemGenericAllocationHandle handle) {
    if (!launch_gated())
        return REAL_OF(hook, cuMemRelease)(handle);
    struct ledger *ledger = quota_lock();
    struct ledger_entry *entry = ledger_find(ledger, LEDGER_HANDLE, handle), taken = {.key = 0};
    bool known = entry != NULL;
    if (known && --entry->references == 0)
        ledger_take(ledger, LEDGER_HANDLE, handle, &taken);
    else if (known)
        taken = *entry;
    quota_unlock();

    CUresult result = REAL_OF(hook, cuMemRelease)(handle);
    if (!known)
        return result;
    uint64_t freed_bytes = 0;
    ledger = quota_lock();
    if (result == CUDA_SUCCESS) {
        freed_bytes = drop(ledger, taken.object);
    } else if ((entry = ledger_find(ledger, LEDGER_HANDLE, handle)) != NULL) {
        entry->references++;
    } else {
        taken.references = 1;
        note(ledger, &taken);
    }
    quota_unlock();
    quota_give(freed_bytes);
    return result;
}

/* The mapping that an address lies in. Asked for seldom: it may take long. */
static const struct ledger_entry *mapping_around(const struct ledger *ledger, uint64_t address) {
    for (uint64_t i = 0; i < ledger->capacity; i++) {
        const struct ledger_entry *entry = &ledger->entries[i];
        if (entry->kind == LEDGER_MAPPING && address >= entry->key &&
            address - entry->key < entry->references * LEAST_GRANULARITY)
            return entry;
    }
    return NULL;
}

static void add_handle(struct ledger *ledger, CUmemGenericAllocationHandle handle,
                       uint64_t object) {
    struct ledger_entry *entry = ledger_find(ledger, LEDGER_HANDLE, handle);
    if (entry != NULL)
        entry->references++;
    else
        note(ledger, &(struct ledger_entry){
                         .kind = LEDGER_HANDLE, .key = handle, .references = 1, .object = object});
    add_reference(ledger, object);
}

/* Gives another reference to the handle of what is mapped at an address, or a handle again if the
 * last one was released. */
CUresult on_mem_retain(enum hook_index hook, CUmemGenericAllocationHandle *handle, void *address) {
    bool gated = launch_gated();
    CUresult result = REAL_OF(hook, cuMemRetainAllocationHandle)(handle, address);
    if (!gated || result != CUDA_SUCCESS)
        return result;
    struct ledger *ledger = quota_lock();
    const struct ledger_entry *mapping = mapping_around(ledger, (uint64_t)(uintptr_t)address);
    if (mapping != NULL)
        add_handle(ledger, *handle, mapping->object);
    quota_unlock();
    return result;
}

/* Memory of others is charged to them. The process's own may come back under a handle that it has:
 * that one then has to be released once more. */
CUresult on_mem_import(enum hook_index hook, CUmemGenericAllocationHandle *handle, void *shareable,
                       int type) {
    bool gated = launch_gated();
    CUresult result = REAL_OF(hook, cuMemImportFromShareableHandle)(handle, shareable, type);
    if (!gated || result != CUDA_SUCCESS)
        return result;
    struct ledger *ledger = quota_lock();
    const struct ledger_entry *known = ledger_find(ledger, LEDGER_HANDLE, *handle);
    if (known != NULL)
        add_handle(ledger, *handle, known->object);
    quota_unlock();
    return result;
}

CUresult on_mem_map(enum hook_index hook, CUdeviceptr address, size_t bytes, size_t offset,
                    CUmemGenericAllocationHandle handle, unsigned long long flags) {
    bool gated = launch_gated();
    CUresult result = REAL_OF(hook, cuMemMap)(address, bytes, offset, handle, flags);
    if (!gated || result != CUDA_SUCCESS)
        return result;
    uint64_t freed_bytes = 0;
    struct ledger *ledger = quota_lock();
    struct ledger_entry *entry = ledger_find(ledger, LEDGER_HANDLE, handle);
    if (entry != NULL) {
        uint64_t object = entry->object;
        add_reference(ledger, object);
        /* `references` of a mapping is its extent, in units of the granularity. */
        freed_bytes =
            note(ledger, &(struct ledger_entry){.kind = LEDGER_MAPPING,
                                                .key = address,
                                                .references = (uint32_t)(bytes / LEAST_GRANULARITY),
                                                .object = object});
    }
    quota_unlock();
    if (freed_bytes > 0)
        quota_give(freed_bytes);
    return result;
}

/* One call may undo many mappings that lie side by side. */
CUresult on_mem_unmap(enum hook_index hook, CUdeviceptr address, size_t bytes) {
    bool gated = launch_gated();
    CUresult result = REAL_OF(hook, cuMemUnmap)(address, bytes);
    if (!gated || result != CUDA_SUCCESS)
        return result;
    uint64_t freed_bytes = 0;
    struct ledger *ledger = quota_lock();
    for (uint64_t at = address; at < address + bytes;) {
        struct ledger_entry mapping;
        bool known = ledger_take(ledger, LEDGER_MAPPING, at, &mapping);
        if (known)
            freed_bytes += drop(ledger, mapping.object);
        at += known && mapping.references > 0 ? mapping.references * LEAST_GRANULARITY
                                              : LEAST_GRANULARITY;
    }
    quota_unlock();
    quota_give(freed_bytes);
    return result;
}
