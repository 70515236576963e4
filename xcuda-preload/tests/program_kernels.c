/* Launches kernels of known durations by the driver API, on the simulated GPU or a real one:
 *   program_kernels us=50,20000 [count=N | seconds=S] [streams=N] [threads=N] [sync] [graph]
 * [alike] `us`: durations, one after the other; each is another grid, or with `alike` all are the
 * same one. Prints the launches made and the seconds that they took. Ends with the code of the
 * first error. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda_types.h"

/* Spins on the clock of the GPU. */
static const char ptx[] = ".version 7.0\n"
                          ".target sm_70\n"
                          ".address_size 64\n"
                          "// simgpu: duration_ns=param0 sm_pct=100\n"
                          ".visible .entry spin(.param .u64 duration_ns)\n"
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

enum { MOST = 16 };

static void *library;
static CUcontext context;
static CUfunction spin;
static uint64_t durations_ns[MOST];
static unsigned kinds;
static long count = 1000000000;
static double seconds = 1e9;
static unsigned streams = 1, threads = 1;
static bool synchronous, as_graph, alike;
static _Atomic long launched;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void *find(const char *name) {
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
        exit(result < 256 ? result : 255);
    }
}

#define CALL(name, type, ...) check(((CUresult(*) type)find(#name))(__VA_ARGS__), #name)

typedef CUresult launch_function(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned,
                                 unsigned, unsigned, CUstream, void **, void **);

static void launch_one(launch_function *launch, long i, CUstream stream) {
    uint64_t *duration_ns = &durations_ns[i % kinds];
    void *parameters[] = {duration_ns};
    unsigned grid = alike ? 1 : (unsigned)(i % kinds) + 1;
    check(launch(spin, grid, 1, 1, 32, 1, 1, 0, stream, parameters, NULL), "cuLaunchKernel");
}

/* All kinds, one after the other, as one graph. */
static CUgraphExec make_graph(launch_function *launch, CUstream stream) {
    CUgraph graph;
    CUgraphExec ready;
    CALL(cuStreamBeginCapture_v2, (CUstream, int), stream, 0);
    for (unsigned i = 0; i < kinds; i++)
        launch_one(launch, i, stream);
    CALL(cuStreamEndCapture, (CUstream, CUgraph *), stream, &graph);
    CALL(cuGraphInstantiateWithFlags, (CUgraphExec *, CUgraph, unsigned long long), &ready, graph,
         0);
    return ready;
}

static void *work(void *nothing) {
    launch_function *launch = find("cuLaunchKernel");
    CUresult (*launch_graph)(CUgraphExec, CUstream) = find("cuGraphLaunch");
    CUresult (*synchronize)(CUstream) = find("cuStreamSynchronize");
    CUstream own[MOST];
    CALL(cuCtxSetCurrent, (CUcontext), context);
    for (unsigned i = 0; i < streams; i++)
        CALL(cuStreamCreate, (CUstream *, unsigned), &own[i], 1);
    CUgraphExec graph = as_graph ? make_graph(launch, own[0]) : NULL;
    double end = now() + seconds;
    for (long i = 0; i < count && now() < end; i++) {
        CUstream stream = own[(unsigned)i % streams];
        if (as_graph)
            check(launch_graph(graph, stream), "cuGraphLaunch");
        else
            launch_one(launch, i, stream);
        atomic_fetch_add(&launched, 1);
        if (synchronous)
            check(synchronize(stream), "cuStreamSynchronize");
    }
    for (unsigned i = 0; i < streams; i++)
        check(synchronize(own[i]), "cuStreamSynchronize");
    return nothing;
}

static void read_argument(char *argument) {
    if (strncmp(argument, "us=", 3) == 0) {
        for (char *word = strtok(argument + 3, ","); word != NULL; word = strtok(NULL, ","))
            durations_ns[kinds++] = (uint64_t)(strtod(word, NULL) * 1e3);
        return;
    }
    sscanf(argument, "count=%ld", &count);
    sscanf(argument, "seconds=%lf", &seconds);
    sscanf(argument, "streams=%u", &streams);
    sscanf(argument, "threads=%u", &threads);
    synchronous |= strcmp(argument, "sync") == 0;
    as_graph |= strcmp(argument, "graph") == 0;
    alike |= strcmp(argument, "alike") == 0;
}

int main(int arguments, char **argument) {
    for (int i = 1; i < arguments; i++)
        read_argument(argument[i]);
    library = dlopen("libcuda.so.1", RTLD_NOW);
    CUdevice device;
    void *module;
    CALL(cuInit, (unsigned), 0);
    CALL(cuDeviceGet, (CUdevice *, int), &device, 0);
    CALL(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice), &context, device);
    CALL(cuCtxSetCurrent, (CUcontext), context);
    CALL(cuModuleLoadData, (void **, const void *), &module, ptx);
    CALL(cuModuleGetFunction, (CUfunction *, void *, const char *), &spin, module, "spin");
    double start = now();
    pthread_t thread[MOST];
    for (unsigned i = 1; i < threads; i++)
        pthread_create(&thread[i], NULL, work, NULL);
    work(NULL);
    for (unsigned i = 1; i < threads; i++)
        pthread_join(thread[i], NULL);
    printf("%ld %.6f\n", atomic_load(&launched), now() - start);
    return 0;
}
