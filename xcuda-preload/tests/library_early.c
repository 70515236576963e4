/* A library that uses CUDA before main and after it. Preloaded behind another library, it is begun
 * before that one. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "cuda_types.h"

static const char ptx[] = ".version 7.0\n.target sm_70\n.address_size 64\n"
                          "// simgpu: duration_ns=1000\n.visible .entry early() { ret; }\n";

static void *library;
static CUfunction kernel;

static void check(CUresult result, const char *call) {
    if (result == CUDA_SUCCESS)
        return;
    fprintf(stderr, "%s: %d\n", call, result);
    _Exit(1);
}

#define CALL(name, type, ...) check(((CUresult(*) type)dlsym(library, #name))(__VA_ARGS__), #name)

static void launch(void) {
    CALL(cuLaunchKernel,
         (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
          CUstream, void **, void **),
         kernel, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL);
    CALL(cuCtxSynchronize, (void));
}

__attribute__((constructor)) static void begin(void) {
    CUcontext context;
    void *module;
    library = dlopen("libcuda.so.1", RTLD_NOW);
    CALL(cuInit, (unsigned), 0);
    CALL(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice), &context, 0);
    CALL(cuCtxSetCurrent, (CUcontext), context);
    CALL(cuModuleLoadData, (void **, const void *), &module, ptx);
    CALL(cuModuleGetFunction, (CUfunction *, void *, const char *), &kernel, module, "early");
    launch();
}

__attribute__((destructor)) static void end(void) {
    launch();
}
