/* Launches kernels of the stub driver and says what that took:
 *   program_launches LAUNCHES DURATION_NS [sync] [threads=N] [streams=N]
 * Prints one line: ns per launch, seconds in all, calls to the driver per launch beyond the launch.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda_types.h"

typedef CUresult launch_function(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned,
                                 unsigned, unsigned, CUstream, void **, void **);

static void *library;
static long launches;
static uintptr_t duration_ns;
static int synchronous, threads = 1, streams = 1;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void *look_up(const char *name) {
    void *function = dlsym(library, name);
    if (function == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
    return function;
}

static void *work(void *context) {
    launch_function *launch = look_up("cuLaunchKernel");
    CUresult (*set_current)(CUcontext) = look_up("cuCtxSetCurrent");
    CUresult (*create)(CUstream *, unsigned) = look_up("cuStreamCreate");
    CUresult (*synchronize)(CUstream) = look_up("cuStreamSynchronize");
    CUstream own[16] = {NULL};
    set_current(context);
    for (int i = 0; i < streams && (streams > 1 || threads > 1); i++)
        create(&own[i], 1);
    for (long i = 0; i < launches; i++) {
        CUstream stream = own[i % streams];
        if (launch((CUfunction)duration_ns, 1, 1, 1, 32, 1, 1, 0, stream, NULL, NULL) != 0)
            exit(3);
        if (synchronous)
            synchronize(stream);
    }
    for (int i = 0; i < streams; i++)
        synchronize(own[i]);
    return NULL;
}

int main(int count, char **arguments) {
    launches = atol(arguments[1]);
    duration_ns = strtoul(arguments[2], NULL, 10);
    for (int i = 3; i < count; i++) {
        synchronous |= strcmp(arguments[i], "sync") == 0;
        sscanf(arguments[i], "threads=%d", &threads);
        sscanf(arguments[i], "streams=%d", &streams);
    }
    library = dlopen("libcuda.so.1", RTLD_NOW);
    CUresult (*retain)(CUcontext *, CUdevice) = look_up("cuDevicePrimaryCtxRetain");
    uint64_t (*calls)(void) = look_up("stub_calls");
    CUcontext context;
    if (retain(&context, 0) != 0)
        return 3;
    uint64_t before = calls();
    double start = now();
    pthread_t thread[16];
    for (int i = 1; i < threads; i++)
        pthread_create(&thread[i], NULL, work, context);
    work(context);
    for (int i = 1; i < threads; i++)
        pthread_join(thread[i], NULL);
    double took = now() - start;
    double all = (double)launches * threads;
    printf("%.1f %.4f %.4f\n", took / (double)launches * 1e9, took,
           (double)(calls() - before) / all - 1);
    return 0;
}
