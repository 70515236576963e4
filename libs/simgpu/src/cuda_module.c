/* Modules and libraries from PTX text; what is known of their kernels. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cuda_graph.h"

/* --- loading --- */

static void module_free(struct module *module) {
    while (module->kernels) {
        struct kernel *kernel = module->kernels;
        module->kernels = kernel->next;
        free(kernel->params);
        object_free(OBJECT_KERNEL, kernel);
    }
    while (module->globals) {
        struct global *global = module->globals;
        struct block block;
        module->globals = global->next;
        if (global->block.start && block_remove(global->block.start, &block))
            device_free(&block);
        free(global);
    }
    object_free(OBJECT_MODULE, module);
}

static CUresult alloc_globals(struct module *module, struct context *context) {
    CUresult result = CUDA_SUCCESS;
    for (struct global *g = module->globals; g && result == CUDA_SUCCESS; g = g->next)
        if (!g->block.start)
            result = device_alloc(context, g->bytes, BLOCK_DEVICE, &g->block);
    return result;
}

/* Binary code, which cannot be simulated: ELF, or a fat binary with or without its wrapper. */
static bool is_binary(const void *image) {
    static const unsigned magics[] = {0x464c457f, 0xba55ed50, 0x466243b1};
    unsigned magic;
    memcpy(&magic, image, sizeof magic);
    for (size_t i = 0; i < sizeof magics / sizeof magics[0]; i++)
        if (magic == magics[i])
            return true;
    return false;
}

static CUresult load(struct context *context, const void *image, char *log, size_t log_bytes,
                     struct module **loaded) {
    if (!image || !loaded)
        return CUDA_ERROR_INVALID_VALUE;
    if (is_binary(image))
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    struct module *module = object_new(OBJECT_MODULE);
    if (!module)
        return CUDA_ERROR_OUT_OF_MEMORY;
    module->context = context;
    CUresult result = ptx_parse(image, module, log, log_bytes);
    if (result == CUDA_SUCCESS && context)
        result = alloc_globals(module, context);
    if (result) {
        module_free(module);
        return result;
    }
    *loaded = module;
    return CUDA_SUCCESS;
}

/* The file's text with a NUL behind it, or NULL. */
static char *read_text(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (fd < 0)
        return NULL;
    char *text = fstat(fd, &status) == 0 ? malloc((size_t)status.st_size + 4) : NULL;
    ssize_t length = text ? read(fd, text, (size_t)status.st_size) : -1;
    close(fd);
    if (length < 0) {
        free(text);
        return NULL;
    }
    memset(text + length, 0, 4);
    return text;
}

static CUresult load_file(struct context *context, const char *path, struct module **loaded) {
    if (!path)
        return CUDA_ERROR_INVALID_VALUE;
    char *text = read_text(path);
    if (!text)
        return CUDA_ERROR_FILE_NOT_FOUND;
    CUresult result = load(context, text, NULL, 0, loaded);
    free(text);
    return result;
}

struct jit_logs {
    char *errors;
    size_t errors_bytes;
    unsigned errors_size_at;
    bool has_size;
};

static struct jit_logs find_logs(unsigned count, const CUjit_option *options, void **values) {
    struct jit_logs logs = {0};
    for (unsigned i = 0; options && values && i < count; i++) {
        if (options[i] == CU_JIT_ERROR_LOG_BUFFER)
            logs.errors = values[i];
        if (options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) {
            logs.errors_bytes = (unsigned)(uintptr_t)values[i];
            logs.errors_size_at = i;
            logs.has_size = true;
        }
        if (options[i] == CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES)
            values[i] = 0; /* nothing to tell */
    }
    if (!logs.errors)
        logs.errors_bytes = 0;
    return logs;
}

static CUresult load_logged(struct context *context, const void *image, unsigned count,
                            const CUjit_option *options, void **values, struct module **loaded) {
    struct jit_logs logs = find_logs(count, options, values);
    if (logs.errors_bytes)
        logs.errors[0] = 0;
    CUresult result = load(context, image, logs.errors, logs.errors_bytes, loaded);
    if (logs.has_size)
        values[logs.errors_size_at] =
            (void *)(uintptr_t)(logs.errors_bytes ? strlen(logs.errors) : 0);
    return result;
}

CUDA_API CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count,
                                     CUjit_option *options, void **values) {
    struct context *context;
    CUresult result = enter_context(&context);
    return result ? result : load_logged(context, image, count, options, values, module);
}

CUDA_API CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    return cuModuleLoadDataEx(module, image, 0, NULL, NULL);
}

CUDA_API CUresult cuModuleLoadFatBinary(CUmodule *module, const void *image) {
    return cuModuleLoadDataEx(module, image, 0, NULL, NULL);
}

CUDA_API CUresult cuModuleLoad(CUmodule *module, const char *path) {
    struct context *context;
    CUresult result = enter_context(&context);
    return result ? result : load_file(context, path, module);
}

CUDA_API CUresult cuModuleUnload(CUmodule module) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!object_is(OBJECT_MODULE, module) || !module->context)
        return CUDA_ERROR_INVALID_HANDLE;
    result = wait_context(context);
    module_free(module);
    return result;
}

CUDA_API CUresult cuModuleGetLoadingMode(int *mode) {
    CUresult result = enter();
    if (result)
        return result;
    if (!mode)
        return CUDA_ERROR_INVALID_VALUE;
    *mode = 1; /* eager */
    return CUDA_SUCCESS;
}

/* --- what is in a module --- */

static CUresult find_kernel(const struct module *module, const char *name, struct kernel **found) {
    if (!object_is(OBJECT_MODULE, module))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!name || !found)
        return CUDA_ERROR_INVALID_VALUE;
    for (struct kernel *kernel = module->kernels; kernel; kernel = kernel->next)
        if (strcmp(kernel->name, name) == 0) {
            *found = kernel;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_NOT_FOUND;
}

static CUresult enumerate(const struct module *module, struct kernel **kernels, unsigned count) {
    if (!object_is(OBJECT_MODULE, module))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!kernels)
        return CUDA_ERROR_INVALID_VALUE;
    struct kernel *kernel = module->kernels;
    for (unsigned i = 0; i < count && kernel; i++, kernel = kernel->next)
        kernels[i] = kernel;
    return CUDA_SUCCESS;
}

static CUresult find_global(struct module *module, struct context *context, const char *name,
                            CUdeviceptr *address, size_t *bytes) {
    if (!object_is(OBJECT_MODULE, module))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!name)
        return CUDA_ERROR_INVALID_VALUE;
    for (struct global *global = module->globals; global; global = global->next) {
        if (strcmp(global->name, name) != 0)
            continue;
        CUresult result = alloc_globals(module, context);
        if (result)
            return result;
        if (address)
            *address = global->block.start;
        if (bytes)
            *bytes = global->bytes;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_NOT_FOUND;
}

CUDA_API CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    struct context *context;
    CUresult result = enter_context(&context);
    return result ? result : find_kernel(module, name, function);
}

CUDA_API CUresult cuModuleGetFunctionCount(unsigned *count, CUmodule module) {
    CUresult result = enter();
    if (result)
        return result;
    if (!object_is(OBJECT_MODULE, module))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    *count = module->kernel_count;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuModuleEnumerateFunctions(CUfunction *functions, unsigned count,
                                             CUmodule module) {
    CUresult result = enter();
    return result ? result : enumerate(module, functions, count);
}

CUDA_API CUresult cuModuleGetGlobal_v2(CUdeviceptr *address, size_t *bytes, CUmodule module,
                                       const char *name) {
    struct context *context;
    CUresult result = enter_context(&context);
    return result ? result : find_global(module, context, name, address, bytes);
}

/* --- libraries: modules of no context --- */

CUDA_API CUresult cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *options,
                                    void **values, unsigned count, int *library_options,
                                    void **library_values, unsigned library_count) {
    (void)library_options;
    (void)library_values;
    (void)library_count;
    CUresult result = enter();
    return result ? result : load_logged(NULL, code, count, options, values, library);
}

CUDA_API CUresult cuLibraryLoadFromFile(CUlibrary *library, const char *path, CUjit_option *options,
                                        void **values, unsigned count, int *library_options,
                                        void **library_values, unsigned library_count) {
    (void)options;
    (void)values;
    (void)count;
    (void)library_options;
    (void)library_values;
    (void)library_count;
    CUresult result = enter();
    return result ? result : load_file(NULL, path, library);
}

CUDA_API CUresult cuLibraryUnload(CUlibrary library) {
    CUresult result = enter();
    if (result)
        return result;
    if (!object_is(OBJECT_MODULE, library) || library->context)
        return CUDA_ERROR_INVALID_HANDLE;
    module_free(library);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name) {
    CUresult result = enter();
    return result ? result : find_kernel(library, name, kernel);
}

CUDA_API CUresult cuLibraryGetKernelCount(unsigned *count, CUlibrary library) {
    return cuModuleGetFunctionCount(count, library);
}

CUDA_API CUresult cuLibraryEnumerateKernels(CUkernel *kernels, unsigned count, CUlibrary library) {
    return cuModuleEnumerateFunctions(kernels, count, library);
}

CUDA_API CUresult cuLibraryGetModule(CUmodule *module, CUlibrary library) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!object_is(OBJECT_MODULE, library))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!module)
        return CUDA_ERROR_INVALID_VALUE;
    *module = library;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuLibraryGetGlobal(CUdeviceptr *address, size_t *bytes, CUlibrary library,
                                     const char *name) {
    struct context *context;
    CUresult result = enter_context(&context);
    return result ? result : find_global(library, context, name, address, bytes);
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

/* --- functions --- */

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

CUDA_API CUresult cuFuncGetParamCount(CUfunction function, size_t *count) {
    CUresult result = check_function(function, count);
    if (result == CUDA_SUCCESS)
        *count = function->param_count;
    return result;
}

CUDA_API CUresult cuKernelGetParamCount(CUkernel kernel, size_t *count) {
    return cuFuncGetParamCount(kernel, count);
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
