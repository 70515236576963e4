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

/* The short way, inlined into every launch that stub.h has none for: what was granted before is
 * enough, and the gate is as it was then. Returns the lane, to be left with lane_leave, or NULL if
 * the long way must be taken. */
__attribute__((always_inline)) static inline struct lane *
launch_enter(CUstream as_named, CUstream if_null, uint64_t work) {
    CUstream name = lane_name(as_named, if_null);
    unsigned place = lane_place(name);
    struct lane *lane = self.lanes[place];
    if (__builtin_expect(atomic_load_explicit(&attention, memory_order_relaxed) != 0 ||
                             self.names[place] != name || work == 0 ||
                             !lane_enter(lane, self.lives[place]),
                         0))
        return NULL;
    struct estimate *estimate = estimate_guess(work);
    int64_t credit_ns =
        lane->credit_ns - atomic_load_explicit(&estimate->cost_ns, memory_order_relaxed);
    if (__builtin_expect(mux_gate_load(gate_device_word) != lane->device_word ||
                             mux_gate_load(gate_job_word) != lane->job_word ||
                             atomic_load_explicit(&estimate->work, memory_order_relaxed) != work ||
                             credit_ns < 0,
                         0)) {
        lane_leave(lane);
        return NULL;
    }
    lane->works += work;
    lane->credit_ns = credit_ns;
    lane->mean_ns += atomic_load_explicit(&estimate->mean_ns, memory_order_relaxed);
    lane->launches++;
    return lane;
}

#endif
