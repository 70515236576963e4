/* By how much kernels take longer than each of them has taken when nothing was in its way: a sign
 * that others need the device, long before NVML tells.
 *
 * Of each group whose time was measured (alone, or behind another one), and of which all launches
 * are alike, the time that it took and the time that its launches take by their baseline
 * (estimate.h) are summed up, so that long work counts for more. Both sums fade with
 * INFLATION_MEMORY_NS; the inflation is their quotient. What was only expected does not count. */
#ifndef XCUDA_INFLATION_H
#define XCUDA_INFLATION_H

#include <stdint.h>

#define INFLATION_MEMORY_NS INT64_C(100000000)

struct inflation {
    int64_t measured_ns, baseline_ns; /* fading */
    int64_t at_ns;                    /* when that was so; 0: never */
};

/* Enters that work was measured to take so long. `baseline_ns` 0: it says nothing. */
void inflation_add(struct inflation *inflation, int64_t measured_ns, int64_t baseline_ns,
                   int64_t now_ns);

/* 1000: as ever. 0: not known, for nothing was measured of late. */
uint32_t inflation_permille(const struct inflation *inflation, int64_t now_ns);

#endif
