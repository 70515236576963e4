/* A tracer that stands in front of a call of the driver, and of dlsym itself, and finds what is
 * behind it as such libraries do. Preloaded before libxcuda.so, or after it. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>

#include "cuda_types.h"

#define EXPORT __attribute__((visibility("default")))

typedef void *dlsym_function(void *, const char *);

static dlsym_function *next_dlsym(void) {
    static const char *const versions[] = {"GLIBC_2.34", "GLIBC_2.2.5", "GLIBC_2.17"};
    static dlsym_function *known;
    for (int i = 0; known == NULL && i < 3; i++)
        known = (dlsym_function *)dlvsym(RTLD_NEXT, "dlsym", versions[i]);
    return known;
}

EXPORT void *dlsym(void *handle, const char *name) {
    static _Thread_local int depth;
    if (++depth > 8)
        abort(); /* the next one was this one */
    void *found = next_dlsym()(handle, name);
    depth--;
    return found;
}

EXPORT _Atomic uint64_t traced_launches;

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned int x, unsigned int y, unsigned int z,
                               unsigned int block_x, unsigned int block_y, unsigned int block_z,
                               unsigned int shared, CUstream stream, void **parameters,
                               void **extra) {
    static _Thread_local int depth;
    if (++depth > 1)
        abort();
    CUresult (*next)(CUfunction, unsigned int, unsigned int, unsigned int, unsigned int,
                     unsigned int, unsigned int, unsigned int, CUstream, void **, void **) =
        next_dlsym()(RTLD_NEXT, "cuLaunchKernel");
    traced_launches++;
    CUresult result =
        next(function, x, y, z, block_x, block_y, block_z, shared, stream, parameters, extra);
    depth--;
    return result;
}
