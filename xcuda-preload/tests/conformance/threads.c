/* Threads that come and go: `threads WAY`. */
#include <pthread.h>

#include "conformance.h"

static CUresult (*launch_in_own)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned,
                                 unsigned, unsigned, CUstream, void **, void **);
static CUresult (*synchronize_own)(CUstream);

static void *find(const char *name) {
    void *function = NULL;
    NEED(cuGetProcAddress_v2(name, &function, 12000, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM,
                             NULL));
    return function;
}

static void *launch_once(void *where) {
    NEED(cuCtxSetCurrent(context));
    NEED(add(1000, where));
    return NULL;
}

/* Leaves it to the thread's stream to be done. */
static void *launch_in_own_stream(void *nothing) {
    uint64_t duration_ns = 1000;
    void *parameters[] = {&duration_ns, &word};
    NEED(cuCtxSetCurrent(context));
    for (int i = 0; i < 3; i++)
        NEED(launch_in_own(add_one, 1, 1, 1, 1, 1, 1, 0, NULL, parameters, NULL));
    return nothing;
}

static void *launch_in_own_and_wait(void *nothing) {
    launch_in_own_stream(NULL);
    NEED(synchronize_own(NULL));
    return nothing;
}

static void *use_streams(void *nothing) {
    NEED(cuCtxSetCurrent(context));
    for (int i = 0; i < 50; i++) {
        CUstream own;
        NEED(cuStreamCreate(&own, CU_STREAM_NON_BLOCKING));
        NEED(add(1000, own));
        NEED(cuStreamDestroy_v2(own));
    }
    return nothing;
}

static int one_after_another(void *(*work)(void *), void *argument, int count) {
    for (int i = 0; i < count; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, argument) != 0)
            return 97;
        pthread_join(thread, NULL);
    }
    printf("%u\n", sum());
    return 0;
}

static int many(void) {
    return one_after_another(launch_once, stream, 1000);
}

static int many_with_own_streams(void) {
    return one_after_another(launch_in_own_stream, NULL, 300);
}

static int many_that_wait(void) {
    return one_after_another(launch_in_own_and_wait, NULL, 200);
}

static int side_by_side(void) {
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        pthread_create(&threads[i], NULL, use_streams, NULL);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    printf("%u\n", sum());
    return 0;
}

static void *launch_until_cancelled(void *nothing) {
    NEED(cuCtxSetCurrent(context));
    for (;;) {
        NEED(add(100000, stream));
        pthread_testcancel();
    }
    return nothing;
}

/* Wherever a thread is cancelled, it leaves nothing behind that another waits for. */
static int cancelled(void) {
    for (int round = 0; round < 40; round++) {
        pthread_t threads[3];
        for (int i = 0; i < 3; i++)
            pthread_create(&threads[i], NULL, launch_until_cancelled, NULL);
        NEED(add(1000, stream));
        for (int i = 0; i < 3; i++) {
            void *result;
            pthread_cancel(threads[i]);
            pthread_join(threads[i], &result);
            if (result != PTHREAD_CANCELED)
                return 97;
        }
    }
    printf("%d\n", sum() >= 40 + 120);
    return 0;
}

static long resident_pages(void) {
    long size, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%ld %ld", &size, &resident) != 2)
        exit(97);
    fclose(file);
    return resident;
}

/* Half of them first, so that what is taken once has been taken. */
static int ten_thousand(void) {
    int failed = one_after_another(launch_once, stream, 5000);
    long before = resident_pages();
    failed |= one_after_another(launch_once, stream, 5000);
    printf("%d\n", resident_pages() < before + 256);
    return failed;
}

static const struct way ways[] = {
    {"many", many},
    {"own-streams", many_with_own_streams},
    {"that-wait", many_that_wait},
    {"side-by-side", side_by_side},
    {"cancelled", cancelled},
    {"ten-thousand", ten_thousand},
    {NULL, NULL},
};

int main(int arguments, char **argument) {
    begin();
    *(void **)&launch_in_own = find("cuLaunchKernel");
    *(void **)&synchronize_own = find("cuStreamSynchronize");
    return arguments == 2 ? go_the_way(ways, argument[1]) : 98;
}
