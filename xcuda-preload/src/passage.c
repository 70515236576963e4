#include "passage.h"

#include <stdatomic.h>
#include <stdint.h>

#include "clock.h"
#include "lane.h"
#include "launch.h"

static _Atomic uint32_t on_the_way; /* threads */
static _Atomic bool closed;

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
    return true;
}

void passage_leave(bool entered) {
    if (entered && --self.on_the_way == 0)
        atomic_fetch_sub(&on_the_way, 1);
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
