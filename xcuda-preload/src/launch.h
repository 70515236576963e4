/* The way of a launch: past the gate, into the driver. */
#ifndef XCUDA_LAUNCH_H
#define XCUDA_LAUNCH_H

#include "driver.h"
#include "gate.h"
#include "lane.h"

/* Sets the library up if need be. Whether launches are gated at all. */
bool launch_gated(void);

/* The long way past the gate: waits until it, the budget and the window allow the launch. `stream`
 * as the program names it, `if_null` what it means by NULL. Returns the thread's lane, held, or
 * NULL for what is not gated. */
struct lane *launch_admit(CUstream stream, CUstream if_null, uint64_t work);

/* After a launch that came the long way. */
CUresult launch_settle(struct lane *lane, enum hook_index hook, CUresult result);

/* After a launch that came the short way and failed. */
CUresult launch_failed(enum hook_index hook, CUresult result);

/* The short way, inlined into every launch: what was granted before is enough, and the gate is as
 * it was then. Returns the lane, held, or NULL if the long way must be taken. The order of the
 * checks is that of what they need, not of their weight. */
__attribute__((always_inline)) static inline struct lane *launch_enter(CUstream stream,
                                                                       uint64_t work) {
    const struct memory *memory = lane_memory(stream);
    struct lane *lane = memory->lane;
    if (__builtin_expect(memory->stream != stream, 0) ||
        __builtin_expect(!lane_try(lane, LANE_LAUNCHING), 0))
        return NULL;
    struct estimate *estimate = estimate_guess(work);
    int64_t credit_ns =
        lane->credit_ns - atomic_load_explicit(&estimate->cost_ns, memory_order_relaxed);
    if (__builtin_expect(credit_ns < 0 ||
                             atomic_load_explicit(&lane->life, memory_order_relaxed) !=
                                 memory->life ||
                             atomic_load_explicit(&estimate->work, memory_order_relaxed) != work ||
                             atomic_load_explicit(&attention, memory_order_relaxed) != 0 ||
                             mux_gate_load(gate_device_word) != lane->device_word ||
                             mux_gate_load(gate_job_word) != lane->job_word,
                         0)) {
        lane_release(lane);
        return NULL;
    }
    lane->credit_ns = credit_ns;
    lane->launches++;
    lane->mean_ns += atomic_load_explicit(&estimate->mean_ns, memory_order_relaxed);
    if (lane->only != estimate)
        lane->only = NULL;
    return lane;
}

#endif
