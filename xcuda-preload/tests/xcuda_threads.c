/* Threads that launch, wait and allocate on the stub driver while the gate opens and closes; for
 * the sanitizers above all. Its pages are in $XCUDA_JOB_DIR, the stub is on the library path. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>

#include "account.h"
#include "drain.h"
#include "hooks.h"
#include "job.h"
#include "pages_testing.h"

enum { THREADS = 6, ROUNDS = 12 };

CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                        unsigned, CUstream, void **, void **);
CUresult cuLaunchKernel_ptsz(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                             unsigned, CUstream, void **, void **);
CUresult cuStreamSynchronize(CUstream);
CUresult cuMemAlloc_v2(CUdeviceptr *, size_t);
CUresult cuMemFree_v2(CUdeviceptr);
CUresult cuDevicePrimaryCtxRetain(CUcontext *, CUdevice);
CUresult cuStreamDestroy_v2(CUstream);
CUresult cuStreamBeginCapture_v2(CUstream, int);
CUresult cuStreamEndCapture(CUstream, CUgraph *);

static CUresult (*set_current)(CUcontext);
static CUresult (*create_stream)(CUstream *, unsigned);
static uint64_t (*stub_launches)(void);
static CUcontext context;
static atomic_bool over;
static struct mux_device_page *device;
static struct mux_control_page *control;

static uint64_t word(enum mux_gate_state state, uint64_t budget, uint64_t window) {
    return state | budget << MUX_GATE_BUDGET_SHIFT | window << MUX_GATE_WINDOW_SHIFT;
}

static void store(uint64_t *gate, uint64_t value) {
    __atomic_store_n(gate, value, __ATOMIC_RELEASE);
}

static void doze(int64_t ns) {
    struct timespec time = {0, ns};
    nanosleep(&time, NULL);
}

static void launch(CUstream stream, uintptr_t duration_ns) {
    expect(cuLaunchKernel((CUfunction)duration_ns, 1, 1, 1, 1, 1, 1, 0, stream, NULL, NULL) == 0,
           "a launch succeeds");
}

/* Every thread has a stream of its own, one of its own by name, and the legacy stream that all
 * share. */
static void *work(void *nothing) {
    set_current(context);
    CUstream own;
    create_stream(&own, 1);
    for (unsigned i = 0; !atomic_load(&over); i++) {
        launch(own, 2000 + i % 3 * 1000);
        launch(NULL, 3000);
        expect(cuLaunchKernel_ptsz((CUfunction)4000, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL) == 0,
               "a launch into the thread's stream succeeds");
        if (i % 7 == 0)
            cuStreamSynchronize(own);
        if (i % 11 == 0) {
            CUdeviceptr address;
            if (cuMemAlloc_v2(&address, 1 << 20) == 0)
                expect(cuMemFree_v2(address) == 0, "memory can be freed");
        }
        if (i % 97 == 0) {
            cuStreamDestroy_v2(own);
            create_stream(&own, 1);
        }
        if (i % 101 == 0) {
            CUgraph graph;
            cuStreamBeginCapture_v2(own, 1);
            launch(own, 5000);
            expect(cuStreamEndCapture(own, &graph) == 0 && graph == (CUgraph)2,
                   "a capture is whole and has one launch");
        }
    }
    cuStreamSynchronize(own);
    cuStreamDestroy_v2(own);
    return nothing;
}

static void make_pages(const char *directory) {
    make_device_page(directory, (struct mux_device_page){.stale_after_ms = 60000});
    uint8_t page[MUX_CONTROL_PAGE_BYTES] = {0};
    make_page(directory, "control", MUX_PAGE_CONTROL, page, sizeof page, sizeof page);
    make_job_page(directory);
    device = map_page(directory, "device", sizeof *device);
    control = map_page(directory, "control", sizeof *control);
    control->quota_bytes = UINT64_C(1) << 30;
    control->context_bytes = 1 << 20;
    store(&control->gate, word(MUX_GATE_OPEN, 1000, 65535));
}

/* Whatever passed the gate just before it was closed is with the driver after that time. */
static void expect_frozen(void) {
    store(&device->gate, word(MUX_GATE_FROZEN, 0, 0));
    doze(100000000);
    uint64_t before = stub_launches();
    doze(20000000);
    expect(stub_launches() == before, "nothing is launched past a frozen gate");
}

int main(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    expect(driver != NULL, "the stub driver is found");
    set_current = dlsym(driver, "cuCtxSetCurrent");
    create_stream = dlsym(driver, "cuStreamCreate");
    stub_launches = dlsym(driver, "stub_launches");
    make_pages(getenv("XCUDA_JOB_DIR"));
    expect(cuDevicePrimaryCtxRetain(&context, 0) == 0, "there is a context");
    __atomic_add_fetch(&device->heartbeat, 1, __ATOMIC_RELEASE);

    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, work, NULL);
    for (uint64_t round = 0; round < ROUNDS; round++) {
        store(&device->gate, word(MUX_GATE_OPEN, round % 2 ? 1000 : 600, 100 + 500 * (round % 4)));
        __atomic_add_fetch(&device->heartbeat, 1, __ATOMIC_RELEASE);
        uint64_t before = stub_launches();
        for (int i = 0; stub_launches() < before + 200; i++) {
            expect(i < 30000, "launches go on when the gate is open");
            doze(1000000);
        }
        if (round % 3 == 0)
            expect_frozen();
    }
    atomic_store(&over, true);
    store(&device->gate, word(MUX_GATE_OPEN, 1000, 2000));
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    drain_at_exit();
    expect(atomic_load(&account.window_used_ns) == 0, "the window is empty in the end");
    expect(account.charged_ns == 0 && account.in_flight == 0 && account.in_flight_ns == 0,
           "nothing is in flight in the end");
    return 0;
}
