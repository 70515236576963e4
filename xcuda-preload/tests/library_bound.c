/* A library that is linked with the driver, and tells what it found when it was loaded. */
#include <dlfcn.h>

#include "cuda_types.h"

#define EXPORT __attribute__((visibility("default")))

extern CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned,
                               unsigned, unsigned, CUstream, void **, void **);

EXPORT void *bound_launch(void) {
    return (void *)cuLaunchKernel;
}

EXPORT void *bound_dlsym(void) {
    return (void *)dlsym;
}
