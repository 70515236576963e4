/* Frees and allocates memory on the driver that does nothing (bench_driver.c):
 *   bench_memory PAIRS ROUNDS LIVE...
 * for each number of allocations that live, in rising order: in each round so many pairs, each of
 * which frees one of them, picked at random, and allocates another. Prints the ns per pair in the
 * shortest round, for each number. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "cuda_types.h"

enum { MOST_LIVE = 1 << 17, BYTES = 512 };

static CUresult (*allocate)(CUdeviceptr *, size_t);
static CUresult (*give_back)(CUdeviceptr);
static CUdeviceptr live[MOST_LIVE];
static unsigned count;

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static void take(CUdeviceptr *address) {
    if (allocate(address, BYTES) != CUDA_SUCCESS)
        exit(3);
}

/* xorshift (Marsaglia, 2003) */
static unsigned pick(void) {
    static uint64_t state = UINT64_C(0x9e3779b97f4a7c15);
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)(state >> 32) % count;
}

static int64_t round_ns(long pairs) {
    int64_t begin_ns = now_ns();
    for (long i = 0; i < pairs; i++) {
        unsigned which = pick();
        if (give_back(live[which]) != CUDA_SUCCESS)
            exit(3);
        take(&live[which]);
    }
    return now_ns() - begin_ns;
}

int main(int arguments, char **argument) {
    if (arguments < 4)
        return 2;
    long pairs = atol(argument[1]), rounds = atol(argument[2]);
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == NULL)
        return 2;
    allocate = (CUresult (*)(CUdeviceptr *, size_t))dlsym(library, "cuMemAlloc_v2");
    give_back = (CUresult (*)(CUdeviceptr))dlsym(library, "cuMemFree_v2");
    CUcontext context;
    ((CUresult (*)(CUcontext *, CUdevice))dlsym(library, "cuDevicePrimaryCtxRetain"))(&context, 0);
    ((CUresult (*)(CUcontext))dlsym(library, "cuCtxSetCurrent"))(context);
    for (int i = 3; i < arguments; i++) {
        unsigned wanted = (unsigned)atoi(argument[i]);
        if (wanted == 0 || wanted > MOST_LIVE)
            return 2;
        while (count < wanted)
            take(&live[count++]);
        int64_t shortest_ns = INT64_MAX;
        for (long round = 0; round < rounds; round++) {
            int64_t took_ns = round_ns(pairs);
            shortest_ns = took_ns < shortest_ns ? took_ns : shortest_ns;
        }
        printf("%.3f ", (double)shortest_ns / (double)pairs);
    }
    printf("\n");
    return 0;
}
