/* Launches in each of the ways that there are, for a count of the instructions that it takes:
 *   program_calls LAUNCHES DURATION_NS
 * Each way is taken a thousand times first. The launches that count are made in `counted`, which is
 * called once for each way; the names of the ways are printed in the same order. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "cuda_types.h"

static void *library;
static uintptr_t duration_ns;
static CUresult failure;

static void *look_up(const char *name) {
    void *function = dlsym(library, name);
    if (function == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
    return function;
}

typedef CUresult kernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                        unsigned, CUstream, void **, void **);
typedef CUresult cooperative_kernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned,
                                    unsigned, unsigned, CUstream, void **);
typedef CUresult kernel_ex(const CUlaunchConfig *, CUfunction, void **, void **);
typedef CUresult graph(CUgraphExec, CUstream);
typedef CUresult copy(CUdeviceptr, CUdeviceptr, size_t, CUstream);
typedef CUresult set(CUdeviceptr, unsigned, size_t, CUstream);

static void launch_kernel(void *function, long count) {
    for (long i = 0; i < count; i++)
        failure |=
            ((kernel *)function)((CUfunction)duration_ns, 4, 3, 2, 32, 1, 1, 0, NULL, NULL, NULL);
}

/* Two kernels in turn. */
static void launch_kernels(void *function, long count) {
    for (long i = 0; i < count; i++)
        failure |= ((kernel *)function)((CUfunction)duration_ns, 4 + i % 2, 3, 2, 32, 1, 1, 0, NULL,
                                        NULL, NULL);
}

static void launch_cooperative_kernel(void *function, long count) {
    for (long i = 0; i < count; i++)
        failure |= ((cooperative_kernel *)function)((CUfunction)duration_ns, 4, 3, 2, 32, 1, 1, 0,
                                                    NULL, NULL);
}

static void launch_kernel_ex(void *function, long count) {
    CUlaunchConfig config = {.gridDimX = 4, .gridDimY = 3, .gridDimZ = 2};
    for (long i = 0; i < count; i++)
        failure |= ((kernel_ex *)function)(&config, (CUfunction)duration_ns, NULL, NULL);
}

static void launch_graph(void *function, long count) {
    for (long i = 0; i < count; i++)
        failure |= ((graph *)function)((CUgraphExec)duration_ns, NULL);
}

static void launch_copy(void *function, long count) {
    for (long i = 0; i < count; i++)
        failure |= ((copy *)function)(0, 0, 4096, NULL);
}

static void launch_set(void *function, long count) {
    for (long i = 0; i < count; i++)
        failure |= ((set *)function)(0, 0, 4096, NULL);
}

__attribute__((noinline)) void counted(void (*way)(void *, long), void *function, long count) {
    way(function, count);
}

int main(int count, char **arguments) {
    long launches = count > 2 ? atol(arguments[1]) : 0;
    duration_ns = count > 2 ? strtoul(arguments[2], NULL, 10) : 1;
    library = dlopen("libcuda.so.1", RTLD_NOW);
    CUresult (*retain)(CUcontext *, CUdevice) = look_up("cuDevicePrimaryCtxRetain");
    CUresult (*set_current)(CUcontext) = look_up("cuCtxSetCurrent");
    CUcontext context;
    if (retain(&context, 0) != 0 || set_current(context) != 0)
        return 3;
    const struct {
        const char *name;
        void (*way)(void *, long);
    } ways[] = {
        {"cuLaunchKernel", launch_kernel},
        {"cuLaunchKernel", launch_kernels},
        {"cuLaunchKernel_ptsz", launch_kernel},
        {"cuLaunchKernelEx", launch_kernel_ex},
        {"cuLaunchKernelEx_ptsz", launch_kernel_ex},
        {"cuLaunchCooperativeKernel", launch_cooperative_kernel},
        {"cuGraphLaunch", launch_graph},
        {"cuGraphLaunch_ptsz", launch_graph},
        {"cuMemcpyDtoDAsync_v2", launch_copy},
        {"cuMemcpyDtoDAsync_v2_ptsz", launch_copy},
        {"cuMemsetD32Async", launch_set},
    };
    for (unsigned i = 0; i < sizeof ways / sizeof *ways; i++) {
        void *function = look_up(ways[i].name);
        ways[i].way(function, 1000);
        counted(ways[i].way, function, launches);
        puts(ways[i].name);
    }
    return failure == 0 ? 0 : 3;
}
