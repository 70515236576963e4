/* Allocates and frees memory on the driver that does nothing (bench_driver.c):
 *   bench_memory new|any|both PAIRS ROUNDS LIVE...
 * for each number of allocations that live, in rising order: in each round so many pairs, which
 * allocate and free the same (new), or free one of those that live, picked at random, and allocate
 * another (any). Prints the ns per pair in the shortest round, for each number and kind; and at
 * last the ns per allocation that was to live. */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

static void pair_of_new(void) {
    CUdeviceptr address;
    take(&address);
    if (give_back(address) != CUDA_SUCCESS)
        exit(3);
}

static void pair_of_any(void) {
    unsigned which = pick();
    if (give_back(live[which]) != CUDA_SUCCESS)
        exit(3);
    take(&live[which]);
}

/* What callgrind counts, by its name. */
__attribute__((noinline)) static void measured_round(void (*pair)(void), long pairs) {
    for (long i = 0; i < pairs; i++)
        pair();
}

static int64_t round_ns(void (*pair)(void), long pairs) {
    int64_t begin_ns = now_ns();
    measured_round(pair, pairs);
    return now_ns() - begin_ns;
}

static double shortest_ns(void (*pair)(void), long pairs, long rounds) {
    int64_t shortest_ns = INT64_MAX;
    for (long round = 0; round < rounds; round++) {
        int64_t took_ns = round_ns(pair, pairs);
        shortest_ns = took_ns < shortest_ns ? took_ns : shortest_ns;
    }
    return (double)shortest_ns / (double)pairs;
}

int main(int arguments, char **argument) {
    if (arguments < 5)
        return 2;
    bool one = strcmp(argument[1], "any") != 0, another = strcmp(argument[1], "new") != 0;
    long pairs = atol(argument[2]), rounds = atol(argument[3]);
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == NULL)
        return 2;
    allocate = (CUresult (*)(CUdeviceptr *, size_t))dlsym(library, "cuMemAlloc_v2");
    give_back = (CUresult (*)(CUdeviceptr))dlsym(library, "cuMemFree_v2");
    CUcontext context;
    ((CUresult (*)(CUcontext *, CUdevice))dlsym(library, "cuDevicePrimaryCtxRetain"))(&context, 0);
    ((CUresult (*)(CUcontext))dlsym(library, "cuCtxSetCurrent"))(context);
    int64_t growing_ns = 0;
    for (int i = 4; i < arguments; i++) {
        unsigned wanted = (unsigned)atoi(argument[i]);
        if (wanted == 0 || wanted > MOST_LIVE)
            return 2;
        int64_t begin_ns = now_ns();
        while (count < wanted)
            take(&live[count++]);
        growing_ns += now_ns() - begin_ns;
        if (one)
            printf("%.3f ", shortest_ns(pair_of_new, pairs, rounds));
        if (another)
            printf("%.3f ", shortest_ns(pair_of_any, pairs, rounds));
    }
    printf("%.3f\n", (double)growing_ns / count);
    return 0;
}
