/* Does all sorts of things on the device from several threads, as fast as it can: to be killed at
 * any instruction, or to be watched by sanitizers.
 *
 *   driver_hammer SEED ROUNDS     0 rounds: until it is killed
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "simgpu_cuda.h"

enum { THREADS = 3, BUFFER = 1 << 16 };

static const char kernels[] = ".version 6.4\n.target sm_70\n.address_size 64\n"
                              "// simgpu: duration_ns=param0 sm_pct=param1 bandwidth_pct=20 "
                              "count_word=param2\n"
                              ".entry work(.param .u64 ns, .param .u32 pct, .param .u64 word) "
                              "{ ret; }\n";

static CUcontext context;
static CUfunction work;
static unsigned seed;
static long rounds;
static _Atomic long launched;
static unsigned *word;

static void check(CUresult result, const char *what) {
    if (result == CUDA_SUCCESS)
        return;
    const char *name = "";
    cuGetErrorName(result, &name);
    fprintf(stderr, "%s: %s\n", what, name);
    exit(1);
}

static void launch(CUstream stream, unsigned *state) {
    uint64_t ns = 1000 + (uint64_t)(rand_r(state) % 50000);
    unsigned pct = 1 + (unsigned)rand_r(state) % 100;
    uint64_t address = (uintptr_t)word;
    void *params[] = {&ns, &pct, &address};
    check(cuLaunchKernel(work, 1, 1, 1, 32, 1, 1, 0, stream, params, NULL), "cuLaunchKernel");
    launched++;
}

static void copy(CUstream stream, CUdeviceptr buffer, char *pinned) {
    check(cuMemcpyHtoDAsync_v2(buffer, pinned, BUFFER, stream), "cuMemcpyHtoDAsync");
    check(cuMemsetD32Async(buffer, 7, BUFFER / 4, stream), "cuMemsetD32Async");
    check(cuMemcpyDtoHAsync_v2(pinned, buffer, BUFFER, stream), "cuMemcpyDtoHAsync");
}

static void allocate(CUstream stream) {
    CUdeviceptr address;
    check(cuMemAllocAsync(&address, BUFFER, stream), "cuMemAllocAsync");
    check(cuMemFreeAsync(address, stream), "cuMemFreeAsync");
    check(cuMemAlloc_v2(&address, BUFFER), "cuMemAlloc");
    check(cuMemFree_v2(address), "cuMemFree");
}

static void graph(CUstream stream, unsigned *state) {
    CUgraph graph;
    CUgraphExec exec;
    check(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED), "begin");
    for (int i = 0; i < 3; i++)
        launch(stream, state);
    check(cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
    check(cuGraphInstantiateWithFlags(&exec, graph, 0), "cuGraphInstantiate");
    check(cuGraphLaunch(exec, stream), "cuGraphLaunch");
    check(cuStreamSynchronize(stream), "cuStreamSynchronize");
    check(cuGraphExecDestroy(exec), "cuGraphExecDestroy");
    check(cuGraphDestroy(graph), "cuGraphDestroy");
}

static void measure(CUstream stream, CUstream other, unsigned *state) {
    CUevent start;
    CUevent end;
    float passed;
    check(cuEventCreate(&start, 0), "cuEventCreate");
    check(cuEventCreate(&end, 0), "cuEventCreate");
    check(cuEventRecord(start, stream), "cuEventRecord");
    launch(stream, state);
    check(cuEventRecord(end, stream), "cuEventRecord");
    check(cuStreamWaitEvent(other, end, 0), "cuStreamWaitEvent");
    launch(other, state);
    check(cuEventSynchronize(end), "cuEventSynchronize");
    check(cuEventElapsedTime(&passed, start, end), "cuEventElapsedTime");
    check(cuEventDestroy_v2(start), "cuEventDestroy");
    check(cuEventDestroy_v2(end), "cuEventDestroy");
}

static void called(void *data) {
    (*(_Atomic long *)data)++;
}

static void *hammer(void *argument) {
    unsigned state = seed * THREADS + (unsigned)(uintptr_t)argument;
    CUdeviceptr buffer;
    char *pinned;
    _Atomic long calls = 0;
    long calls_made = 0;
    check(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    check(cuMemAlloc_v2(&buffer, BUFFER), "cuMemAlloc");
    check(cuMemHostAlloc((void **)&pinned, BUFFER, 0), "cuMemHostAlloc");
    for (long round = 0; !rounds || round < rounds; round++) {
        CUstream stream;
        CUstream other;
        check(cuStreamCreate(&stream, (unsigned)rand_r(&state) % 2), "cuStreamCreate");
        check(cuStreamCreateWithPriority(&other, 1, -1), "cuStreamCreate");
        for (int i = 0; i < 20; i++) {
            switch (rand_r(&state) % 8) {
            case 0:
                copy(stream, buffer, pinned);
                break;
            case 1:
                allocate(stream);
                break;
            case 2:
                graph(other, &state); /* not beside the default stream */
                break;
            case 3:
                measure(stream, other, &state);
                break;
            case 4:
                check(cuLaunchHostFunc(stream, called, &calls), "cuLaunchHostFunc");
                calls_made++;
                break;
            case 5:
                launch(NULL, &state);
                break;
            default:
                launch(stream, &state);
            }
        }
        check(cuStreamSynchronize(stream), "cuStreamSynchronize");
        check(cuStreamDestroy_v2(stream), "cuStreamDestroy");
        check(cuStreamDestroy_v2(other), "cuStreamDestroy");
    }
    /* Not the context, in which others may be capturing. */
    check(cuStreamSynchronize(NULL), "cuStreamSynchronize");
    if (calls != calls_made) {
        fprintf(stderr, "%ld of %ld host functions ran\n", (long)calls, calls_made);
        exit(1);
    }
    check(cuMemFree_v2(buffer), "cuMemFree");
    check(cuMemFreeHost(pinned), "cuMemFreeHost");
    return NULL;
}

int main(int argc, char **argv) {
    CUmodule module;
    pthread_t threads[THREADS];
    if (argc != 3)
        return 2;
    seed = (unsigned)atoi(argv[1]);
    rounds = atol(argv[2]);
    check(cuInit(0), "cuInit");
    check(cuCtxCreate_v2(&context, 0, 0), "cuCtxCreate");
    check(cuModuleLoadData(&module, kernels), "cuModuleLoadData");
    check(cuModuleGetFunction(&work, module, "work"), "cuModuleGetFunction");
    check(cuMemHostAlloc((void **)&word, 4096, 0), "cuMemHostAlloc");
    puts("ready");
    fflush(stdout);
    for (uintptr_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, hammer, (void *)i);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    check(cuCtxSynchronize(), "cuCtxSynchronize");
    if (*word != (unsigned)launched) {
        fprintf(stderr, "%u of %ld kernels ran\n", *word, (long)launched);
        return 1;
    }
    check(cuCtxDestroy_v2(context), "cuCtxDestroy");
    return 0;
}
