/* How a program that uses CUDA ends: `ends WAY`. */
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "conformance.h"

static bool in_the_end; /* a destructor says something */

static int by_return(void) {
    NEED(add(2000000, stream));
    return 4;
}

static int by_exit(void) {
    NEED(add(2000000, stream));
    exit(5);
}

static int by_exit_at_once(void) {
    NEED(add(2000000, stream));
    fflush(stdout);
    _exit(6);
}

static int by_quick_exit(void) {
    fflush(stdout);
    quick_exit(7);
}

static int by_abort(void) {
    NEED(add(2000000, stream));
    abort();
}

static _Alignas(4096) volatile char own_page[4096];

static int by_a_fault(void) {
    return mprotect((void *)own_page, sizeof own_page, PROT_NONE) == 0 ? own_page[0] : 97;
}

static int by_an_error_of_the_program(void) {
    NEED(add(1000, stream));
    return (int)cuMemFree_v2(12345);
}

static void launch_and_wait(void) {
    int result = (int)add(1000, stream);
    printf("at exit: %d %d\n", result, (int)cuStreamSynchronize(stream));
}

static void give_back(void) {
    int result = (int)cuMemFree_v2(word);
    printf("at exit: %d %d\n", result, (int)cuStreamDestroy_v2(stream));
}

static int with_a_launch_at_exit(void) {
    atexit(launch_and_wait);
    return 0;
}

static int with_a_free_at_exit(void) {
    atexit(give_back);
    return 0;
}

static int with_a_destructor(void) {
    in_the_end = true;
    return 0;
}

__attribute__((destructor)) static void destroy(void) {
    if (in_the_end)
        give_back();
}

static void *exit_here(void *nothing) {
    (void)nothing;
    exit(9);
}

static void *work(void *nothing) {
    cuCtxSetCurrent(context);
    while (add(50000, stream) == CUDA_SUCCESS)
        continue;
    pause(); /* the driver is being taken down */
    return nothing;
}

static int by_exit_in_a_thread(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, exit_here, NULL);
    pthread_join(thread, NULL);
    return 0;
}

static int while_threads_launch(void) {
    struct timespec moment = {0, 5000000};
    pthread_t thread;
    for (int i = 0; i < 2; i++)
        pthread_create(&thread, NULL, work, NULL);
    nanosleep(&moment, NULL);
    fflush(stdout);
    return 11;
}

static int after_its_context(void) {
    NEED(cuCtxSynchronize());
    NEED(cuDevicePrimaryCtxReset_v2(0));
    printf("%d\n", (int)cuMemFree_v2(word));
    return 0;
}

static const struct way ways[] = {
    {"return", by_return},
    {"exit", by_exit},
    {"at-once", by_exit_at_once},
    {"quick", by_quick_exit},
    {"abort", by_abort},
    {"fault", by_a_fault},
    {"error", by_an_error_of_the_program},
    {"launch-at-exit", with_a_launch_at_exit},
    {"free-at-exit", with_a_free_at_exit},
    {"destructor", with_a_destructor},
    {"exit-in-a-thread", by_exit_in_a_thread},
    {"threads-launch", while_threads_launch},
    {"reset", after_its_context},
    {NULL, NULL},
};

int main(int arguments, char **argument) {
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    if (arguments == 2 && strncmp(argument[1], "early-", 6) == 0) {
        atexit(launch_and_wait); /* before the driver, and whoever is in front of it, have theirs */
        argument[1] += 6;
    }
    begin();
    NEED(add(1000, stream));
    printf("%u\n", sum());
    return arguments == 2 ? go_the_way(ways, argument[1]) : 98;
}
