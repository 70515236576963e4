/* The way of a launch: past the gate, into the driver. */
#ifndef XCUDA_LAUNCH_H
#define XCUDA_LAUNCH_H

#include "driver.h"
#include "gate.h"
#include "lane.h"

/* Sets the library up if need be. Whether launches are gated at all. */
bool launch_gated(void);

/* The long way past the gate: waits until it, the budget and the window allow the launch. */
struct lane *launch_admit(CUstream stream, uint64_t work);

CUresult launch_settle(struct lane *lane, enum hook_index hook, CUresult result);

/* Before a launch. Returns the thread's lane, held, or NULL for what is not gated. */
static inline struct lane *launch_enter(CUstream stream, uint64_t work) {
    struct lane *lane = self.lanes[lane_memory(stream)];
    if (lane == NULL || !lane_try(lane, LANE_LAUNCHING))
        return launch_admit(stream, work);
    struct estimate *estimate = estimate_guess(work);
    int64_t credit_ns =
        lane->credit_ns - atomic_load_explicit(&estimate->cost_ns, memory_order_relaxed);
    if (credit_ns < 0 || lane->until_sample <= 1 || !lane_is(lane, &self, stream) ||
        atomic_load_explicit(&estimate->work, memory_order_relaxed) != work ||
        atomic_load_explicit(&attention, memory_order_relaxed) != 0 ||
        mux_gate_load(gate_device_word) != lane->device_word ||
        mux_gate_load(gate_job_word) != lane->job_word) {
        lane_release(lane);
        return launch_admit(stream, work);
    }
    lane->credit_ns = credit_ns;
    lane->until_sample--;
    lane->launches++;
    lane->mean_ns += atomic_load_explicit(&estimate->mean_ns, memory_order_relaxed);
    if (lane->only != estimate)
        lane->only = NULL;
    return lane;
}

/* After it. */
static inline CUresult launch_leave(struct lane *lane, enum hook_index hook, CUresult result) {
    if (lane == NULL || lane->close_now || result != CUDA_SUCCESS)
        return launch_settle(lane, hook, result);
    lane_release(lane);
    return result;
}

#endif
