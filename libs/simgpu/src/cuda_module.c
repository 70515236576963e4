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
