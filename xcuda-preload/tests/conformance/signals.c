/* How a program that uses CUDA takes SIGTERM and SIGINT: `signals WAY`. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/select.h>
#include <sys/signalfd.h>

#include "conformance.h"

#pragma GCC diagnostic ignored "-Wdeprecated-declarations" /* sigset, siginterrupt */

static void on_signal(int number) {
    static const char heard[] = "heard\n";
    if (number == SIGTERM || number == SIGINT)
        (void)!write(1, heard, sizeof heard - 1);
}

static void on_signal_exit(int number) {
    _exit(number == SIGTERM ? 7 : 8);
}

static void on_signal_again(int number) {
    on_signal(number);
    signal(number, SIG_DFL);
    raise(number);
}

static sigset_t only(int number) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    return set;
}

static void block(int number) {
    sigset_t set = only(number);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static int went_on(long result) {
    printf("went on: %ld %d\n", result, errno);
    return 3;
}

static int in_pause(void) {
    summon(SIGTERM, 0);
    return went_on(pause());
}

static int in_pause_by_interrupt(void) {
    summon(SIGINT, 0);
    return went_on(pause());
}

static int in_sleep(void) {
    summon(SIGTERM, 0);
    return went_on(sleep(60));
}

static int in_poll(void) {
    summon(SIGTERM, 0);
    return went_on(poll(NULL, 0, 60000));
}

static int in_select(void) {
    struct timeval time = {60, 0};
    summon(SIGTERM, 0);
    return went_on(select(0, NULL, NULL, NULL, &time));
}

static int in_sigsuspend(void) {
    sigset_t none;
    sigemptyset(&none);
    summon(SIGTERM, 0);
    return went_on(sigsuspend(&none));
}

static int in_read(void) {
    int ends[2];
    char byte;
    if (pipe(ends) != 0)
        return 97;
    summon(SIGTERM, 0);
    return went_on(read(ends[0], &byte, 1));
}

static int in_a_wait_for_the_context(void) {
    NEED(add(100000000, stream));
    summon(SIGTERM, 0);
    return went_on(cuCtxSynchronize());
}

static int in_a_copy(void) {
    static char host[1 << 16];
    NEED(add(100000000, NULL));
    summon(SIGTERM, 0);
    return went_on(cuMemcpyDtoH_v2(host, word, 4096));
}

static int with_a_handler(void) {
    signal(SIGTERM, on_signal);
    summon(SIGTERM, 0);
    return went_on(pause());
}

static int with_a_handler_that_exits(void) {
    struct sigaction action = {.sa_handler = on_signal_exit};
    sigaction(SIGTERM, &action, NULL);
    summon(SIGTERM, 0);
    return went_on(pause());
}

static int with_a_handler_that_dies_by_it(void) {
    signal(SIGTERM, on_signal_again);
    summon(SIGTERM, 0);
    return went_on(pause());
}

static int with_a_handler_for_once(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGTERM, &action, NULL);
    summon(SIGTERM, 0);
    pause();
    puts("once");
    summon(SIGTERM, 0);
    return went_on(pause());
}

static int by_sigset(void) {
    sigset(SIGTERM, on_signal);
    printf("%d\n", sigset(SIGTERM, SIG_DFL) == on_signal);
    printf("%d\n", sigset(SIGTERM, SIG_DFL) == SIG_DFL);
    printf("%d\n", siginterrupt(SIGTERM, 1));
    summon(SIGTERM, 0);
    return went_on(pause());
}

static int ignored(void) {
    struct timespec moment = {0, 20000000};
    sigset(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    summon(SIGTERM, SIGINT);
    return went_on(nanosleep(&moment, NULL));
}

static int by_sigwait(void) {
    sigset_t set = only(SIGTERM);
    int number = 0;
    block(SIGTERM);
    summon(SIGTERM, 0);
    sigwait(&set, &number);
    return number;
}

static int by_signalfd(void) {
    sigset_t set = only(SIGTERM);
    struct signalfd_siginfo info;
    block(SIGTERM);
    int fd = signalfd(-1, &set, SFD_CLOEXEC);
    summon(SIGTERM, 0);
    return read(fd, &info, sizeof info) == sizeof info ? (int)info.ssi_signo : 97;
}

static int while_blocked(void) {
    struct timespec moment = {0, 20000000};
    sigset_t set = only(SIGTERM), pending;
    block(SIGTERM);
    summon(SIGTERM, 0);
    nanosleep(&moment, NULL);
    do
        sigpending(&pending);
    while (!sigismember(&pending, SIGTERM));
    puts("pending");
    fflush(stdout);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    return went_on(0);
}

static void *work(void *nothing) {
    cuCtxSetCurrent(context);
    while (add(50000, stream) == CUDA_SUCCESS)
        continue;
    return nothing;
}

static int while_threads_launch(void) {
    pthread_t thread;
    for (int i = 0; i < 3; i++)
        pthread_create(&thread, NULL, work, NULL);
    summon(SIGTERM, 0);
    return went_on(pause());
}

static int raised(void) {
    fflush(stdout);
    raise(SIGTERM);
    return went_on(0);
}

static int by_alarm(void) {
    alarm(1); /* SIGALRM is none of anybody's */
    struct timespec moment = {0, 1};
    nanosleep(&moment, NULL);
    alarm(0);
    raise(SIGALRM);
    return went_on(0);
}

static const struct way ways[] = {
    {"pause", in_pause},
    {"pause-interrupted", in_pause_by_interrupt},
    {"sleep", in_sleep},
    {"poll", in_poll},
    {"select", in_select},
    {"sigsuspend", in_sigsuspend},
    {"read", in_read},
    {"synchronize", in_a_wait_for_the_context},
    {"copy", in_a_copy},
    {"handler", with_a_handler},
    {"handler-exits", with_a_handler_that_exits},
    {"handler-dies", with_a_handler_that_dies_by_it},
    {"handler-once", with_a_handler_for_once},
    {"sigset", by_sigset},
    {"ignored", ignored},
    {"sigwait", by_sigwait},
    {"signalfd", by_signalfd},
    {"blocked", while_blocked},
    {"threads", while_threads_launch},
    {"raised", raised},
    {"alarm", by_alarm},
    {NULL, NULL},
};

int main(int arguments, char **argument) {
    begin();
    NEED(add(1000, stream));
    printf("%u\n", sum());
    return arguments == 2 ? go_the_way(ways, argument[1]) : 98;
}
