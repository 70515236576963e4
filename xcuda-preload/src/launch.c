#include "launch.h"

#include <stddef.h>

#include "account.h"
#include "capture.h"
#include "clock.h"
#include "context.h"
#include "group.h"
#include "job.h"
#include "stub.h"
#include "warden.h"

/* What stub.h believes. */
_Static_assert(offsetof(struct thread, names) == STUB_SELF_NAMES, "stub.h");
_Static_assert(offsetof(struct thread, lanes) == STUB_SELF_LANES, "stub.h");
_Static_assert(offsetof(struct thread, lives) == STUB_SELF_LIVES, "stub.h");
_Static_assert(offsetof(struct lane, launching) == STUB_LANE_LAUNCHING, "stub.h");
_Static_assert(LANE_ONCE == STUB_LANE_ONCE, "stub.h");
_Static_assert(offsetof(struct lane, launches) == STUB_LANE_LAUNCHES, "stub.h");
_Static_assert(offsetof(struct lane, open_to) == STUB_LANE_OPEN_TO, "stub.h");
_Static_assert(offsetof(struct lane, device_word) == STUB_LANE_DEVICE_WORD, "stub.h");
_Static_assert(offsetof(struct lane, job_word) == STUB_LANE_JOB_WORD, "stub.h");
_Static_assert(offsetof(struct lane, credit_ns) == STUB_LANE_CREDIT, "stub.h");
_Static_assert(offsetof(struct lane, mean_ns) == STUB_LANE_MEAN, "stub.h");
_Static_assert(offsetof(struct lane, works) == STUB_LANE_WORKS, "stub.h");
_Static_assert(offsetof(struct estimate, work) == STUB_ESTIMATE_WORK, "stub.h");
_Static_assert(offsetof(struct estimate, cost_ns) == STUB_ESTIMATE_COST, "stub.h");
_Static_assert(offsetof(struct estimate, mean_ns) == STUB_ESTIMATE_MEAN, "stub.h");
_Static_assert(sizeof(struct estimate) == 1 << STUB_ESTIMATE_SHIFT, "stub.h");
_Static_assert(ESTIMATES == 1 << (64 - STUB_PLACE_SHIFT), "stub.h");
_Static_assert(offsetof(CUlaunchConfig, gridDimX) == 0 && offsetof(CUlaunchConfig, gridDimY) == 4 &&
                   offsetof(CUlaunchConfig, gridDimZ) == 8 &&
                   offsetof(CUlaunchConfig, hStream) == STUB_CONFIG_STREAM,
               "stub.h");

/* A group is granted a quarter of the window, so that the device has work while one of its marks is
 * waited for. */
enum { GROUPS_PER_WINDOW = 4 };

/* What is not known to be complete counts as at least so much of a window, however late it is. */
enum { DOUBTS_PER_WINDOW = 8 };

/* When a lane has made so many launches in so long a time, and none was measured, the first one of
 * the next group is measured alone. */
enum { SAMPLE_EVERY = 100 };
#define SAMPLE_EVERY_NS INT64_C(20000000)

/* Work that takes this long is always measured: two marks more are nothing beside it. */
#define ALWAYS_EXACT_NS INT64_C(100000)

/* So long what was never measured waits to be alone. */
#define ALONE_PATIENCE_NS INT64_C(50000000)

#define SHORTEST_WAIT_NS INT64_C(20000)
/* Between two looks at an online side that is active. */
#define BEACON_LOOK_NS  INT64_C(50000)
#define LONGEST_WAIT_NS INT64_C(1000000)

/* ---- waiting ----------------------------------------------------------------------------------
 */

enum hindrance {
    NOTHING,
    FROZEN, /* the gate */
    BEACON, /* the online side is active */
    BUDGET,
    WINDOW,
};

/* How one launch has waited so far. */
struct wait {
    bool begun;
    int64_t step_ns; /* of the last doze for something that was overdue; 0: none yet */
    int64_t open_ns; /* since when the gate has been open, for this launch */
    int64_t due_ns;  /* when the next group of another lane is expected to be complete */
};

struct look {
    int64_t now_ns, due_ns;
};

static void look_after(struct lane *lane, void *context) {
    struct look *look = context;
    int mode = capture_relax();
    group_poll_due(lane, look->now_ns);
    if (capture_spares(lane))
        group_ask_if_quiet(lane, look->now_ns);
    capture_restore(mode);
    int64_t due_ns = group_due_ns(lane);
    if (due_ns > 0 && due_ns < look->due_ns)
        look->due_ns = due_ns;
}

/* Sees what is complete in other lanes, and when the next of them is due. With several contexts the
 * current one is that of this thread's lane, not of each of them: then it is left to the warden. */
static int64_t look_after_all(int64_t now_ns) {
    struct look look = {.now_ns = now_ns, .due_ns = INT64_MAX};
    if (!(atomic_load(&attention) & ATTENTION_CONTEXTS))
        lane_each(look_after, &look, false);
    return look.due_ns;
}

/* A thread that has to wait makes no more launches anywhere: its groups end here, and not when it
 * comes back to them. */
static void close_own(void) {
    int64_t now_ns = clock_now_ns();
    for (unsigned i = 0; i < THREAD_LANES; i++) {
        struct lane *lane = lane_try_own(i);
        if (lane == NULL)
            continue;
        int mode = capture_relax();
        if (lane->open && lane->launches > 0 && group_room(lane, INT64_MAX, 0) &&
            capture_spares(lane))
            group_close(lane, now_ns);
        capture_restore(mode);
        lane_release(lane);
    }
}

/* How long to sleep: until what is waited for is due; when it is not known, or overdue, a little
 * longer each time. Never so long that a gate that opens is seen late. */
static int64_t step_ns(struct wait *wait, int64_t due_in_ns) {
    if (due_in_ns <= 0 && wait->step_ns < LONGEST_WAIT_NS)
        wait->step_ns += wait->step_ns / 2 + SHORTEST_WAIT_NS;
    int64_t step_ns = due_in_ns > 0 ? due_in_ns : wait->step_ns;
    if (step_ns < SHORTEST_WAIT_NS)
        step_ns = SHORTEST_WAIT_NS;
    return step_ns < LONGEST_WAIT_NS ? step_ns : LONGEST_WAIT_NS;
}

/* Until the next group is due: the lane's own, where it has one, or another one. 0: not known. */
static int64_t next_due_in_ns(const struct wait *wait, int64_t due_in_ns, int64_t now_ns) {
    int64_t other_in_ns = wait->due_ns == INT64_MAX ? INT64_MAX : wait->due_ns - now_ns;
    int64_t next_ns = other_in_ns < due_in_ns ? other_in_ns : due_in_ns;
    return next_ns == INT64_MAX ? 0 : next_ns;
}

/* Sleeps, with no lane in hand: signals are handled, and whoever drains the process does not wait
 * for this thread. */
static void wait_for(struct wait *wait, enum hindrance why, int64_t due_in_ns) {
    int64_t before_ns = clock_now_ns();
    if (!wait->begun && !(atomic_load(&attention) & ATTENTION_CONTEXTS))
        close_own();
    wait->begun = true;
    if (why == WINDOW)
        due_in_ns = next_due_in_ns(wait, due_in_ns, before_ns);
    clock_doze(step_ns(wait, due_in_ns));
    warden_wake();
    int64_t now_ns = clock_now_ns();
    _Atomic uint64_t *waited_ns = why == FROZEN ? &account.frozen_ns : &account.throttled_ns;
    atomic_fetch_add_explicit(waited_ns, (uint64_t)(now_ns - before_ns), memory_order_relaxed);
    if (why == FROZEN) {
        wait->open_ns = now_ns;
        atomic_store(&account.held_ns, now_ns);
    } else {
        wait->due_ns = look_after_all(now_ns);
    }
}

/* ---- admission --------------------------------------------------------------------------------
 */

/* What a lane needs for a launch, and how long it is to wait if it cannot have it. */
struct request {
    struct lane *lane;
    struct estimate *estimate;
    struct gate_look look;
    int64_t cost_ns; /* of this launch; unknown: as much as the whole window */
    bool unknown;
    bool sample;
    bool out_of_turn; /* it goes, whatever is in flight */
    int64_t now_ns;
    int64_t due_in_ns; /* until it is worth to ask again; 0: not known */
};

static int64_t window_ns_of(const struct request *request) {
    return (int64_t)request->look.gate.window_us * 1000;
}

static void size_up(struct request *request) {
    request->cost_ns = atomic_load_explicit(&request->estimate->cost_ns, memory_order_relaxed);
    request->unknown = request->cost_ns == ESTIMATE_UNKNOWN_NS;
    request->sample = request->unknown || estimate_is_young(request->estimate) ||
                      request->cost_ns * GROUPS_PER_WINDOW >= window_ns_of(request);
    if (request->unknown)
        request->cost_ns =
            window_ns_of(request) > ESTIMATE_LEAST_NS ? window_ns_of(request) : ESTIMATE_LEAST_NS;
}

/* Whether the open group has room for the launch under the gate as it is now. */
static bool fits_open_group(const struct request *request) {
    const struct lane *lane = request->lane;
    return lane->open && !request->sample && lane->credit_ns >= request->cost_ns &&
           lane->device_word == request->look.device_word &&
           lane->job_word == request->look.job_word;
}

static bool out_of_turn(struct request *request, int64_t open_since_ns) {
    request->out_of_turn |= account_out_of_turn(request->now_ns, open_since_ns);
    return request->out_of_turn;
}

/* Takes it, whether it is there or not. */
static int64_t take(int64_t cost_ns) {
    account_unreserve(-cost_ns);
    return cost_ns;
}

/* What was never measured goes alone, but for less than a group of others, and takes the whole
 * window, so that nothing goes beside it. Where other threads leave it no such moment, it goes when
 * there is room at all. */
static int64_t reserve_unknown(struct request *request, int64_t open_since_ns, int64_t all_ns,
                               int64_t progress_ns) {
    int64_t cost_ns = request->cost_ns > all_ns ? request->cost_ns : all_ns;
    bool patient = request->now_ns - open_since_ns < ALONE_PATIENCE_NS;
    int64_t beside_ns = patient ? window_ns_of(request) / GROUPS_PER_WINDOW : all_ns;
    if (account_reserve_beside(cost_ns, beside_ns, progress_ns))
        return cost_ns;
    return out_of_turn(request, open_since_ns) ? take(cost_ns) : 0;
}

/* Takes time from the window: as much as a group may have, or at least this launch. 0: it must
 * wait. */
static int64_t reserve(struct request *request, int64_t open_since_ns) {
    int64_t window_ns = window_ns_of(request), cost_ns = request->cost_ns;
    int64_t progress_ns =
        group_progress_ns(request->lane, request->now_ns, window_ns / DOUBTS_PER_WINDOW);
    int64_t all_ns = account_widen(window_ns);
    int64_t group_ns = window_ns / GROUPS_PER_WINDOW, least_group_ns = group_ns / 2;
    /* Many launches go by what is known to be complete, and not by what may be done by now. */
    for (; !request->sample && group_ns > cost_ns && group_ns >= least_group_ns; group_ns /= 2) {
        if (account_reserve(group_ns, all_ns, 0))
            return group_ns;
    }
    if (!request->sample && cost_ns < least_group_ns) /* of many small groups each has its marks */
        return out_of_turn(request, open_since_ns) ? take(cost_ns) : 0;
    if (request->unknown)
        return reserve_unknown(request, open_since_ns, all_ns, progress_ns);
    if (account_reserve(cost_ns, all_ns, progress_ns))
        return cost_ns;
    return out_of_turn(request, open_since_ns) ? take(cost_ns) : 0;
}

/* Whether the online side keeps this launch off. A job that trickles saves its state, while the
 * device has stopped all else for the online side: it is not kept off. Nor is one launch when what
 * is in flight is long overdue: it may be waiting for it. */
static bool beacon_holds(struct request *request, int64_t open_since_ns) {
    if (request->look.gate.state != MUX_GATE_OPEN)
        return false;
    int64_t wait_ns = gate_beacon_wait_ns(request->now_ns);
    request->due_in_ns = wait_ns == INT64_MAX ? BEACON_LOOK_NS : wait_ns;
    if (wait_ns == 0)
        return false;
    request->out_of_turn =
        account_overdue(request->now_ns) && account_out_of_turn(request->now_ns, open_since_ns);
    return !request->out_of_turn;
}

static bool is_sample_due(const struct request *request) {
    return request->lane->since_sample >= SAMPLE_EVERY &&
           request->now_ns - request->lane->sampled_ns >= SAMPLE_EVERY_NS;
}

static enum hindrance try_admit(struct request *request, const struct wait *wait) {
    struct lane *lane = request->lane;
    uint32_t permille = request->look.gate.budget_permille;
    request->due_in_ns = 0;
    if (request->look.gate.state == MUX_GATE_FROZEN || atomic_load(&attention) & ATTENTION_CLOSED)
        return FROZEN;
    if (beacon_holds(request, wait->open_ns))
        return BEACON;
    size_up(request);
    if (fits_open_group(request)) {
        group_count(lane, request->estimate);
        return NOTHING;
    }
    if (lane->open)
        group_close(lane, request->now_ns);
    else if (wait->begun) /* it may have been over long before it was due */
        group_poll(lane, request->now_ns);
    else
        group_poll_due(lane, request->now_ns);
    request->sample |= is_sample_due(request);

    int64_t budget_wait_ns = account_budget_wait_ns(request->now_ns, permille);
    if (budget_wait_ns > 0) {
        request->due_in_ns = budget_wait_ns;
        return BUDGET;
    }
    /* The last group in flight may have a quarter of the window left (account.c). */
    int64_t early_ns = lane->count == 1 ? window_ns_of(request) / GROUPS_PER_WINDOW : 0;
    request->due_in_ns =
        lane->count > 0 ? group_due_ns(lane) - early_ns - request->now_ns : INT64_MAX;
    if (!request->out_of_turn && !group_room(lane, window_ns_of(request), request->cost_ns)) {
        if (!out_of_turn(request, wait->open_ns))
            return WINDOW;
    }
    int64_t granted_ns = reserve(request, wait->open_ns);
    if (granted_ns == 0)
        return WINDOW;

    bool limited = permille < 1000;
    struct grant grant = {
        .estimate = request->estimate,
        .window_ns = granted_ns,
        .charge_ns = limited ? granted_ns : 0,
        .sample = request->sample,
        .exact = limited || request->cost_ns >= ALWAYS_EXACT_NS,
    };
    if (limited)
        account_charge(granted_ns);
    group_make_room(lane);
    lane->device_word = request->look.device_word;
    lane->job_word = request->look.job_word;
    group_open(lane, &grant, request->now_ns);
    group_count(lane, request->estimate);
    warden_wake();
    return NOTHING;
}

/* A stream without a context of its own is in the current one. */
static bool settle_context(struct lane *lane, CUstream stream) {
    if (lane->context != NULL && !(atomic_load(&attention) & ATTENTION_CONTEXTS))
        return true;
    CUcontext context = NULL;
    bool named = stream != CU_STREAM_LEGACY && stream != CU_STREAM_PER_THREAD;
    CUresult result =
        named ? driver.stream_get_ctx(stream, &context) : driver.ctx_get_current(&context);
    if (result != CUDA_SUCCESS || context == NULL)
        return false;
    if (lane->context != context) {
        group_abandon(lane);
        lane->context = context;
        account_lock();
        context_of(context);
        if (context_several())
            atomic_fetch_or(&attention, ATTENTION_CONTEXTS);
        account_unlock();
    }
    return true;
}

struct lane *launch_admit(CUstream as_named, CUstream if_null, uint64_t work) {
    CUstream stream = stream_named(as_named, if_null);
    if (!launch_gated() || work == 0 || self.in_callback > 0)
        return NULL;
    if (capture_any() && capture_covers(stream))
        return NULL;
    struct estimate *estimate = estimate_of(work);
    struct wait waited = {.open_ns = clock_now_ns(), .due_ns = INT64_MAX};
    for (;;) {
        struct lane *lane = lane_hold(stream);
        if (lane == NULL)
            return NULL;
        int mode = capture_relax();
        struct request request = {.lane = lane, .estimate = estimate, .now_ns = clock_now_ns()};
        request.look = gate_look(request.now_ns);
        bool known = settle_context(lane, stream);
        enum hindrance why = known ? try_admit(&request, &waited) : NOTHING;
        capture_restore(mode);
        if (why == NOTHING && known) {
            lane_remember(lane, lane_name(as_named, if_null));
            atomic_store(&lane->in_driver, true);
            return lane;
        }
        lane_release(lane);
        if (!known) /* no context: the driver will say so */
            return NULL;
        wait_for(&waited, why, request.due_in_ns);
    }
}

CUresult launch_failed(enum hook_index hook, CUresult result) {
    job_note_result(hook, result);
    return result;
}

CUresult launch_settle(struct lane *lane, enum hook_index hook, CUresult result) {
    if (lane != NULL) {
        atomic_store(&lane->in_driver, false);
        int mode = capture_relax();
        if (result != CUDA_SUCCESS)
            group_uncount(lane);
        if (lane->close_now || lane->launches == 0)
            group_close(lane, clock_now_ns());
        capture_restore(mode);
        lane_release(lane);
    }
    if (result != CUDA_SUCCESS && launch_gated())
        job_note_result(hook, result);
    return result;
}
