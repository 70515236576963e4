/* Devices: what can be asked of them without a context. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cuda_driver.h"

static CUresult enter_device(CUdevice device, struct gpu **gpu, const void *out) {
    CUresult result = enter();
    result = result ? result : gpu_of(device, gpu);
    return result || out ? result : CUDA_ERROR_INVALID_VALUE;
}

static const struct simgpu_kind *kind_of(const struct gpu *gpu) {
    return &gpu->shared.device->kind;
}

CUDA_API CUresult cuDeviceGetCount(int *count) {
    CUresult result = enter();
    if (result)
        return result;
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    *count = driver.gpu_count;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    struct gpu *gpu;
    CUresult result = enter_device(ordinal, &gpu, device);
    if (result == CUDA_SUCCESS)
        *device = ordinal;
    return result;
}

CUDA_API CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    struct gpu *gpu;
    CUresult result = enter_device(device, &gpu, name);
    if (result)
        return result;
    if (length <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    snprintf(name, (size_t)length, "%s", kind_of(gpu)->product);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    struct gpu *gpu;
    CUresult result = enter_device(device, &gpu, uuid);
    if (result == CUDA_SUCCESS)
        memcpy(uuid->bytes, gpu->shared.device->uuid, sizeof uuid->bytes);
    return result;
}

CUDA_API CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) {
    return cuDeviceGetUuid_v2(uuid, device);
}

CUDA_API CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    struct gpu *gpu;
    CUresult result = enter_device(device, &gpu, bytes);
    if (result == CUDA_SUCCESS)
        *bytes = kind_of(gpu)->memory_bytes - kind_of(gpu)->reserved_bytes;
    return result;
}

CUDA_API CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device) {
    struct gpu *gpu;
    CUresult result = enter_device(device, &gpu, major);
    if (result)
        return result;
    *major = (int)kind_of(gpu)->compute_major;
    if (minor)
        *minor = (int)kind_of(gpu)->compute_minor;
    return CUDA_SUCCESS;
}

/* A device sits alone on bus 1 + its index. */
CUDA_API CUresult cuDeviceGetPCIBusId(char *id, int length, CUdevice device) {
    struct gpu *gpu;
    CUresult result = enter_device(device, &gpu, id);
    if (result)
        return result;
    if (length < 13)
        return CUDA_ERROR_INVALID_VALUE;
    snprintf(id, (size_t)length, "0000:%02X:00.0", gpu->index + 1);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDeviceGetByPCIBusId(CUdevice *device, const char *id) {
    CUresult result = enter();
    if (result)
        return result;
    if (!device || !id)
        return CUDA_ERROR_INVALID_VALUE;
    for (int i = 0; i < driver.gpu_count; i++) {
        char its[16];
        cuDeviceGetPCIBusId(its, sizeof its, i);
        if (strcasecmp(id, its) == 0 ||
            strcasecmp(id, its + 5) == 0) { /* the domain may be left out */
            *device = i;
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_INVALID_DEVICE;
}

static CUresult attribute_of(const struct gpu *gpu, CUdevice_attribute attribute, int *value) {
    const struct simgpu_kind *kind = kind_of(gpu);
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y:
        *value = 1024;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z:
        *value = 64;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X:
        *value = 0x7fffffff;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z:
        *value = 65535;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
        *value = 48 * 1024;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
        *value = (int)(kind->shared_per_sm_bytes - (kind->compute_major >= 8 ? 1024 : 0));
        break;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK:
        *value = kind->compute_major >= 8 ? 1024 : 0;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
        *value = (int)kind->shared_per_sm_bytes;
        break;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR:
        *value = 65536;
        break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
        *value = 32;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_PITCH:
        *value = 0x7fffffff;
        break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
        *value = (int)kind->boost_mhz * 1000;
        break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
        *value = (int)kind->memory_mhz * 1000;
        break;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT:
        *value = 512;
        break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
        *value = (int)kind->sm_count;
        break;
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID:
        *value = (int)gpu->index + 1;
        break;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH:
        *value = (int)kind->bus_width_bits;
        break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
        *value = (int)kind->l2_bytes;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
        *value = (int)kind->threads_per_sm;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR:
        *value = (int)kind->blocks_per_sm;
        break;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT:
        *value = 3;
        break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
        *value = (int)kind->compute_major;
        break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        *value = (int)kind->compute_minor;
        break;
    case CU_DEVICE_ATTRIBUTE_MPS_ENABLED: {
        const char *pipe = getenv("CUDA_MPS_PIPE_DIRECTORY");
        uint64_t hash = simgpu_path_hash(pipe ? pipe : "/tmp/nvidia-mps");
        *value = simgpu_mps_find(gpu->shared.device, hash) != SIMGPU_NONE;
        break;
    }
    case CU_DEVICE_ATTRIBUTE_GPU_OVERLAP:
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_ECC_ENABLED:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS:
    case CU_DEVICE_ATTRIBUTE_COMPUTE_PREEMPTION_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
    case CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_MEM_OPS_V1:
    case CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS_V1:
    case CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED:
        *value = 1;
        break;
    default: /* what the simulated device does not have */
        if (attribute < 1 || attribute > 161)
            return CUDA_ERROR_INVALID_VALUE;
        *value = 0;
    }
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    struct gpu *gpu;
    CUresult result = enter_device(device, &gpu, value);
    return result ? result : attribute_of(gpu, attribute, value);
}

CUDA_API CUresult cuDeviceGetProperties(CUdevprop *properties, CUdevice device) {
    struct gpu *gpu;
    CUresult result = enter_device(device, &gpu, properties);
    if (result)
        return result;
    *properties = (CUdevprop){.maxThreadsPerBlock = 1024,
                              .maxThreadsDim = {1024, 1024, 64},
                              .maxGridSize = {0x7fffffff, 65535, 65535},
                              .sharedMemPerBlock = 48 * 1024,
                              .totalConstantMemory = 65536,
                              .SIMDWidth = 32,
                              .memPitch = 0x7fffffff,
                              .regsPerBlock = 65536,
                              .clockRate = (int)kind_of(gpu)->boost_mhz * 1000,
                              .textureAlign = 512};
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDeviceGetExecAffinitySupport(int *supported, int type, CUdevice device) {
    struct gpu *gpu;
    CUresult result = enter_device(device, &gpu, supported);
    if (result == CUDA_SUCCESS)
        *supported = type == 0;
    return result;
}

/* Devices of a simulated machine have no link to one another. */
CUDA_API CUresult cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer) {
    struct gpu *gpu;
    CUresult result = enter_device(device, &gpu, can);
    result = result ? result : gpu_of(peer, &gpu);
    if (result == CUDA_SUCCESS)
        *can = 0;
    return result;
}

CUDA_API CUresult cuDeviceGetP2PAttribute(int *value, int attribute, CUdevice device,
                                          CUdevice peer) {
    struct gpu *gpu;
    CUresult result = enter_device(device, &gpu, value);
    result = result ? result : gpu_of(peer, &gpu);
    if (result)
        return result;
    if (attribute < 1 || attribute > 5 || device == peer)
        return CUDA_ERROR_INVALID_VALUE;
    *value = 0;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned flags) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    return !object_is(OBJECT_CONTEXT, peer) || flags ? CUDA_ERROR_INVALID_VALUE
                                                     : CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
}

CUDA_API CUresult cuCtxDisablePeerAccess(CUcontext peer) {
    struct context *context;
    (void)peer;
    CUresult result = enter_context(&context);
    return result ? result : CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
}

CUDA_API CUresult cuProfilerStart(void) {
    struct context *context;
    return enter_context(&context);
}

CUDA_API CUresult cuProfilerStop(void) {
    struct context *context;
    return enter_context(&context);
}
