/* What the programs of the conformance tests share. They are linked with the driver, know nothing
 * of a library in front of it, and say what they see: the same, whether or not there is one. */
#ifndef CONFORMANCE_H
#define CONFORMANCE_H

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "simgpu_cuda.h"

static const char conformance_ptx[] = ".version 7.0\n"
                                      ".target sm_70\n"
                                      ".address_size 64\n"
                                      "// simgpu: duration_ns=param0 sm_pct=10 count_word=param1\n"
                                      ".visible .entry add_one(.param .u64 ns, .param .u64 word)\n"
                                      "{\n"
                                      "    ret;\n"
                                      "}\n";

static CUcontext context;
static CUmodule module;
static CUfunction add_one;
static CUstream stream;
static CUdeviceptr word; /* 32 bits that add_one adds to */

static inline void need(CUresult result, const char *call) {
    if (result == CUDA_SUCCESS)
        return;
    fprintf(stderr, "%s: %d\n", call, (int)result);
    exit(99);
}

#define NEED(call) need(call, #call)

static inline void begin(void) {
    CUdevice device;
    NEED(cuInit(0));
    NEED(cuDeviceGet(&device, 0));
    NEED(cuDevicePrimaryCtxRetain(&context, device));
    NEED(cuCtxSetCurrent(context));
    NEED(cuModuleLoadData(&module, conformance_ptx));
    NEED(cuModuleGetFunction(&add_one, module, "add_one"));
    NEED(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    NEED(cuMemAlloc_v2(&word, 4096));
    NEED(cuMemsetD8_v2(word, 0, 4096));
}

static inline CUresult add(uint64_t duration_ns, CUstream where) {
    void *parameters[] = {&duration_ns, &word};
    return cuLaunchKernel(add_one, 1, 1, 1, 32, 1, 1, 0, where, parameters, NULL);
}

static inline unsigned sum(void) {
    unsigned value = 0;
    NEED(cuCtxSynchronize());
    NEED(cuMemcpyDtoH_v2(&value, word, sizeof value));
    return value;
}

/* Has a child send this process signals, one after the other, once its first thread sleeps. 0: no
 * signal. */
static inline void summon(int first, int second) {
    fflush(NULL);
    if (fork() != 0)
        return;
    pid_t parent = getppid();
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", (int)parent);
    while (getppid() == parent && strstr(text, ") S") == NULL) {
        FILE *file = fopen(path, "r");
        if (file == NULL || fgets(text, sizeof text, file) == NULL)
            _exit(1);
        fclose(file);
    }
    kill(parent, first);
    if (second != 0)
        kill(parent, second);
    _exit(0);
}

/* One way to do it, chosen by the program's argument. */
struct way {
    const char *name;
    int (*go)(void);
};

static inline int go_the_way(const struct way *ways, const char *name) {
    for (; ways->name != NULL; ways++) {
        if (strcmp(ways->name, name) == 0)
            return ways->go();
    }
    fprintf(stderr, "there is no way %s\n", name);
    return 98;
}

#endif
