#include "stop.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "clock.h"
#include "lane.h"
#include "symbols.h"
#include "visibility.h"
#include "warden.h"

typedef int (*sigaction_function)(int, const struct sigaction *, struct sigaction *);
typedef void (*handler_function)(int);
typedef handler_function (*signal_function)(int, handler_function);

/* One of the two signals, and what the program believes to be there while the handler in the kernel
 * is ours. */
struct disposition {
    int number;
    struct sigaction believed;
};

static struct disposition dispositions[] = {{.number = SIGTERM}, {.number = SIGINT}};
enum { DISPOSITIONS = sizeof dispositions / sizeof *dispositions };

static _Atomic bool started;
static _Atomic pid_t process; /* whose handlers they are: children of vfork share our memory */

/* Held for a few instructions with all signals blocked: sigaction may be called by handlers. */
static atomic_flag lock = ATOMIC_FLAG_INIT;

static void acquire(sigset_t *before) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, before);
    while (atomic_flag_test_and_set_explicit(&lock, memory_order_acquire))
        sched_yield();
}

static void release(const sigset_t *before) {
    atomic_flag_clear_explicit(&lock, memory_order_release);
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

static void *next_symbol(const char *name) {
    return symbols_real_dlsym(RTLD_NEXT, name);
}

static int real_sigaction(int number, const struct sigaction *new, struct sigaction *old) {
    static _Atomic(sigaction_function) known;
    sigaction_function function = atomic_load_explicit(&known, memory_order_relaxed);
    if (function == NULL) {
        function = (sigaction_function)next_symbol("sigaction");
        atomic_store_explicit(&known, function, memory_order_relaxed);
    }
    return function(number, new, old);
}

static struct disposition *disposition_of(int number) {
    for (int i = 0; i < DISPOSITIONS; i++) {
        if (dispositions[i].number == number)
            return &dispositions[i];
    }
    return NULL;
}

static bool is_default(const struct sigaction *action) {
    return !(action->sa_flags & SA_SIGINFO) && action->sa_handler == SIG_DFL;
}

static void set_default(int number) {
    struct sigaction action = {.sa_handler = SIG_DFL};
    real_sigaction(number, &action, NULL);
}

/* Ends the process as the default does, from a thread that has all signals blocked. The first
 * process of a PID namespace is spared by a default: without us it would not have heard of the
 * signal at all. But a job that was told to stop has to end, and has been drained. */
void stop_let_through(int number) {
    sigset_t only;
    sigemptyset(&only);
    sigaddset(&only, number);
    for (;;) { /* until no thread of the program puts a handler there in between */
        set_default(number);
        syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), number);
        pthread_sigmask(SIG_UNBLOCK, &only, NULL);
        pthread_sigmask(SIG_BLOCK, &only, NULL);
        if (getpid() == 1)
            _exit(128 + number);
        clock_doze(1000000);
    }
}

/* Whether the program would find out that the signal came: it has cut a system call short, which
 * will say so (a pause, a sleep, a poll), or comes as it is no longer blocked. */
static bool is_noticed(const ucontext_t *context) {
#if defined __x86_64__
    static const uint8_t syscall_instruction[] = {0x0f, 0x05};
    const greg_t *registers = context->uc_mcontext.gregs;
    bool unblocks = registers[REG_RAX] == 0 && (uint64_t)registers[REG_RDI] <= SIG_SETMASK &&
                    registers[REG_R10] == _NSIG / 8; /* the number of the call is gone */
    return (registers[REG_RAX] == -EINTR || unblocks) &&
           memcmp((const uint8_t *)registers[REG_RIP] - 2, syscall_instruction, 2) == 0;
#elif defined __aarch64__
    static const uint32_t svc_instruction = 0xd4000001;
    const mcontext_t *machine = &context->uc_mcontext;
    bool unblocks = machine->regs[0] == 0 && machine->regs[8] == SYS_rt_sigprocmask;
    return ((int64_t)machine->regs[0] == -EINTR || unblocks) &&
           memcmp((const uint8_t *)machine->pc - 4, &svc_instruction, 4) == 0;
#else
    (void)context;
    return false;
#endif
}

/* Then the drain waits for this thread. */
static bool in_driver(void) {
    return self.on_the_way > 0 || self.in_callback > 0 || lane_interrupted();
}

/* A program that sends itself a signal expects that nothing of it runs behind that, and one that
 * sleeps until a signal comes would go on. Were this thread in the driver by another call, the
 * drain might wait for it all the same: hence not for ever. */
#define PATIENCE_NS INT64_C(2000000000)

static void wait_for_the_end(void) {
    for (int64_t waited_ns = 0; waited_ns < PATIENCE_NS; waited_ns += 1000000)
        clock_doze(1000000);
}

/* Returns to the program, whose threads may be in the driver, where the warden must not find them
 * asleep. Another process with this handler is a child that has not called exec yet. */
static void on_stop(int number, siginfo_t *info, void *context) {
    int before = errno;
    if (getpid() != atomic_load(&process) || !warden_stop_by(number)) {
        set_default(number);
        syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), number); /* blocked until we return */
    } else if (info->si_pid == getpid() || (is_noticed(context) && !in_driver())) {
        wait_for_the_end();
    }
    errno = before;
}

static bool is_ours(const struct sigaction *action) {
    return action->sa_flags & SA_SIGINFO && action->sa_sigaction == on_stop;
}

/* SA_ONSTACK: some programs have stacks too small for a handler. SA_RESTART: the program, which
 * would be dead by now, shall not see that a signal came. */
static void take(struct disposition *disposition, const struct sigaction *believed) {
    struct sigaction action = {.sa_sigaction = on_stop,
                               .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    if (real_sigaction(disposition->number, &action, NULL) == 0)
        disposition->believed = *believed;
}

static void take_if_default(struct disposition *disposition) {
    struct sigaction now;
    if (real_sigaction(disposition->number, NULL, &now) == 0 && is_default(&now))
        take(disposition, &now);
}

void stop_reclaim(void) {
    sigset_t before;
    acquire(&before);
    for (int i = 0; i < DISPOSITIONS; i++)
        take_if_default(&dispositions[i]);
    release(&before);
}

void stop_start(void) {
    atomic_store(&process, getpid());
    stop_reclaim();
    atomic_store(&started, true);
}

void stop_forget_all(void) {
    atomic_flag_clear(&lock);
    atomic_store(&started, false);
    for (int i = 0; i < DISPOSITIONS; i++) {
        struct sigaction now;
        if (real_sigaction(dispositions[i].number, NULL, &now) == 0 && is_ours(&now))
            real_sigaction(dispositions[i].number, &dispositions[i].believed, NULL);
    }
}

/* ---- what the program calls ---------------------------------------------------------------------
 */

static int change(struct disposition *disposition, const struct sigaction *new,
                  struct sigaction *old) {
    struct sigaction was, wanted = new != NULL ? *new : (struct sigaction){.sa_handler = SIG_DFL};
    int result = real_sigaction(disposition->number, NULL, &was);
    if (result == 0 && is_ours(&was))
        was = disposition->believed;
    if (result == 0 && new != NULL) {
        if (is_default(&wanted))
            take(disposition, &wanted);
        else
            result = real_sigaction(disposition->number, &wanted, NULL);
    }
    if (result == 0 && old != NULL)
        *old = was;
    return result;
}

/* The disposition that a call is about, if we have a part in it: not before CUDA is used, not in a
 * child of vfork, and for no other signal. */
static struct disposition *concerned(int number) {
    if (!atomic_load_explicit(&started, memory_order_acquire) || getpid() != atomic_load(&process))
        return NULL;
    return disposition_of(number);
}

EXPORT int sigaction(int number, const struct sigaction *restrict new,
                     struct sigaction *restrict old) {
    struct disposition *disposition = concerned(number);
    if (disposition == NULL)
        return real_sigaction(number, new, old);
    sigset_t before;
    acquire(&before);
    int result = change(disposition, new, old);
    release(&before);
    return result;
}

/* The C library's signal functions call its own sigaction. */
static handler_function signal_by(const char *name, int number, handler_function handler,
                                  int flags) {
    signal_function real = (signal_function)next_symbol(name);
    struct disposition *disposition = concerned(number);
    if (disposition == NULL)
        return real(number, handler);
    struct sigaction old;
    if (handler == SIG_DFL) {
        struct sigaction action = {.sa_handler = SIG_DFL, .sa_flags = flags};
        sigemptyset(&action.sa_mask);
        if (!(flags & SA_NODEFER))
            sigaddset(&action.sa_mask, number);
        return sigaction(number, &action, &old) == 0 ? old.sa_handler : SIG_ERR;
    }
    if (sigaction(number, NULL, &old) != 0)
        return SIG_ERR;
    handler_function result = real(number, handler);
    return (void *)result == (void *)on_stop ? old.sa_handler : result;
}

/* The manual says which flags each of them means. */
EXPORT handler_function signal(int number, handler_function handler) {
    return signal_by("signal", number, handler, SA_RESTART);
}

EXPORT handler_function bsd_signal(int number, handler_function handler) {
    return signal_by("bsd_signal", number, handler, SA_RESTART);
}

EXPORT handler_function ssignal(int number, handler_function handler) {
    return signal_by("ssignal", number, handler, SA_RESTART);
}

EXPORT handler_function sysv_signal(int number, handler_function handler) {
    return signal_by("sysv_signal", number, handler, (int)(SA_RESETHAND | SA_NODEFER));
}

EXPORT handler_function __sysv_signal(int number, handler_function handler) {
    return signal_by("__sysv_signal", number, handler, (int)(SA_RESETHAND | SA_NODEFER));
}

/* Also takes a signal out of the mask, or puts it there, which is left to the C library. */
EXPORT handler_function sigset(int number, handler_function handler) {
    handler_function result = ((signal_function)next_symbol("sigset"))(number, handler);
    struct disposition *disposition = concerned(number);
    if (disposition == NULL)
        return result;
    stop_reclaim();
    return (void *)result == (void *)on_stop ? disposition->believed.sa_handler : result;
}
