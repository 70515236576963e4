/* Threads of an online process that launch, record and wait on the stub driver; for the sanitizers
 * above all. The directory of beacon pages is made in $XCUDA_DEVICE_DIR, the stub is on the library
 * path. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>

#include "beacon.h"
#include "hooks.h"
#include "pages_testing.h"

enum { THREADS = 6, ROUNDS = 400 };

CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                        unsigned, CUstream, void **, void **);
CUresult cuLaunchKernel_ptsz(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                             unsigned, CUstream, void **, void **);
CUresult cuStreamSynchronize(CUstream);
CUresult cuStreamSynchronize_ptsz(CUstream);
CUresult cuCtxSynchronize(void);
CUresult cuEventRecord(CUevent, CUstream);
CUresult cuEventQuery(CUevent);
CUresult cuStreamDestroy_v2(CUstream);
CUresult cuDevicePrimaryCtxRetain(CUcontext *, CUdevice);

static CUresult (*set_current)(CUcontext);
static CUresult (*create_stream)(CUstream *, unsigned);
static CUresult (*create_event)(CUevent *, unsigned);
static CUcontext context;
static _Atomic uint64_t launched;

static void launch(CUstream stream) {
    atomic_fetch_add(&launched, 1);
    expect(cuLaunchKernel((CUfunction)2000, 1, 1, 1, 1, 1, 1, 0, stream, NULL, NULL) == 0,
           "a launch succeeds");
}

static void *work(void *nothing) {
    set_current(context);
    CUstream own;
    CUevent event;
    create_stream(&own, 1);
    create_event(&event, 0);
    for (unsigned i = 0; i < ROUNDS; i++) {
        launch(own);
        launch(NULL);
        atomic_fetch_add(&launched, 1);
        expect(cuLaunchKernel_ptsz((CUfunction)2000, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL) == 0,
               "a launch into the thread's stream succeeds");
        cuEventRecord(event, own);
        cuEventQuery(event);
        if (i % 7 == 0)
            cuStreamSynchronize(own);
        if (i % 11 == 0)
            cuStreamSynchronize_ptsz(NULL);
        if (i % 13 == 0)
            cuCtxSynchronize();
        if (i % 97 == 0) {
            cuStreamDestroy_v2(own);
            create_stream(&own, 1);
        }
    }
    return nothing;
}

static pthread_barrier_t cancelled;
static bool passed;

static void *wait_cancelled(void *nothing) {
    set_current(context);
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    pthread_barrier_wait(&cancelled);
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
    CUevent event;
    create_event(&event, 0);
    expect(cuEventQuery(event) == 0, "nothing is to be waited for");
    expect(mux_load64(&atomic_load(&beacon_slot)->owner) != 0, "and the page is looked after");
    passed = true;
    pthread_testcancel();
    expect(false, "a thread that is cancelled ends");
    return nothing;
}

/* Looking after the page opens files, which is where threads are cancelled. */
static void nobody_is_cancelled_where_the_page_is_looked_after(void) {
    pthread_t thread;
    void *result;
    beacon_forget_all(); /* as if a second had passed */
    pthread_barrier_init(&cancelled, NULL, 2);
    pthread_create(&thread, NULL, wait_cancelled, NULL);
    pthread_cancel(thread);
    pthread_barrier_wait(&cancelled);
    expect(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED && passed,
           "a thread is cancelled later");
}

int main(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    expect(driver != NULL, "the stub driver is found");
    set_current = dlsym(driver, "cuCtxSetCurrent");
    create_stream = dlsym(driver, "cuStreamCreate");
    create_event = dlsym(driver, "cuEventCreate");
    char beacons[PATH_MAX];
    snprintf(beacons, sizeof beacons, "%s/beacons", getenv("XCUDA_DEVICE_DIR"));
    expect(mkdir(beacons, 0700) == 0, "there is a directory");
    expect(cuDevicePrimaryCtxRetain(&context, 0) == 0, "there is a context");

    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, work, NULL);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    set_current(context);
    const struct mux_beacon_slot *slot = atomic_load(&beacon_slot);
    expect(mux_load64(&slot->owner) == mux_owner_of(getpid()), "the process has a page");
    expect(mux_load64(&slot->launches) == atomic_load(&launched), "no launch is lost");
    expect(cuCtxSynchronize() == 0, "everything is complete");
    expect(mux_load64(&slot->complete) == atomic_load(&launched), "and said to be so");
    nobody_is_cancelled_where_the_page_is_looked_after();
    return 0;
}
