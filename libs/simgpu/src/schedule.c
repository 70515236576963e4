/* Moves a device through time, from one change of rates to the next.
 *
 * The same steps serve to advance the device (`commit`) and to look ahead on a copy of its lanes,
 * which leaves everything else as it is.
 *
 * A lane is a stream with work. Its head, the oldest operation that has not ended, starts when the
 * event that it waits for has come, when the legacy default stream lets it, and, for kernels, when
 * its group has the turn and fewer kernels run than the hardware takes, the more urgent and older
 * first. Kernels outside their turn stand still. Copies, memsets and host functions need no turn.
 *
 * Turns: contexts that share by MPS are one group, every other context is a group by itself. Among
 * groups with kernels to run the turn goes round; it is given up early by a group that has nothing
 * to run, and otherwise at the end of the slice, SIMGPU_SLICE_NS after it began. A group alone goes
 * on from slice to slice, so a newcomer waits until the end of the present one.
 */
#include <math.h>
#include <string.h>

#include "model.h"

enum {
    PREDICTED_LANES = 256,
    PREDICTED_STEPS = 256,
};

struct schedule {
    struct simgpu_device *device; /* only read, unless `commit` */
    struct simgpu_lane *lanes;
    uint32_t count;
    bool commit;
    uint32_t turn;
    uint64_t slice_ends_ns;
    bool contended; /* more than one group has kernels to run */
    uint64_t now_ns;
    uint64_t next_ns;
};

static uint64_t stream_completed(const struct schedule *s, uint32_t stream) {
    uint32_t lane = s->device->streams[stream].lane;
    return lane == SIMGPU_NONE ? s->device->streams[stream].completed : s->lanes[lane].completed;
}

/* Whether anything older than `id` is left in the streams that the legacy default stream of the
 * context waits for. */
static bool older_than(const struct schedule *s, uint32_t context, uint64_t id) {
    for (uint32_t i = 0; i < s->count; i++) {
        const struct simgpu_lane *lane = &s->lanes[i];
        if (lane->context == context && lane->op != SIMGPU_NONE &&
            !(s->device->streams[lane->stream].flags & SIMGPU_STREAM_NON_BLOCKING) &&
            s->device->ops[lane->op].id < id)
            return true;
    }
    return false;
}

/* Whether nothing but the hardware keeps the head of the lane from starting. */
static bool is_free(const struct schedule *s, const struct simgpu_lane *lane) {
    const struct simgpu_op *op = &s->device->ops[lane->op];
    if (op->wait_stream != SIMGPU_NONE && stream_completed(s, op->wait_stream) < op->wait_sequence)
        return false;
    uint32_t flags = s->device->streams[lane->stream].flags;
    if (flags & SIMGPU_STREAM_NON_BLOCKING)
        return true;
    if (flags & SIMGPU_STREAM_LEGACY)
        return !older_than(s, lane->context, op->id);
    uint32_t legacy = s->device->streams[s->device->contexts[lane->context].legacy].lane;
    return legacy == SIMGPU_NONE || s->lanes[legacy].op == SIMGPU_NONE ||
           s->device->ops[s->lanes[legacy].op].id > op->id;
}

static double work_left(const struct simgpu_lane *lane, uint64_t now_ns) {
    double done = lane->progress.rate * (double)(now_ns - lane->progress.since_ns);
    return fmax(0, lane->progress.left_ns - done);
}

static void set_progress(struct schedule *s, struct simgpu_lane *lane, struct simgpu_progress to) {
    lane->progress = to;
    if (!s->commit)
        return;
    struct simgpu_op *op = &s->device->ops[lane->op];
    uint32_t other = 1 - op->which;
    op->progress[other] = to;
    atomic_store_explicit(&op->which, other, memory_order_release);
}

static void set_rate(struct schedule *s, struct simgpu_lane *lane, double rate) {
    const struct simgpu_progress *was = &lane->progress;
    if (was->rate == rate)
        return;
    uint64_t ran_ns = was->rate > 0 ? s->now_ns - was->since_ns : 0;
    set_progress(s, lane,
                 (struct simgpu_progress){.left_ns = work_left(lane, s->now_ns),
                                          .rate = rate,
                                          .since_ns = s->now_ns,
                                          .ran_ns = was->ran_ns + ran_ns});
}

static void start(struct schedule *s, struct simgpu_lane *lane) {
    struct simgpu_op *op = &s->device->ops[lane->op];
    bool alone = op->kind == SIMGPU_HOST_FUNCTION; /* it needs nothing of the device */
    set_progress(s, lane,
                 (struct simgpu_progress){
                     .left_ns = op->work_ns, .rate = alone ? 1 : 0, .since_ns = s->now_ns});
    lane->running = 1;
    if (!s->commit)
        return;
    op->started_ns = s->now_ns;
    atomic_store_explicit(&op->state, SIMGPU_OP_RUNNING, memory_order_release);
    if (alone)
        simgpu_signal(s->device); /* its process is to call it */
}

uint64_t simgpu_ran_ns(const struct simgpu_lane *lane, uint64_t now_ns) {
    if (!lane->running)
        return 0;
    const struct simgpu_progress *p = &lane->progress;
    return p->ran_ns + (p->rate > 0 ? now_ns - p->since_ns : 0);
}

void simgpu_remove_lane(struct simgpu_device *device, uint32_t at) {
    uint32_t stream = device->lanes[at].stream;
    uint32_t last = --device->lane_count;
    device->lanes[at] = device->lanes[last];
    device->streams[device->lanes[at].stream].lane = at;
    device->streams[stream].lane = SIMGPU_NONE;
}

/* Ends the head of a lane. A lane without further work is taken out (another may take its place);
 * in predictions it stays, empty. */
static void end(struct schedule *s, uint32_t at) {
    struct simgpu_lane *lane = &s->lanes[at];
    uint32_t ended = lane->op;
    uint64_t ran_ns = simgpu_ran_ns(lane, s->now_ns);
    lane->completed = s->device->ops[ended].sequence;
    lane->op = s->device->ops[ended].next;
    lane->running = 0;
    if (!s->commit)
        return;
    if (lane->op == SIMGPU_NONE) {
        simgpu_remove_lane(s->device, at);
        s->count = s->device->lane_count;
    }
    simgpu_finish(s->device, ended, ran_ns, false);
}

static bool is_free_head(const struct schedule *s, const struct simgpu_lane *lane) {
    return lane->op != SIMGPU_NONE && !lane->running && is_free(s, lane);
}

/* Ends marks and starts what needs no turn, until nothing more happens. */
static void settle_rest(struct schedule *s) {
    uint32_t copies = 0;
    for (uint32_t i = 0; i < s->count; i++)
        copies += s->lanes[i].running && simgpu_is_copy(&s->device->ops[s->lanes[i].op]);
    for (bool again = true; again;) {
        again = false;
        for (uint32_t i = 0; i < s->count; i++) {
            while (i < s->count && is_free_head(s, &s->lanes[i]) &&
                   s->device->ops[s->lanes[i].op].kind == SIMGPU_MARK) {
                end(s, i);
                again = true;
            }
            if (i >= s->count || !is_free_head(s, &s->lanes[i]))
                continue;
            const struct simgpu_op *op = &s->device->ops[s->lanes[i].op];
            if (simgpu_is_kernel(op) || (simgpu_is_copy(op) && copies == SIMGPU_COPIES))
                continue;
            copies += simgpu_is_copy(op);
            start(s, &s->lanes[i]);
        }
    }
}

static bool wants_turn(const struct schedule *s, const struct simgpu_lane *lane) {
    return lane->op != SIMGPU_NONE && simgpu_is_kernel(&s->device->ops[lane->op]) &&
           (lane->running || is_free(s, lane));
}

/* Gives the turn to the next group when its slice is over or it has nothing to run. */
static void settle_turn(struct schedule *s) {
    enum { GROUPS = SIMGPU_CONTEXTS + SIMGPU_MPS_RECORDS };
    bool mine = false;
    uint32_t nearest = GROUPS; /* distance to the next group that wants the turn */
    for (uint32_t i = 0; i < s->count; i++) {
        if (s->lanes[i].group == s->turn) {
            mine = mine || wants_turn(s, &s->lanes[i]);
            continue;
        }
        uint32_t distance = (s->lanes[i].group + GROUPS - s->turn) % GROUPS;
        if (distance < nearest && wants_turn(s, &s->lanes[i]))
            nearest = distance;
    }
    s->contended = mine && nearest < GROUPS;
    if (!mine && nearest == GROUPS)
        s->slice_ends_ns = SIMGPU_NEVER; /* nobody has a slice */
    else if (mine && s->slice_ends_ns == SIMGPU_NEVER)
        s->slice_ends_ns = s->now_ns + SIMGPU_SLICE_NS;
    if (nearest == GROUPS)
        return;
    if (mine && s->now_ns > s->slice_ends_ns) { /* it was alone until now */
        uint64_t past = s->now_ns - s->slice_ends_ns;
        s->slice_ends_ns += (past + SIMGPU_SLICE_NS - 1) / SIMGPU_SLICE_NS * SIMGPU_SLICE_NS;
        if (s->slice_ends_ns > s->now_ns)
            return;
    }
    if (mine && s->now_ns < s->slice_ends_ns)
        return;
    s->turn = (s->turn + nearest) % GROUPS;
    s->slice_ends_ns = s->now_ns + SIMGPU_SLICE_NS;
    /* Whoever had the turn may want it back, and others wait: the next step looks again. */
    s->contended = true;
}

static void start_kernels(struct schedule *s) {
    uint32_t running = 0;
    for (uint32_t i = 0; i < s->count; i++)
        running += s->lanes[i].running && s->lanes[i].group == s->turn &&
                   simgpu_is_kernel(&s->device->ops[s->lanes[i].op]);
    while (running < s->device->kind.concurrent_kernels) {
        struct simgpu_lane *best = NULL;
        for (uint32_t i = 0; i < s->count; i++) {
            struct simgpu_lane *lane = &s->lanes[i];
            if (lane->group != s->turn || lane->running || !wants_turn(s, lane))
                continue;
            const struct simgpu_op *op = &s->device->ops[lane->op];
            const struct simgpu_op *leader = best ? &s->device->ops[best->op] : NULL;
            if (!best || op->priority < leader->priority ||
                (op->priority == leader->priority && op->id < leader->id))
                best = lane;
        }
        if (!best)
            return;
        start(s, best);
        running++;
    }
}

static uint64_t ends_at(const struct simgpu_lane *lane) {
    const struct simgpu_progress *p = &lane->progress;
    if (!lane->running || p->rate <= 0 || isinf(p->left_ns))
        return SIMGPU_NEVER;
    return p->since_ns + (uint64_t)ceil(p->left_ns / p->rate);
}

/* Starts what can start, sets the rates, and finds out how long they hold. */
static void settle(struct schedule *s) {
    settle_rest(s);
    settle_turn(s);
    start_kernels(s);

    struct simgpu_running running[SIMGPU_RUNNING];
    uint32_t count = simgpu_rates(s->device, s->lanes, s->count, s->turn, running);
    for (uint32_t i = 0; i < s->count; i++) /* those who lost the turn stand still */
        if (s->lanes[i].running && s->lanes[i].group != s->turn &&
            simgpu_is_kernel(&s->device->ops[s->lanes[i].op]))
            set_rate(s, &s->lanes[i], 0);
    for (uint32_t i = 0; i < count; i++)
        set_rate(s, &s->lanes[running[i].lane], running[i].rate);
    if (s->commit)
        simgpu_meters(s->device, running, count);

    s->next_ns = s->contended ? s->slice_ends_ns : SIMGPU_NEVER;
    for (uint32_t i = 0; i < s->count; i++) {
        uint64_t ends_ns = ends_at(&s->lanes[i]);
        s->next_ns = ends_ns < s->next_ns ? ends_ns : s->next_ns;
    }
}

/* Ends what ends now. What ends with a fault is left to the caller (one of them is returned): the
 * fault takes it away, and a holder of the lock that dies before that has not swallowed it. */
static uint32_t end_due(struct schedule *s) {
    uint32_t faulty = SIMGPU_NONE;
    for (uint32_t i = 0; i < s->count;) {
        uint32_t count = s->count;
        if (ends_at(&s->lanes[i]) <= s->now_ns) {
            if (s->commit && s->device->ops[s->lanes[i].op].xid)
                faulty = s->lanes[i].op;
            else
                end(s, i);
        }
        i += s->count == count; /* else another lane has taken this place */
    }
    return faulty;
}

static struct schedule committing(struct simgpu_device *device) {
    return (struct schedule){.device = device,
                             .lanes = device->lanes,
                             .count = device->lane_count,
                             .commit = true,
                             .turn = device->turn,
                             .slice_ends_ns = device->slice_ends_ns,
                             .now_ns = device->now_ns};
}

static void keep(const struct schedule *s) {
    struct simgpu_device *device = s->device;
    device->lane_count = s->count;
    atomic_store_explicit(&device->turn, s->turn, memory_order_relaxed);
    atomic_store_explicit(&device->slice_ends_ns, s->slice_ends_ns, memory_order_relaxed);
    atomic_store_explicit(&device->next_event_ns, s->next_ns, memory_order_relaxed);
}

void simgpu_reschedule(struct simgpu_device *device) {
    struct schedule s = committing(device);
    settle(&s);
    keep(&s);
}

void simgpu_advance(struct simgpu_device *device, uint64_t now_ns) {
    while (device->next_event_ns <= now_ns) {
        /* First the time, then what happens at it: see simgpu_recover. */
        uint64_t event_ns = device->next_event_ns;
        if (event_ns > device->now_ns)
            atomic_store_explicit(&device->now_ns, event_ns, memory_order_release);
        struct schedule s = committing(device);
        uint32_t faulty = end_due(&s);
        settle(&s);
        keep(&s);
        if (faulty != SIMGPU_NONE) {
            const struct simgpu_op *op = &device->ops[faulty];
            simgpu_inject_xid(device, op->xid, device->clients[op->client].pid);
        }
    }
    if (now_ns > device->now_ns)
        atomic_store_explicit(&device->now_ns, now_ns, memory_order_release);
}

/* When the stream would be through with everything if it had the device to itself: never too
 * late, and exact (but for rounding) if it has. */
static uint64_t predict_alone(const struct simgpu_device *device, const struct simgpu_lane *lane) {
    const struct simgpu_op *head = &device->ops[lane->op];
    double left = head->backlog_ns - head->before_ns;
    if (lane->running)
        left *= work_left(lane, device->now_ns) / head->work_ns;
    double behind = device->streams[lane->stream].backlog_ns - head->backlog_ns;
    double clock = (double)device->sm_clock_mhz / device->kind.boost_mhz;
    return device->now_ns + (uint64_t)((left + behind) / clock);
}

uint64_t simgpu_predict(const struct simgpu_device *device, uint32_t stream, uint64_t sequence) {
    const struct simgpu_stream *target = &device->streams[stream];
    if (target->completed >= sequence)
        return device->now_ns;
    uint64_t alone_ns = device->now_ns;
    const struct simgpu_lane *lane = &device->lanes[target->lane];
    if (sequence == target->enqueued && !isinf(device->ops[lane->op].work_ns))
        alone_ns = predict_alone(device, lane);
    if (device->lane_count == 1 && alone_ns > device->next_event_ns)
        return alone_ns;
    if (device->lane_count > PREDICTED_LANES)
        return alone_ns > device->next_event_ns ? alone_ns : device->next_event_ns;

    struct simgpu_lane lanes[PREDICTED_LANES];
    memcpy(lanes, device->lanes, device->lane_count * sizeof lanes[0]);
    struct schedule s = {.device = (struct simgpu_device *)device,
                         .lanes = lanes,
                         .count = device->lane_count,
                         .turn = device->turn,
                         .slice_ends_ns = device->slice_ends_ns,
                         .now_ns = device->now_ns,
                         .next_ns = device->next_event_ns};
    for (int step = 0; step < PREDICTED_STEPS; step++) {
        if (s.next_ns == SIMGPU_NEVER)
            return SIMGPU_NEVER;
        s.now_ns = s.next_ns > s.now_ns ? s.next_ns : s.now_ns;
        end_due(&s);
        settle(&s);
        if (lanes[target->lane].completed >= sequence)
            return s.now_ns;
    }
    return alone_ns > s.now_ns ? alone_ns : s.now_ns;
}
