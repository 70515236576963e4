/* Takes and gives back memory of the stub driver:
 *   program_allocations PAIRS LIVE
 * So many times, in `pairs`, with so many other allocations about. */
#include <dlfcn.h>
#include <stdlib.h>

#include "cuda_types.h"

static CUresult (*allocate)(CUdeviceptr *, size_t);
static CUresult (*release)(CUdeviceptr);

__attribute__((noinline)) void pairs(long count);

void pairs(long count) {
    for (long i = 0; i < count; i++) {
        CUdeviceptr address;
        if (allocate(&address, 4096) != 0 || release(address) != 0)
            exit(3);
    }
}

int main(int count, char **arguments) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (count != 3 || library == NULL)
        return 2;
    allocate = (CUresult (*)(CUdeviceptr *, size_t))dlsym(library, "cuMemAlloc_v2");
    release = (CUresult (*)(CUdeviceptr))dlsym(library, "cuMemFree_v2");
    for (long i = 0; i < atol(arguments[2]); i++) {
        CUdeviceptr address;
        if (allocate(&address, 4096) != 0)
            return 3;
    }
    pairs(1000); /* what is done at first only */
    pairs(atol(arguments[1]));
    return 0;
}
