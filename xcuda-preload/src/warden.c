#include "warden.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "account.h"
#include "capture.h"
#include "clock.h"
#include "context.h"
#include "drain.h"
#include "driver.h"
#include "gate.h"
#include "group.h"
#include "job.h"
#include "lane.h"
#include "log.h"
#include "quota.h"
#include "stop.h"

#define TICK_BUSY_NS     INT64_C(10000000)
#define TICK_IDLE_NS     INT64_C(100000000)
#define PUBLISH_EVERY_NS INT64_C(20000000)
#define REFRESH_EVERY_NS INT64_C(100000000)
#define COUNT_EVERY_NS   INT64_C(1000000000)

enum { STACK_BYTES = 256 * 1024 };

static _Atomic uint32_t bell;
static pthread_mutex_t at_work = PTHREAD_MUTEX_INITIALIZER; /* outermost of the warden's */
static bool retired;                                        /* the driver is being taken down */
static _Atomic bool running;
static _Atomic bool asleep; /* for long: somebody should ring */
static _Atomic int stop_signal;

struct round {
    int64_t now_ns;
    bool busy;
    bool wanted; /* there was something to do: come again soon */
    int64_t published_ns, refreshed_ns;
    uint64_t waited_ns; /* by threads at the gate, so far */
    CUcontext current;
};

static void look_after(struct lane *lane, void *context) {
    struct round *round = context;
    if ((lane->open || lane->count > 0) && lane->context != round->current) {
        driver.ctx_set_current(lane->context);
        round->current = lane->context;
    }
    group_poll(lane, round->now_ns);
    if (capture_spares(lane))
        group_ask_if_quiet(lane, round->now_ns);
    if (lane->open)
        group_report(lane);
    round->busy |= lane->open || lane->count > 0;
}

static bool look_after_groups(struct round *round) {
    round->now_ns = clock_now_ns();
    round->busy = false;
    round->current = NULL; /* it may be gone, and another one have its handle */
    unsigned left_out = lane_each(look_after, round, false);
    return round->busy || left_out > 0;
}

/* While the job is being stopped, whoever stops it wants to know when it may be killed. */
static void tell_whether_drained(bool busy) {
    enum mux_job_phase phase = gate_phase();
    bool stopping = phase == MUX_JOB_STOP || phase == MUX_JOB_STOP_HARD;
    bool frozen = gate_look(clock_now_ns()).gate.state == MUX_GATE_FROZEN;
    job_note_drained(stopping && frozen && !busy);
}

/* Sleeps for so long, or until the bell rings. A futex: ringing is allowed in a handler, and the
 * clock cannot be set. */
static void sleep_until_rung(int64_t duration_ns) {
    struct timespec duration = {duration_ns / 1000000000, duration_ns % 1000000000};
    if (atomic_exchange(&bell, 0) == 0)
        syscall(SYS_futex, &bell, FUTEX_WAIT_PRIVATE, 0, &duration, NULL, 0);
    atomic_store(&bell, 0);
}

static void ring(void) {
    int before = errno;
    atomic_store(&bell, 1);
    syscall(SYS_futex, &bell, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    errno = before;
}

/* Whether main and all other threads have ended by pthread_exit. Then this thread is what keeps the
 * process alive, and its end is that of the process, as without us. */
static bool alone(void) {
    char text[1024];
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    if (got <= 0)
        return false;
    text[got] = '\0';
    const char *after_name = strrchr(text, ')');
    char leader;
    long threads;
    return after_name != NULL &&
           sscanf(after_name + 1,
                  " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %ld",
                  &leader, &threads) == 2 &&
           leader == 'Z' && threads == 2;
}

static void end_process(struct round *round, int number) {
    log_line("signal %d: draining", number);
    if (!retired) {
        drain_for_good();
        look_after_groups(round);
    }
    job_end();
    stop_let_through(number);
}

/* What is done now and then. */
static void make_round(struct round *round) {
    bool was_busy = round->wanted;
    bool busy = look_after_groups(round);
    uint64_t waited_ns = atomic_load(&account.frozen_ns) + atomic_load(&account.throttled_ns);
    bool told = account_measures(round->now_ns);
    round->wanted = quota_trim() || busy || told || waited_ns != round->waited_ns;
    round->waited_ns = waited_ns;
    gate_age(round->now_ns);
    if (round->now_ns - round->refreshed_ns >= REFRESH_EVERY_NS) {
        round->refreshed_ns = round->now_ns;
        gate_refresh();
        job_claim();
        stop_reclaim();
    }
    tell_whether_drained(busy);
    bool due = round->now_ns - round->published_ns >= PUBLISH_EVERY_NS;
    if (round->wanted != was_busy || (round->wanted && due)) {
        round->published_ns = round->now_ns;
        job_publish();
    }
}

static void *run(void *nothing) {
    (void)nothing;
    /* Nothing that this thread does may break a capture of the program's. */
    int mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    driver.exchange_capture_mode(&mode);
    struct round round = {.wanted = true};
    int64_t counted_ns = 0;
    for (;;) {
        atomic_store(&asleep, !round.wanted);
        sleep_until_rung(round.wanted ? TICK_BUSY_NS : TICK_IDLE_NS);
        atomic_store(&asleep, false);
        int number = atomic_load(&stop_signal);
        pthread_mutex_lock(&at_work);
        if (number != 0)
            end_process(&round, number);
        if (!retired)
            make_round(&round);
        pthread_mutex_unlock(&at_work);
        if (round.now_ns - counted_ns >= COUNT_EVERY_NS && !round.wanted) {
            counted_ns = round.now_ns;
            if (alone())
                return NULL;
        }
    }
}

void warden_start(void) {
    atomic_store(&stop_signal, 0);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the new thread inherits the mask */
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    int error = pthread_create(&thread, &attributes, run, NULL);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error == 0) {
        pthread_setname_np(thread, "xcuda");
        atomic_store(&running, true);
    } else {
        log_line("no thread to look after launches: %s", strerror(error));
    }
}

void warden_wake(void) {
    if (atomic_load_explicit(&asleep, memory_order_relaxed) && atomic_exchange(&asleep, false))
        ring();
}

bool warden_stop_by(int signal_number) {
    int none = 0;
    if (!atomic_load(&running))
        return false;
    atomic_compare_exchange_strong(&stop_signal, &none, signal_number); /* the first one counts */
    ring();
    return true;
}

void warden_retire(void) {
    pthread_mutex_lock(&at_work);
    retired = true;
    pthread_mutex_unlock(&at_work);
}

void warden_keep_off(void) {
    pthread_mutex_lock(&at_work);
}

void warden_let_in(void) {
    pthread_mutex_unlock(&at_work);
}

void warden_forget(void) {
    pthread_mutex_init(&at_work, NULL);
    retired = false;
    atomic_store(&running, false);
    atomic_store(&asleep, false);
}
