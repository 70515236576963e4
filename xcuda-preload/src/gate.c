#include "gate.h"

#include <pthread.h>
#include <string.h>

#include "cancel.h"
#include "clock.h"
#include "log.h"
#include "settings.h"

_Atomic uint32_t attention = ATTENTION_START;

static struct mux_view view;
static const uint64_t frozen; /* a word of zeros: FROZEN */
const uint64_t *gate_device_word = &frozen;
const uint64_t *gate_job_word = &frozen;
static _Atomic uint32_t obeyed_epoch;

static pthread_mutex_t beacon_lock = PTHREAD_MUTEX_INITIALIZER; /* innermost */
static struct mux_beacon_reader beacon;

static void tell(const struct mux_mapping *mapping, int before) {
    if (mapping->error == before)
        return;
    if (mapping->error != 0)
        log_line("frozen: no page in %s (%s)", mapping->path, strerror(mapping->error));
    else
        log_line("found %s", mapping->path);
}

/* Not where it happens, which is on the way of a launch. */
static void tell_of_copies(int error) {
    static int told;
    if (error != 0 && told == 0)
        log_line("beacon pages are read from their files, which takes longer (%s)",
                 strerror(error));
    told = error;
}

void gate_start(void) {
    int64_t now_ns = clock_now_ns();
    mux_view_open(&view, settings()->device_dir, settings()->job_dir, now_ns);
    mux_beacon_open(&beacon, settings()->device_dir, now_ns);
    tell(&view.device, 0);
    tell(&view.control, 0);
    gate_device_word = &mux_view_device(&view)->gate;
    gate_job_word = &mux_view_control(&view)->gate;
}

void gate_forget(void) {
    gate_device_word = gate_job_word = &frozen;
    mux_view_close(&view);
    mux_beacon_close(&beacon);
    pthread_mutex_init(&beacon_lock, NULL);
}

/* What the words say is worked out once, for they seldom change. */
struct gate_look gate_look(int64_t now_ns) {
    static _Thread_local struct gate_look known; /* of zeros: FROZEN, as zeros are */
    uint64_t device_word = mux_gate_load(gate_device_word);
    uint64_t job_word = mux_gate_load(gate_job_word);
    uint32_t epoch = (uint32_t)(device_word >> MUX_GATE_EPOCH_SHIFT & MUX_GATE_EPOCH_MASK);
    atomic_store_explicit(&obeyed_epoch, epoch, memory_order_relaxed);
    if (!mux_pulse_fresh(&view.pulse, mux_view_device(&view), now_ns))
        return (struct gate_look){.device_word = device_word, .job_word = job_word};
    if (atomic_load_explicit(&attention, memory_order_relaxed) & ATTENTION_STALE)
        gate_age(now_ns); /* launches need not go the long way until the warden looks again */
    if (known.device_word != device_word || known.job_word != job_word)
        known = (struct gate_look){
            .gate = mux_gate_combine(device_word, job_word),
            .device_word = device_word,
            .job_word = job_word,
        };
    return known;
}

void gate_refresh(void) {
    int device = view.device.error, control = view.control.error;
    mux_view_refresh(&view, clock_now_ns());
    pthread_mutex_lock(&beacon_lock);
    mux_beacon_refresh(&beacon);
    int copy_error = beacon.copy_error;
    pthread_mutex_unlock(&beacon_lock);
    tell_of_copies(copy_error);
    tell(&view.device, device);
    tell(&view.control, control);
}

void gate_age(int64_t now_ns) {
    bool alive = mux_pulse_fresh(&view.pulse, mux_view_device(&view), now_ns);
    bool was_alive = !(atomic_load(&attention) & ATTENTION_STALE);
    if (alive && !was_alive) {
        atomic_fetch_and(&attention, ~(uint32_t)ATTENTION_STALE);
        log_line("the monitor is alive");
    } else if (!alive && was_alive) {
        atomic_fetch_or(&attention, ATTENTION_STALE);
        log_line("frozen: the monitor is not alive");
    }
}

int64_t gate_beacon_wait_ns(int64_t now_ns) {
    uint32_t holdoff_us = mux_load32(&mux_view_device(&view)->beacon_holdoff_us);
    if (holdoff_us == 0)
        return 0;
    int before = cancel_forbid();
    pthread_mutex_lock(&beacon_lock);
    int64_t wait_ns = mux_beacon_wait_ns(&beacon, holdoff_us, now_ns);
    pthread_mutex_unlock(&beacon_lock);
    cancel_restore(before);
    return wait_ns;
}

enum mux_job_phase gate_phase(void) {
    return mux_load32(&mux_view_control(&view)->phase);
}

uint64_t gate_quota_bytes(void) {
    return mux_load64(&mux_view_control(&view)->quota_bytes);
}

uint64_t gate_context_bytes(void) {
    return mux_load64(&mux_view_control(&view)->context_bytes);
}

uint32_t gate_epoch(void) {
    return atomic_load_explicit(&obeyed_epoch, memory_order_relaxed);
}
