#include "estimate.h"

#include <stdlib.h>

enum {
    SMOOTHING = 8,    /* weight of history, in samples */
    EXCESS = 2,       /* deviations that a cost lies above the mean, as in retransmission timers */
    YOUNG = 4,        /* samples */
    MOST_AT_ONCE = 4, /* samples that one measurement of many launches counts for */
};

struct estimate estimates[ESTIMATES];

static struct estimate *place(uint64_t work, unsigned probe) {
    return &estimates[(estimate_place(work) + probe) % ESTIMATES];
}

static uint64_t work_of(const struct estimate *estimate) {
    return atomic_load_explicit(&estimate->work, memory_order_acquire);
}

/* What no work is known by, but in one case of 2^64. */
#define BEING_TAKEN UINT64_MAX

static bool claim(struct estimate *estimate, uint64_t before, uint64_t work) {
    if (before == BEING_TAKEN ||
        !atomic_compare_exchange_strong(&estimate->work, &before, BEING_TAKEN))
        return false;
    atomic_store_explicit(&estimate->cost_ns, ESTIMATE_UNKNOWN_NS, memory_order_relaxed);
    atomic_store_explicit(&estimate->mean_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&estimate->work, work, memory_order_release);
    return true;
}

/* When all places are taken, the one that the work itself picks is given up: bounded memory, and
 * what is in use is learned again. Where others do the same at that moment, it is the next one. */
struct estimate *estimate_of(uint64_t work) {
    for (unsigned probe = 0; probe < ESTIMATE_PROBES; probe++) {
        struct estimate *estimate = place(work, probe);
        if (work_of(estimate) == work)
            return estimate;
    }
    for (unsigned probe = 0; probe < ESTIMATE_PROBES; probe++) {
        struct estimate *estimate = place(work, probe);
        if (work_of(estimate) == 0 && claim(estimate, 0, work))
            return estimate;
    }
    unsigned pick = (unsigned)work % ESTIMATE_PROBES;
    for (unsigned i = 0; i < ESTIMATE_PROBES; i++) {
        struct estimate *victim = place(work, (pick + i) % ESTIMATE_PROBES);
        if (claim(victim, work_of(victim), work))
            return victim;
    }
    return place(work, pick);
}

void estimate_learn(struct estimate *estimate, int64_t duration_ns, uint32_t launches) {
    if (atomic_load_explicit(&estimate->cost_ns, memory_order_relaxed) == ESTIMATE_UNKNOWN_NS) {
        atomic_store_explicit(&estimate->samples, 0, memory_order_relaxed);
        estimate->deviation_ns = 0;
        estimate->baseline_ns = 0;
    }
    uint32_t weight = launches < MOST_AT_ONCE ? launches : MOST_AT_ONCE;
    uint32_t samples = atomic_load_explicit(&estimate->samples, memory_order_relaxed);
    bool first = samples == 0;
    if (samples < SMOOTHING)
        samples += weight;
    atomic_store_explicit(&estimate->samples, samples, memory_order_relaxed);
    int64_t history = samples < SMOOTHING ? samples : SMOOTHING;
    int64_t mean = atomic_load_explicit(&estimate->mean_ns, memory_order_relaxed);
    int64_t error = duration_ns - mean;
    mean += error * weight / history;
    if (!first) /* which deviates from nothing */
        estimate->deviation_ns += (llabs(error) - estimate->deviation_ns) * weight / history;
    int64_t cost = mean + EXCESS * estimate->deviation_ns;
    atomic_store_explicit(&estimate->mean_ns, mean, memory_order_relaxed);
    atomic_store_explicit(&estimate->cost_ns, cost > ESTIMATE_LEAST_NS ? cost : ESTIMATE_LEAST_NS,
                          memory_order_relaxed);
}

/* A pause between two measurements says nothing of the time in between. */
#define LONGEST_STEP_NS INT64_C(1000000000)

int64_t estimate_baseline_ns(struct estimate *estimate, int64_t now_ns) {
    int64_t mean_ns = atomic_load_explicit(&estimate->mean_ns, memory_order_relaxed);
    if (estimate_is_young(estimate) || 2 * estimate->deviation_ns > mean_ns)
        return 0;
    int64_t passed_ns = now_ns - estimate->baseline_at_ns;
    double step_ns = (double)(passed_ns < LONGEST_STEP_NS ? passed_ns : LONGEST_STEP_NS);
    double above_ns = (double)mean_ns - estimate->baseline_ns;
    if (estimate->baseline_ns == 0 || above_ns <= 0)
        estimate->baseline_ns = (double)mean_ns;
    else
        estimate->baseline_ns += above_ns * step_ns * 0.693 / (double)ESTIMATE_BASELINE_HALF_NS;
    estimate->baseline_at_ns = now_ns;
    return (int64_t)estimate->baseline_ns;
}

bool estimate_is_young(const struct estimate *estimate) {
    return atomic_load_explicit(&estimate->samples, memory_order_relaxed) < YOUNG;
}

void estimate_forget(uint64_t work) {
    for (unsigned probe = 0; probe < ESTIMATE_PROBES; probe++) {
        struct estimate *estimate = place(work, probe);
        if (work_of(estimate) == work)
            atomic_store_explicit(&estimate->cost_ns, ESTIMATE_UNKNOWN_NS, memory_order_relaxed);
    }
}
