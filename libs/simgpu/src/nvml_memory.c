/* How much memory there is, and how much is taken. */
#include "nvml_state.h"

static nvmlMemory_v2_t read_memory(nvmlDevice_t device) {
    simgpu_lock(&device->gpu);
    uint64_t used = device->gpu.device->memory_used_bytes;
    simgpu_unlock(&device->gpu);
    const struct simgpu_kind *kind = &device->gpu.device->kind;
    uint64_t available = kind->memory_bytes - kind->reserved_bytes;
    if (used > available)
        used = available;
    return (nvmlMemory_v2_t){
        .version = NVML_STRUCT_VERSION(nvmlMemory_v2_t, 2),
        .total = kind->memory_bytes,
        .reserved = kind->reserved_bytes,
        .free = available - used,
        .used = used,
    };
}

/* The first version counts what the driver reserves as used. */
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    nvmlReturn_t result = nvml_check(device, memory);
    if (result != NVML_SUCCESS)
        return result;
    nvmlMemory_v2_t now = read_memory(device);
    *memory = (nvmlMemory_t){
        .total = now.total,
        .free = now.free,
        .used = now.used + now.reserved,
    };
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    nvmlReturn_t result = nvml_check(device, memory);
    if (result != NVML_SUCCESS)
        return result;
    if (memory->version != NVML_STRUCT_VERSION(nvmlMemory_v2_t, 2))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    *memory = read_memory(device);
    return NVML_SUCCESS;
}

/* The model maps nothing through BAR1. */
nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *memory) {
    nvmlReturn_t result = nvml_check(device, memory);
    if (result != NVML_SUCCESS)
        return result;
    *memory = (nvmlBAR1Memory_t){
        .bar1Total = device->kind->bar1_bytes,
        .bar1Free = device->kind->bar1_bytes,
    };
    return NVML_SUCCESS;
}
