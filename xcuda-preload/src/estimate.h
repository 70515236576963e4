/* How long work takes on the device, learned from what was measured: per function and grid, per
 * graph, per kind and size of a copy. */
#ifndef XCUDA_ESTIMATE_H
#define XCUDA_ESTIMATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "visibility.h"

/* The cost of what was never measured: more than any window. */
#define ESTIMATE_UNKNOWN_NS (INT64_MAX / 4)

/* No launch counts for less: a driver takes longer to accept one. */
#define ESTIMATE_LEAST_NS 1000

/* Read at each launch without a lock. An estimate that is replaced under a reader's eyes is wrong
 * for one launch. */
struct estimate {
    _Atomic uint64_t work;    /* what it is about (work.h); 0: nothing; or somebody is taking it */
    _Atomic int64_t cost_ns;  /* what is charged to the window: the mean and its usual excess */
    _Atomic int64_t mean_ns;  /* what is expected */
    int64_t deviation_ns;     /* mean distance of samples from the mean; under the learner's lock */
    _Atomic uint32_t samples; /* as many as make a difference */
    /* What it takes when nothing is in its way, since when; under the learner's lock. 0: unknown.
     * A fraction: what is measured often rises by less than a nanosecond at a time. */
    double baseline_ns;
    int64_t baseline_at_ns;
} __attribute__((aligned(64)));

enum { ESTIMATES = 4096, ESTIMATE_PROBES = 4 };

extern HIDDEN struct estimate estimates[ESTIMATES];

static inline unsigned estimate_place(uint64_t work) {
    return (unsigned)(work >> 52); /* the best bits of a product are its upper ones */
}

/* The estimate for this work in its first place, or whatever is there (launch path). */
static inline struct estimate *estimate_guess(uint64_t work) {
    return &estimates[estimate_place(work)];
}

/* The estimate for this work; made if there is none. */
struct estimate *estimate_of(uint64_t work);

/* Takes in that `launches` of it took `duration_ns` each. One caller at a time. */
void estimate_learn(struct estimate *estimate, int64_t duration_ns, uint32_t launches);

/* A baseline is the least mean of late. It falls with the mean at once, and rises with it slowly:
 * half of the way in so much time, in which the work is measured. So a function whose work has
 * grown has its new baseline, but for a tenth of the difference, after three or four times that;
 * and one that others are in the way of for a minute still knows better. */
#define ESTIMATE_BASELINE_HALF_NS INT64_C(20000000000)

/* Brings the baseline up to date after a measurement, and returns it. 0: not known, for the work is
 * young, or erratic: its usual distance from the mean is more than half of that. One caller at a
 * time. */
int64_t estimate_baseline_ns(struct estimate *estimate, int64_t now_ns);

/* Whether so few samples were taken that every one counts. */
bool estimate_is_young(const struct estimate *estimate);

/* The work will mean something else from now on: a handle was destroyed. */
void estimate_forget(uint64_t work);

#endif
