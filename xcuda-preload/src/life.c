#include "life.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "account.h"
#include "beacon.h"
#include "cancel.h"
#include "capture.h"
#include "context.h"
#include "drain.h"
#include "driver.h"
#include "gate.h"
#include "job.h"
#include "lane.h"
#include "launch.h"
#include "log.h"
#include "nvml.h"
#include "pages.h"
#include "passage.h"
#include "quota.h"
#include "settings.h"
#include "stop.h"
#include "warden.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* outermost */
static pthread_once_t arrival = PTHREAD_ONCE_INIT;
static bool registered;
static bool begun; /* there is something to forget in a child */

/* A child has none of its parent's threads, contexts or memory: it begins anew if it ever uses
 * CUDA. Nothing here may be locked, for nobody is left to unlock it. */
static void child_after_fork(void) {
    pthread_mutex_init(&lock, NULL);
    driver_forget_lock();
    nvml_forget_lock();
    if (!begun)
        return;
    begun = false;
    atomic_store(&attention, ATTENTION_START);
    if (settings()->mode == MODE_BEACON) {
        beacon_forget_all();
        return;
    }
    stop_forget_all();
    lane_forget_all();
    passage_forget_all();
    account_forget_all();
    context_forget_all();
    job_forget_all();
    quota_forget_all();
    quota_forget_contexts();
    capture_forget_all();
    warden_forget();
    gate_forget();
}

/* Registered after the driver has registered its own, hence called before. */
static bool is_set_up(void) {
    return !(atomic_load_explicit(&attention, memory_order_acquire) &
             (ATTENTION_START | ATTENTION_INERT | ATTENTION_BEACON));
}

static void at_exit(void) {
    if (is_set_up()) { /* not in a child that was only forked */
        drain_at_exit();
        warden_retire();
        job_end();
    }
}

/* Before anything is begun: another thread may fork in the middle of it. */
static void begin(void) {
    if (!registered) {
        registered = true;
        pthread_atfork(NULL, NULL, child_after_fork);
        atexit(at_exit);
    }
    begun = true;
}

static void start_beacon(void) {
    int cancel = cancel_forbid();
    pthread_mutex_lock(&lock);
    if (atomic_load(&attention) & ATTENTION_START) {
        begin();
        beacon_start();
        atomic_store(&attention, ATTENTION_BEACON);
    }
    pthread_mutex_unlock(&lock);
    cancel_restore(cancel);
}

/* The process is the same after exec, and so is its slot, with all that the program before had. */
static void arrive(void) {
    int before = errno;
    if (settings()->mode == MODE_OFFLINE)
        mux_job_end_former(settings()->job_dir);
    errno = before;
}

/* The program may never use CUDA, or another library's constructor may use it before this one. */
__attribute__((constructor)) static void arrive_early(void) {
    pthread_once(&arrival, arrive);
}

bool life_start(void) {
    if (atomic_load_explicit(&attention, memory_order_acquire) & ATTENTION_BEACON)
        return false;
    if (settings()->mode == MODE_BEACON) {
        if (driver_find())
            start_beacon();
        return false;
    }
    if (settings()->mode == MODE_INERT) {
        driver_find();
        atomic_store(&attention, ATTENTION_INERT);
        return false;
    }
    if (!driver_find())
        return false;
    int cancel = cancel_forbid();
    pthread_mutex_lock(&lock);
    if (atomic_load(&attention) & ATTENTION_START) {
        begin();
        gate_start();
        pthread_once(&arrival, arrive);
        job_claim();
        warden_start();
        stop_start();
        atomic_fetch_and(&attention, ~(uint32_t)ATTENTION_START);
        log_line("gated: device %s, job %s", settings()->device_dir, settings()->job_dir);
    }
    pthread_mutex_unlock(&lock);
    cancel_restore(cancel);
    return true;
}

bool launch_gated(void) {
    return is_set_up() || life_start();
}
