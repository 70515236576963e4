#include "drain.h"

#include "account.h"
#include "capture.h"
#include "clock.h"
#include "context.h"
#include "driver.h"
#include "gate.h"
#include "group.h"
#include "lane.h"
#include "log.h"
#include "passage.h"

/* The driver ends what is still in flight at exit, as it does without us; so long one may hope that
 * it ends by itself. */
#define EXIT_PATIENCE_NS INT64_C(2000000000)

/* A capture is the program's own code between two launches. One that takes longer is held up
 * itself, or ended unseen (capture.c). */
#define CAPTURE_PATIENCE_NS INT64_C(2000000000)

/* Whoever holds a lane after the gate is closed knows that its last launch is with the driver. */
static void pass(struct lane *lane, void *context) {
    (void)lane;
    (void)context;
}

/* The contexts of the program, one after the other. */
static void synchronize_each(CUcontext context) {
    if (driver.ctx_set_current(context) == CUDA_SUCCESS)
        driver.ctx_synchronize();
}

struct look {
    int64_t now_ns;
    bool busy;
    CUcontext current;
};

static void look_at(struct lane *lane, void *context) {
    struct look *look = context;
    if ((lane->open || lane->count > 0) && lane->context != look->current) {
        driver.ctx_set_current(lane->context);
        look->current = lane->context;
    }
    group_poll(lane, look->now_ns);
    if (lane->count == 0)
        group_ask_if_quiet(lane, look->now_ns);
    look->busy |= lane->open || lane->count > 0;
}

static bool something_in_flight(void) {
    CUcontext before = NULL;
    driver.ctx_get_current(&before);
    struct look look = {.now_ns = clock_now_ns(), .current = before};
    unsigned left_out = lane_each(look_at, &look, false);
    if (look.current != before)
        driver.ctx_set_current(before);
    return look.busy || left_out > 0;
}

/* The driver waits for no context of which a stream is captured, and breaks the capture. None
 * begins any more, and those that have begun are soon over. */
static bool captures_end(void) {
    int64_t until_ns = clock_now_ns() + CAPTURE_PATIENCE_NS;
    while (capture_any() && clock_now_ns() < until_ns)
        clock_doze(200000);
    return !capture_any();
}

void drain_for_good(void) {
    atomic_fetch_or(&attention, ATTENTION_CLOSED);
    lane_each(pass, NULL, true);
    atomic_fetch_or(&attention, ATTENTION_UNMARKED);
    lane_each(pass, NULL, true); /* until whoever has not seen that has made his mark */
    bool ended = captures_end();
    int mode = capture_relax();
    /* A kernel may wait for a word that a copy is to bring: these pass until it is over. */
    if (ended)
        context_each(synchronize_each);
    while (!ended && something_in_flight())
        clock_doze(200000);
    passage_close();
    context_each(synchronize_each);
    capture_restore(mode);
}

void drain_at_exit(void) {
    int64_t until_ns = clock_now_ns() + EXIT_PATIENCE_NS;
    int mode = capture_relax();
    while (!capture_any() && something_in_flight() && clock_now_ns() < until_ns)
        clock_doze(200000);
    capture_restore(mode);
}
