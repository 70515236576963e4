/* An online service on the simulated GPU, or a real one: requests of one kernel each, at times that
 * nobody can foresee:
 *   bench_online REQUESTS KERNEL_US PAUSE_US
 * Pauses are of once to twice that length. Prints, for each request, when its launch was called
 * (ns of CLOCK_MONOTONIC), and when its end was known. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "cuda_types.h"

/* Spins on the clock of the GPU. */
static const char ptx[] = ".version 7.0\n"
                          ".target sm_70\n"
                          ".address_size 64\n"
                          "// simgpu: duration_ns=param0 sm_pct=50\n"
                          ".visible .entry serve(.param .u64 duration_ns)\n"
                          "{\n"
                          "    .reg .pred %p<2>;\n"
                          "    .reg .b64 %rd<6>;\n"
                          "    ld.param.u64 %rd1, [duration_ns];\n"
                          "    mov.u64 %rd2, %globaltimer;\n"
                          "    add.u64 %rd3, %rd2, %rd1;\n"
                          "again:\n"
                          "    mov.u64 %rd4, %globaltimer;\n"
                          "    setp.lt.u64 %p1, %rd4, %rd3;\n"
                          "    @%p1 bra again;\n"
                          "    ret;\n"
                          "}\n";

typedef CUresult launch_function(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned,
                                 unsigned, unsigned, CUstream, void **, void **);

static void *library;

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static void *look_up(const char *name) {
    void *function = dlsym(library, name);
    if (function == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
    return function;
}

static void check(CUresult result, const char *call) {
    if (result != CUDA_SUCCESS) {
        fprintf(stderr, "%s: %d\n", call, result);
        exit(3);
    }
}

#define CALL(name, type, ...) check(((CUresult(*) type)look_up(#name))(__VA_ARGS__), #name)

int main(int arguments, char **argument) {
    if (arguments != 4)
        return 2;
    int requests = atoi(argument[1]);
    uint64_t kernel_ns = strtoull(argument[2], NULL, 10) * 1000;
    int64_t pause_ns = atol(argument[3]) * 1000;
    library = dlopen("libcuda.so.1", RTLD_NOW);
    CUdevice device;
    CUcontext context;
    CUfunction serve;
    CUstream stream;
    void *module;
    CALL(cuInit, (unsigned), 0);
    CALL(cuDeviceGet, (CUdevice *, int), &device, 0);
    CALL(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice), &context, device);
    CALL(cuCtxSetCurrent, (CUcontext), context);
    CALL(cuModuleLoadData, (void **, const void *), &module, ptx);
    CALL(cuModuleGetFunction, (CUfunction *, void *, const char *), &serve, module, "serve");
    CALL(cuStreamCreate, (CUstream *, unsigned), &stream, 1);
    launch_function *launch = look_up("cuLaunchKernel");
    CUresult (*synchronize)(CUstream) = look_up("cuStreamSynchronize");
    void *parameters[] = {&kernel_ns};
    srand(1);
    for (int i = 0; i < requests; i++) {
        int64_t nap_ns = pause_ns + rand() % pause_ns;
        nanosleep(&(struct timespec){nap_ns / 1000000000, nap_ns % 1000000000}, NULL);
        int64_t called_ns = now_ns();
        check(launch(serve, 1, 1, 1, 32, 1, 1, 0, stream, parameters, NULL), "cuLaunchKernel");
        check(synchronize(stream), "cuStreamSynchronize");
        printf("%lld %lld\n", (long long)called_ns, (long long)now_ns());
    }
    return 0;
}
