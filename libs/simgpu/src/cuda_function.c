/* Functions, and kernels of libraries: what is known of them. */
#include "cuda_module.h"

static CUresult check_function(CUfunction function, const void *out) {
    CUresult result = enter();
    if (result)
        return result;
    if (!object_is(OBJECT_KERNEL, function))
        return CUDA_ERROR_INVALID_HANDLE;
    return out ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUDA_API CUresult cuFuncGetModule(CUmodule *module, CUfunction function) {
    CUresult result = check_function(function, module);
    if (result == CUDA_SUCCESS)
        *module = function->module;
    return result;
}

CUDA_API CUresult cuFuncGetName(const char **name, CUfunction function) {
    CUresult result = check_function(function, name);
    if (result == CUDA_SUCCESS)
        *name = function->name;
    return result;
}

CUDA_API CUresult cuKernelGetName(const char **name, CUkernel kernel) {
    return cuFuncGetName(name, kernel);
}

CUDA_API CUresult cuFuncGetParamInfo(CUfunction function, size_t index, size_t *offset,
                                     size_t *size) {
    CUresult result = check_function(function, offset);
    if (result)
        return result;
    if (index >= function->param_count)
        return CUDA_ERROR_INVALID_VALUE;
    *offset = function->param_offset[index];
    if (size)
        *size = function->param_size[index];
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuKernelGetParamInfo(CUkernel kernel, size_t index, size_t *offset,
                                       size_t *size) {
    return cuFuncGetParamInfo(kernel, index, offset, size);
}

CUDA_API CUresult cuFuncIsLoaded(int *state, CUfunction function) {
    CUresult result = check_function(function, state);
    if (result == CUDA_SUCCESS)
        *state = 1;
    return result;
}

CUDA_API CUresult cuFuncLoad(CUfunction function) {
    return check_function(function, function);
}

CUDA_API CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute,
                                     CUfunction function) {
    CUresult result = check_function(function, value);
    if (result)
        return result;
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        *value = 1024;
        break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
    case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
    case CU_FUNC_ATTRIBUTE_CACHE_MODE_CA:
        *value = 0;
        break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
        *value = 32;
        break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
        *value = 70;
        break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        *value = function->max_dynamic_shared;
        break;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
        *value = function->carveout;
        break;
    default:
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute,
                                     int value) {
    CUresult result = check_function(function, function);
    if (result)
        return result;
    if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        if (value < 0 || value > 227 * 1024)
            return CUDA_ERROR_INVALID_VALUE;
        function->max_dynamic_shared = value;
        return CUDA_SUCCESS;
    }
    if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) {
        if (value < -1 || value > 100)
            return CUDA_ERROR_INVALID_VALUE;
        function->carveout = value;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUDA_API CUresult cuKernelGetAttribute(int *value, CUfunction_attribute attribute, CUkernel kernel,
                                       CUdevice device) {
    struct gpu *gpu;
    CUresult result = gpu_of(device, &gpu);
    return result ? result : cuFuncGetAttribute(value, attribute, kernel);
}

CUDA_API CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel,
                                       CUdevice device) {
    struct gpu *gpu;
    CUresult result = gpu_of(device, &gpu);
    return result ? result : cuFuncSetAttribute(kernel, attribute, value);
}

CUDA_API CUresult cuFuncSetCacheConfig(CUfunction function, int config) {
    CUresult result = check_function(function, function);
    if (result)
        return result;
    return config < 0 || config > 3 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUDA_API CUresult cuKernelSetCacheConfig(CUkernel kernel, int config, CUdevice device) {
    (void)device;
    return cuFuncSetCacheConfig(kernel, config);
}

CUDA_API CUresult cuKernelGetFunction(CUfunction *function, CUkernel kernel) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!object_is(OBJECT_KERNEL, kernel))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!function)
        return CUDA_ERROR_INVALID_VALUE;
    *function = kernel;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuKernelGetLibrary(CUlibrary *library, CUkernel kernel) {
    CUresult result = enter();
    if (result)
        return result;
    if (!object_is(OBJECT_KERNEL, kernel))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!library)
        return CUDA_ERROR_INVALID_VALUE;
    *library = kernel->module;
    return CUDA_SUCCESS;
}
