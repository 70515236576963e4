/* Sample periods: utilization is told for whole windows of the kind's period, which lie at the
 * multiples of that period. What happens within a window is not seen before it ends. */
#ifndef SIMGPU_NVML_WINDOWS_H
#define SIMGPU_NVML_WINDOWS_H

#include "nvml_state.h"

/* Number of the newest window that has ended. Window n reaches from n to n + 1 periods. */
static inline uint64_t nvml_newest_window(nvmlDevice_t device, uint64_t now_ns) {
    return now_ns / device->kind->sample_ns - 1;
}

static inline uint64_t nvml_window_start(nvmlDevice_t device, uint64_t window) {
    return window * device->kind->sample_ns;
}

/* A whole percentage of the period. */
static inline unsigned nvml_percent(nvmlDevice_t device, double then_ns, double now_ns) {
    double percent = 100 * (now_ns - then_ns) / (double)device->kind->sample_ns;
    return percent <= 0 ? 0 : percent >= 100 ? 100 : (unsigned)(percent + 0.5);
}

#endif
