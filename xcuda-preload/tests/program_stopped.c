/* Works on a GPU, simulated or real, until a signal ends it:
 *   program_stopped kernels.ptx SEED
 * Threads, the first one too, launch kernels and graphs into streams of their own and into one that
 * they share, copy, set, take memory and give it back; what comes next is drawn by lot. A call that
 * fails ends it with a sentence. It knows nothing of the library in front of the driver: that is
 * preloaded, or linked with it (xcuda_stopped), for the sanitizers. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_types.h"

enum { THREADS = 4, STREAMS = 2, BYTES = 1 << 16, MOST_PTX_BYTES = 1 << 16 };

static struct {
    CUresult (*init)(unsigned);
    CUresult (*device_get)(CUdevice *, int);
    CUresult (*retain)(CUcontext *, CUdevice);
    CUresult (*set_current)(CUcontext);
    CUresult (*load)(void **, const void *);
    CUresult (*get_function)(CUfunction *, void *, const char *);
    CUresult (*create_stream)(CUstream *, unsigned);
    CUresult (*destroy_stream)(CUstream);
    CUresult (*synchronize)(CUstream);
    CUresult (*launch)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                       unsigned, CUstream, void **, void **);
    CUresult (*begin_capture)(CUstream, int);
    CUresult (*end_capture)(CUstream, CUgraph *);
    CUresult (*instantiate)(CUgraphExec *, CUgraph, unsigned long long);
    CUresult (*launch_graph)(CUgraphExec, CUstream);
    CUresult (*destroy_exec)(CUgraphExec);
    CUresult (*destroy_graph)(CUgraph);
    CUresult (*allocate)(CUdeviceptr *, size_t);
    CUresult (*release)(CUdeviceptr);
    CUresult (*allocate_async)(CUdeviceptr *, size_t, CUstream);
    CUresult (*release_async)(CUdeviceptr, CUstream);
    CUresult (*set_async)(CUdeviceptr, unsigned char, size_t, CUstream);
    CUresult (*copy_async)(CUdeviceptr, CUdeviceptr, size_t, CUstream);
    CUresult (*upload_async)(CUdeviceptr, const void *, size_t, CUstream);
    CUresult (*download_async)(void *, CUdeviceptr, size_t, CUstream);
} cuda;

static const struct {
    const char *name;
    void *field;
} calls[] = {
    {"cuInit", &cuda.init},
    {"cuDeviceGet", &cuda.device_get},
    {"cuDevicePrimaryCtxRetain", &cuda.retain},
    {"cuCtxSetCurrent", &cuda.set_current},
    {"cuModuleLoadData", &cuda.load},
    {"cuModuleGetFunction", &cuda.get_function},
    {"cuStreamCreate", &cuda.create_stream},
    {"cuStreamDestroy_v2", &cuda.destroy_stream},
    {"cuStreamSynchronize", &cuda.synchronize},
    {"cuLaunchKernel", &cuda.launch},
    {"cuStreamBeginCapture_v2", &cuda.begin_capture},
    {"cuStreamEndCapture", &cuda.end_capture},
    {"cuGraphInstantiateWithFlags", &cuda.instantiate},
    {"cuGraphLaunch", &cuda.launch_graph},
    {"cuGraphExecDestroy", &cuda.destroy_exec},
    {"cuGraphDestroy", &cuda.destroy_graph},
    {"cuMemAlloc_v2", &cuda.allocate},
    {"cuMemFree_v2", &cuda.release},
    {"cuMemAllocAsync", &cuda.allocate_async},
    {"cuMemFreeAsync", &cuda.release_async},
    {"cuMemsetD8Async", &cuda.set_async},
    {"cuMemcpyDtoDAsync_v2", &cuda.copy_async},
    {"cuMemcpyHtoDAsync_v2", &cuda.upload_async},
    {"cuMemcpyDtoHAsync_v2", &cuda.download_async},
};

static CUcontext context;
static CUfunction spin, count;
static CUstream shared;
static unsigned first_seed;

static void need(CUresult result, const char *call) {
    if (result == CUDA_SUCCESS)
        return;
    fprintf(stderr, "%s: %d\n", call, result);
    exit(1);
}

/* In the global scope, where a program that is linked with the hooks finds them, too. */
static void find_calls(void) {
    if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL) == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        void *function = dlsym(RTLD_DEFAULT, calls[i].name);
        need(function == NULL, calls[i].name);
        memcpy(calls[i].field, &function, sizeof function);
    }
}

/* What one thread works with. */
struct hand {
    unsigned seed;
    CUstream own[STREAMS];
    CUdeviceptr from, to, word;
    uint8_t host[BYTES];
};

static unsigned draw(struct hand *hand, unsigned below) {
    return (unsigned)rand_r(&hand->seed) % below;
}

/* 20 us to 1.5 ms: shorter and longer than a quarter of the window. */
static void spin_in(struct hand *hand, CUstream stream) {
    uint64_t duration_ns = 20000 + 1480000 / 8 * draw(hand, 9);
    void *parameters[] = {&duration_ns};
    need(cuda.launch(spin, draw(hand, 8) + 1, 1, 1, 32, 1, 1, 0, stream, parameters, NULL),
         "cuLaunchKernel");
}

static void count_in(CUdeviceptr word, CUstream stream) {
    uint64_t duration_ns = 5000;
    void *parameters[] = {&duration_ns, &word};
    need(cuda.launch(count, 1, 1, 1, 32, 1, 1, 0, stream, parameters, NULL), "cuLaunchKernel");
}

/* Waits in the end, for the next one may be in another stream. */
static void copy_in(struct hand *hand, CUstream stream) {
    need(cuda.upload_async(hand->from, hand->host, BYTES, stream), "cuMemcpyHtoDAsync");
    need(cuda.set_async(hand->to, 1, BYTES, stream), "cuMemsetD8Async");
    need(cuda.copy_async(hand->to, hand->from, BYTES, stream), "cuMemcpyDtoDAsync");
    need(cuda.download_async(hand->host, hand->to, BYTES, stream), "cuMemcpyDtoHAsync");
    need(cuda.synchronize(stream), "cuStreamSynchronize");
}

static void use_memory_of_the_stream(CUstream stream) {
    CUdeviceptr word;
    need(cuda.allocate_async(&word, BYTES, stream), "cuMemAllocAsync");
    count_in(word, stream);
    need(cuda.release_async(word, stream), "cuMemFreeAsync");
}

static void use_memory(CUstream stream) {
    CUdeviceptr word;
    need(cuda.allocate(&word, BYTES), "cuMemAlloc");
    count_in(word, stream);
    need(cuda.synchronize(stream), "cuStreamSynchronize");
    need(cuda.release(word), "cuMemFree");
}

static void run_graph(struct hand *hand, CUstream stream) {
    CUgraph graph;
    CUgraphExec exec;
    need(cuda.begin_capture(stream, 1), "cuStreamBeginCapture"); /* a capture of this thread's */
    spin_in(hand, stream);
    count_in(hand->word, stream);
    need(cuda.end_capture(stream, &graph), "cuStreamEndCapture");
    need(cuda.instantiate(&exec, graph, 0), "cuGraphInstantiateWithFlags");
    need(cuda.launch_graph(exec, stream), "cuGraphLaunch");
    need(cuda.launch_graph(exec, stream), "cuGraphLaunch");
    need(cuda.synchronize(stream), "cuStreamSynchronize");
    need(cuda.destroy_exec(exec), "cuGraphExecDestroy");
    need(cuda.destroy_graph(graph), "cuGraphDestroy");
}

static void renew_stream(CUstream *stream) {
    need(cuda.destroy_stream(*stream), "cuStreamDestroy");
    need(cuda.create_stream(stream, 1), "cuStreamCreate");
}

static void begin(struct hand *hand) {
    need(cuda.set_current(context), "cuCtxSetCurrent");
    need(cuda.allocate(&hand->from, BYTES), "cuMemAlloc");
    need(cuda.allocate(&hand->to, BYTES), "cuMemAlloc");
    need(cuda.allocate(&hand->word, sizeof(uint32_t)), "cuMemAlloc");
    for (int i = 0; i < STREAMS; i++)
        need(cuda.create_stream(&hand->own[i], 1), "cuStreamCreate");
}

/* Half of what comes are kernels, in streams of the thread's own, in all threads' and in the
 * legacy one. */
static void *work(void *number) {
    struct hand hand = {.seed = first_seed * THREADS + (unsigned)(uintptr_t)number};
    begin(&hand);
    for (;;) {
        CUstream *own = &hand.own[draw(&hand, STREAMS)];
        switch (draw(&hand, 16)) {
        case 0:
            copy_in(&hand, *own);
            break;
        case 1:
            use_memory_of_the_stream(*own);
            break;
        case 2:
            use_memory(*own);
            break;
        case 3:
            run_graph(&hand, *own);
            break;
        case 4:
            renew_stream(own);
            break;
        case 5:
            need(cuda.synchronize(*own), "cuStreamSynchronize");
            break;
        case 6:
            spin_in(&hand, shared);
            break;
        case 7:
            spin_in(&hand, NULL);
            break;
        default:
            spin_in(&hand, *own);
        }
    }
    return NULL;
}

static void load_kernels(const char *path) {
    static char ptx[MOST_PTX_BYTES];
    FILE *file = fopen(path, "r");
    size_t got = file == NULL ? 0 : fread(ptx, 1, sizeof ptx - 1, file);
    need(got == 0 || got == sizeof ptx - 1, path);
    fclose(file);
    void *module;
    need(cuda.load(&module, ptx), "cuModuleLoadData");
    need(cuda.get_function(&spin, module, "spin"), "cuModuleGetFunction");
    need(cuda.get_function(&count, module, "spin_count"), "cuModuleGetFunction");
}

int main(int arguments, char **argument) {
    need(arguments != 3, "there are two arguments");
    first_seed = (unsigned)strtoul(argument[2], NULL, 10);
    find_calls();
    CUdevice device;
    need(cuda.init(0), "cuInit");
    need(cuda.device_get(&device, 0), "cuDeviceGet");
    need(cuda.retain(&context, device), "cuDevicePrimaryCtxRetain");
    need(cuda.set_current(context), "cuCtxSetCurrent");
    load_kernels(argument[1]);
    need(cuda.create_stream(&shared, 1), "cuStreamCreate");
    for (uintptr_t i = 1; i < THREADS; i++) {
        pthread_t thread;
        need(pthread_create(&thread, NULL, work, (void *)i), "pthread_create");
    }
    work(NULL);
}
