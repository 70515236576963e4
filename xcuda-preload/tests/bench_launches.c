/* Launches on the driver that does nothing (bench_driver.c):
 *   bench_launches CALL LAUNCHES ROUNDS [takes_ns=N] [threads=N]
 * Each thread makes so many launches in each round; a round begins when all threads are there and
 * lasts until the last of them is through. Prints the ns per launch of one thread in the shortest
 * round, and the calls to the driver per launch beyond the launch, of the first thread. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda_types.h"

enum { MOST_THREADS = 8, MOST_ROUNDS = 1000, WARM_LAUNCHES = 2000 };

typedef CUresult launch_function(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned,
                                 unsigned, unsigned, CUstream, void **, void **);

static void *library;
static const char *call;
static void *called;
static uint64_t (*calls)(void);
static CUcontext context;
static long launches;
static unsigned rounds, threads = 1;
static _Atomic unsigned arrived;
static uint64_t counted;
static struct {
    int64_t begin_ns[MOST_ROUNDS], end_ns[MOST_ROUNDS];
} times[MOST_THREADS];

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

static const CUfunction function = (CUfunction)0x1000;

static CUresult kernel(CUstream stream) {
    return ((launch_function *)called)(function, 1, 1, 1, 32, 1, 1, 0, stream, NULL, NULL);
}

static CUresult kernel_ex(CUstream stream) {
    CUlaunchConfig config = {.gridDimX = 1, .gridDimY = 1, .gridDimZ = 1, .hStream = stream};
    return ((CUresult (*)(const CUlaunchConfig *, CUfunction, void **, void **))called)(
        &config, function, NULL, NULL);
}

static CUresult cooperative(CUstream stream) {
    return ((CUresult (*)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                          unsigned, CUstream, void **))called)(function, 1, 1, 1, 32, 1, 1, 0,
                                                               stream, NULL);
}

static CUresult graph(CUstream stream) {
    return ((CUresult (*)(CUgraphExec, CUstream))called)((CUgraphExec)0x2000, stream);
}

static CUresult copy(CUstream stream) {
    return ((CUresult (*)(CUdeviceptr, CUdeviceptr, size_t, CUstream))called)(0x3000, 0x4000, 4096,
                                                                              stream);
}

static CUresult set(CUstream stream) {
    return ((CUresult (*)(CUdeviceptr, unsigned char, size_t, CUstream))called)(0x3000, 0, 4096,
                                                                                stream);
}

static const struct {
    const char *name;
    CUresult (*make)(CUstream stream);
} kinds[] = {
    {"cuLaunchKernel", kernel},      {"cuLaunchKernel_ptsz", kernel},
    {"cuLaunchKernelEx", kernel_ex}, {"cuLaunchCooperativeKernel", cooperative},
    {"cuGraphLaunch", graph},        {"cuMemcpyDtoDAsync_v2", copy},
    {"cuMemsetD8Async", set},
};

static CUresult (*make)(CUstream stream);

static void meet(unsigned round) {
    atomic_fetch_add(&arrived, 1);
    while (atomic_load(&arrived) < threads * (round + 1))
        continue;
}

/* What callgrind counts, by its name. */
__attribute__((noinline)) static void measured_round(CUstream stream) {
    for (long i = 0; i < launches; i++) {
        if (make(stream) != CUDA_SUCCESS)
            exit(3);
    }
}

static void warm_up(CUstream stream) {
    for (long i = 0; i < WARM_LAUNCHES; i++) {
        if (make(stream) != CUDA_SUCCESS)
            exit(3);
    }
}

static void *work(void *number) {
    unsigned own = (unsigned)(uintptr_t)number;
    CUstream stream;
    ((CUresult (*)(CUcontext))look_up("cuCtxSetCurrent"))(context);
    ((CUresult (*)(CUstream *, unsigned))look_up("cuStreamCreate"))(&stream, 1);
    warm_up(stream);
    uint64_t before = calls();
    for (unsigned round = 0; round < rounds; round++) {
        meet(round);
        times[own].begin_ns[round] = now_ns();
        measured_round(stream);
        times[own].end_ns[round] = now_ns();
    }
    if (own == 0)
        counted = calls() - before;
    return NULL;
}

static int64_t shortest_ns(void) {
    int64_t shortest = INT64_MAX;
    for (unsigned round = 0; round < rounds; round++) {
        int64_t begin_ns = INT64_MAX, end_ns = 0;
        for (unsigned i = 0; i < threads; i++) {
            begin_ns = times[i].begin_ns[round] < begin_ns ? times[i].begin_ns[round] : begin_ns;
            end_ns = times[i].end_ns[round] > end_ns ? times[i].end_ns[round] : end_ns;
        }
        shortest = end_ns - begin_ns < shortest ? end_ns - begin_ns : shortest;
    }
    return shortest;
}

int main(int count, char **arguments) {
    if (count < 4)
        return 2;
    call = arguments[1];
    launches = atol(arguments[2]);
    rounds = (unsigned)atoi(arguments[3]);
    long takes_ns = 5000;
    for (int i = 4; i < count; i++) {
        sscanf(arguments[i], "takes_ns=%ld", &takes_ns);
        sscanf(arguments[i], "threads=%u", &threads);
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        make = strcmp(kinds[i].name, call) == 0 ? kinds[i].make : make;
    if (make == NULL || rounds > MOST_ROUNDS || threads > MOST_THREADS)
        return 2;
    library = dlopen("libcuda.so.1", RTLD_NOW);
    called = look_up(call);
    calls = (uint64_t (*)(void))look_up("idle_calls");
    ((void (*)(int64_t))look_up("idle_takes"))(takes_ns);
    ((CUresult (*)(CUcontext *, CUdevice))look_up("cuDevicePrimaryCtxRetain"))(&context, 0);
    pthread_t thread[MOST_THREADS];
    for (unsigned i = 1; i < threads; i++)
        pthread_create(&thread[i], NULL, work, (void *)(uintptr_t)i);
    work(NULL);
    for (unsigned i = 1; i < threads; i++)
        pthread_join(thread[i], NULL);
    printf("%.3f %.4f\n", (double)shortest_ns() / (double)launches,
           (double)counted / (double)launches / rounds - 1);
    return 0;
}
