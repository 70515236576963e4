#include "passage.h"

#include <stdatomic.h>
#include <stdint.h>

#include "clock.h"
#include "gate.h"
#include "lane.h"
#include "launch.h"

static _Atomic uint32_t on_the_way; /* threads */
static _Atomic bool closed;

/* A job that saves its state shares the bus with an online side that is in need of it: after a call
 * it leaves the bus alone for as long as the call took. Shorter ones are no copies that matter; in
 * longer ones most of the time may have been spent waiting for something else. */
#define LEAST_PACED_NS INT64_C(50000)
#define MOST_PACED_NS  INT64_C(100000000)

static bool is_paced(void) {
    return gate_phase() == MUX_JOB_CHECKPOINT;
}

static void pace(int64_t took_ns) {
    if (took_ns >= LEAST_PACED_NS)
        clock_doze(took_ns < MOST_PACED_NS ? took_ns : MOST_PACED_NS);
}

/* The driver may call itself by name, and a callback is waited for by the stream that the drain
 * waits for: neither is held up. Sequentially consistent: either this thread sees that the way is
 * closed, or passage_close sees this thread. */
bool passage_enter(void) {
    if (!launch_gated() || self.in_callback > 0)
        return false;
    if (self.on_the_way++ > 0)
        return true;
    while (atomic_fetch_add(&on_the_way, 1), atomic_load(&closed)) {
        atomic_fetch_sub(&on_the_way, 1);
        clock_doze(1000000);
    }
    self.passed_ns = is_paced() ? clock_now_ns() : 0;
    return true;
}

void passage_leave(bool entered) {
    if (!entered || --self.on_the_way > 0)
        return;
    atomic_fetch_sub(&on_the_way, 1);
    if (self.passed_ns != 0)
        pace(clock_now_ns() - self.passed_ns);
}

void passage_close(void) {
    atomic_store(&closed, true);
    while (atomic_load(&on_the_way) > 0)
        clock_doze(50000);
}

void passage_forget_all(void) {
    atomic_store(&closed, false);
    atomic_store(&on_the_way, 0);
}
