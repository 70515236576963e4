#include "group.h"

#include "account.h"
#include "clock.h"
#include "context.h"
#include "driver.h"
#include "gate.h"

static struct group *newest(struct lane *lane) {
    return lane->count == 0 ? NULL : &lane->groups[(lane->first + lane->count - 1) % LANE_GROUPS];
}

static CUevent take_event(const struct lane *lane) {
    account_lock();
    struct context *context = context_of(lane->context);
    CUevent event = context == NULL ? NULL : context_take_event(context);
    account_unlock();
    return event;
}

static void give_event(const struct lane *lane, CUevent event) {
    account_lock();
    struct context *context = context_of(lane->context);
    if (context != NULL)
        context_give_event(context, event);
    account_unlock();
}

/* An event, recorded in the stream; NULL if that was not possible. A mark behind the end of the
 * drain would be in flight when the process dies. */
static CUevent mark(const struct lane *lane) {
    if (atomic_load(&attention) & ATTENTION_UNMARKED)
        return NULL;
    CUevent event = take_event(lane);
    CUstream stream = atomic_load_explicit(&lane->stream, memory_order_relaxed);
    if (event == NULL || driver.event_record(event, stream) == CUDA_SUCCESS)
        return event;
    driver.event_destroy(event); /* it may be of another context, which was current */
    return NULL;
}

static void note_sample(struct lane *lane, int64_t now_ns) {
    lane->since_sample = 0;
    lane->sampled_ns = now_ns;
}

void group_open(struct lane *lane, const struct grant *grant, int64_t now_ns) {
    if (grant->sample || grant->exact) /* what it seems to follow on may have been over for long */
        group_poll(lane, now_ns);
    bool follows = lane->count > 0;
    lane->group = (struct group){
        .charged_ns = grant->charge_ns,
        .opened_ns = now_ns,
        .follows = follows,
        .sample = grant->sample,
        .start = !follows && (grant->sample || grant->exact) ? mark(lane) : NULL,
    };
    lane->granted_ns = lane->credit_ns = grant->window_ns;
    lane->mean_ns = 0;
    lane->launches = lane->reported = 0;
    lane->reported_ns = 0;
    lane->quiet_since_ns = 0;
    lane->works = 0;
    lane->only = grant->estimate;
    lane->close_now = grant->sample;
    lane->open = true;
    if (grant->sample)
        note_sample(lane, now_ns);
}

static int64_t cost_of(const struct estimate *estimate) {
    return atomic_load_explicit(&estimate->cost_ns, memory_order_relaxed);
}

static int64_t mean_of(const struct estimate *estimate) {
    return atomic_load_explicit(&estimate->mean_ns, memory_order_relaxed);
}

static uint64_t work_of(const struct estimate *estimate) {
    return atomic_load_explicit(&estimate->work, memory_order_relaxed);
}

void group_count(struct lane *lane, struct estimate *estimate) {
    int64_t cost_ns = cost_of(estimate);
    lane->credit_ns -= cost_ns < lane->credit_ns ? cost_ns : lane->credit_ns;
    lane->mean_ns += mean_of(estimate);
    lane->works += work_of(estimate);
    lane->launches++;
}

/* Its part of what is expected is that of an average launch; what it took of the grant comes back
 * with the group. */
void group_uncount(struct lane *lane) {
    lane->mean_ns -= lane->mean_ns / lane->launches;
    lane->works = 0;  /* of no kind in particular */
    lane->launches--; /* in the account this wraps around, and back */
}

void group_report(struct lane *lane) {
    int64_t cost_ns = lane->granted_ns - lane->credit_ns;
    account_launched(lane->launches - lane->reported, cost_ns - lane->reported_ns);
    lane->reported = lane->launches;
    lane->reported_ns = cost_ns;
}

/* What all launches of the open group are alike to; NULL: various. The sum would be right for
 * others by chance only. */
static struct estimate *only(const struct lane *lane) {
    return lane->works == lane->launches * work_of(lane->only) ? lane->only : NULL;
}

/* Ends the part of the open group that launches touch. What was granted and not used goes back. */
static struct group *shut(struct lane *lane, int64_t now_ns) {
    struct group *group = &lane->group;
    group_report(lane);
    group->only = only(lane);
    group->launches = lane->launches;
    group->cost_ns = lane->granted_ns - lane->credit_ns;
    group->mean_ns = lane->mean_ns;
    group->closed_ns = now_ns;
    account_unreserve(lane->credit_ns);
    lane->since_sample += lane->launches;
    lane->credit_ns = -1;
    lane->open = false;
    lane->close_now = false;
    return group;
}

/* Wall time during which the device worked on the group. */
static int64_t busy_ns_of(const struct group *group, int64_t span_ns) {
    if (span_ns < 0)
        return group->mean_ns;
    if (group->sample || group->backlogged)
        return span_ns;
    /* The stream may have been idle between launches, for the program was slow to make them. It was
     * busy for as long as its launches are expected to take, or, if that is more, for as long as it
     * went on after the last of them. */
    int64_t expected_ns = group->mean_ns < span_ns ? group->mean_ns : span_ns;
    int64_t after_ns = span_ns - (group->closed_ns - group->opened_ns);
    return after_ns > expected_ns ? after_ns : expected_ns;
}

static bool in_flight_at(const struct group *group, int64_t at_ns, int64_t ended_ns) {
    return group->opened_ns < at_ns && at_ns < ended_ns;
}

/* What was in flight while another launch was held up may have waited for that one. If such a time
 * were learned, the next launch that it waits for would be held up as long, and so on. When a
 * launch that went out of turn has freed it, what came after that is all that it takes. */
static void learn(struct lane *lane, const struct group *group, int64_t busy_ns, int64_t now_ns) {
    if (group->only == NULL || group->launches == 0)
        return;
    int64_t ended_ns = lane->last_end.our_ns;
    int64_t freed_ns = atomic_load(&account.out_of_turn_ns);
    if (in_flight_at(group, freed_ns, ended_ns) && busy_ns > ended_ns - freed_ns) {
        estimate_forget(group->only->work);
        estimate_learn(group->only, (ended_ns - freed_ns) / group->launches, group->launches);
        return;
    }
    if (in_flight_at(group, atomic_load(&account.held_ns), ended_ns) && busy_ns > group->mean_ns)
        return;
    bool measured = group->sample || group->backlogged;
    bool bounded = busy_ns < group->mean_ns; /* it took less than expected, idle times included */
    if (measured || bounded)
        estimate_learn(group->only, busy_ns / group->launches, group->launches);
    if (measured) {
        note_sample(lane, now_ns);
        int64_t baseline_ns = estimate_baseline_ns(group->only, now_ns) * group->launches;
        inflation_add(&account.inflation, busy_ns, baseline_ns, now_ns);
    }
}

/* Looks when the group ended, and how long it took. Under the account's lock. */
static int64_t measure(struct lane *lane, const struct group *group, CUevent end, int64_t now_ns) {
    struct context *context = context_of(lane->context);
    int64_t span_ns = -1;
    lane->last_end.our_ns = now_ns;
    struct moment moment;
    bool told = false;
    if (context != NULL && end != NULL) {
        int64_t between_ns = group->start == NULL ? -1 : context_between_ns(group->start, end);
        told = context_when(context, end, now_ns, &moment);
        bool continues = group->follows && lane->last_end_known && told;
        span_ns = continues ? moment.device_ns - lane->last_end.device_ns : between_ns;
    }
    if (context != NULL)
        context_give_event(context, group->start);
    lane->last_end_known = told;
    if (told)
        lane->last_end = moment;
    return span_ns;
}

/* Takes a group as complete. `end`: NULL if the driver has not told when. */
static void complete(struct lane *lane, struct group *group, CUevent end, int64_t now_ns) {
    account_lock();
    int64_t span_ns = measure(lane, group, end, now_ns);
    int64_t busy_ns = busy_ns_of(group, span_ns);
    if (span_ns >= 0)
        learn(lane, group, busy_ns, now_ns);
    account_busy(lane->last_end.our_ns - busy_ns, lane->last_end.our_ns);
    account.charged_ns -= group->charged_ns;
    account_unlock();
    account_landed(group->launches, group->cost_ns);
    atomic_store(&account.progress_ns, now_ns);
}

static void leave_flight(struct lane *lane, CUevent end, int64_t now_ns) {
    complete(lane, &lane->groups[lane->first], end, now_ns);
    lane->first = (lane->first + 1) % LANE_GROUPS;
    lane->count--;
}

void group_close(struct lane *lane, int64_t now_ns) {
    group_poll(lane, now_ns);
    struct group *group = shut(lane, now_ns);
    if (group->launches > 0)
        group->end = mark(lane);
    if (group->end == NULL) {
        complete(lane, group, NULL, now_ns);
        return;
    }
    const struct group *before = newest(lane);
    group->backlogged = group->follows && before != NULL;
    bool waits = group->follows && before != NULL && before->due_ns > group->opened_ns;
    group->due_ns = (waits ? before->due_ns : group->opened_ns) + group->mean_ns;
    account_expect(group->due_ns);
    lane->groups[(lane->first + lane->count++) % LANE_GROUPS] = *group;
}

/* The older of the two tells nothing that the younger does not tell a little later. */
void group_make_room(struct lane *lane) {
    if (lane->count < LANE_GROUPS)
        return;
    struct group *last = newest(lane);
    struct group *both = &lane->groups[(lane->first + lane->count - 2) % LANE_GROUPS];
    give_event(lane, both->end);
    give_event(lane, last->start);
    both->end = last->end;
    both->only = both->only == last->only ? both->only : NULL;
    both->cost_ns += last->cost_ns;
    both->mean_ns += last->mean_ns;
    both->charged_ns += last->charged_ns;
    both->launches += last->launches;
    both->closed_ns = last->closed_ns;
    both->due_ns = last->due_ns;
    both->backlogged &= last->backlogged;
    both->sample = false;
    lane->count--;
}

/* Whatever the driver answers but "not ready" ends the wait: a group of a broken context will
 * never be complete in a better way. */
static bool poll_oldest(struct lane *lane, int64_t now_ns) {
    CUevent end = lane->groups[lane->first].end;
    CUresult result = driver.event_query(end);
    if (result == CUDA_ERROR_NOT_READY)
        return false;
    leave_flight(lane, result == CUDA_SUCCESS ? end : NULL, now_ns);
    return true;
}

void group_poll(struct lane *lane, int64_t now_ns) {
    while (lane->count > 0 && poll_oldest(lane, now_ns))
        continue;
}

void group_poll_due(struct lane *lane, int64_t now_ns) {
    while (lane->count > 0 && group_due_ns(lane) <= now_ns && poll_oldest(lane, now_ns))
        continue;
}

void group_all_complete(struct lane *lane, int64_t now_ns) {
    group_poll(lane, now_ns);
    if (lane->open && lane->count == 0)
        complete(lane, shut(lane, now_ns), NULL, now_ns);
}

void group_ask(struct lane *lane, int64_t now_ns) {
    CUstream stream = atomic_load_explicit(&lane->stream, memory_order_relaxed);
    if (lane->open && driver.stream_query(stream) != CUDA_ERROR_NOT_READY)
        group_all_complete(lane, now_ns);
}

/* The stream of another thread's own cannot be named from here: what is left in it, less than a
 * grant, is taken as complete when that thread has been quiet for long. */
void group_ask_if_quiet(struct lane *lane, int64_t now_ns) {
    if (!lane->open)
        return;
    if (lane->launches != lane->seen_launches || lane->quiet_since_ns == 0) {
        lane->seen_launches = lane->launches;
        lane->quiet_since_ns = now_ns;
        return;
    }
    CUstream stream = atomic_load_explicit(&lane->stream, memory_order_relaxed);
    if (stream != CU_STREAM_PER_THREAD ||
        atomic_load_explicit(&lane->owner, memory_order_relaxed) == &self)
        group_ask(lane, now_ns);
    else if (now_ns - lane->quiet_since_ns > ACCOUNT_PATIENCE_NS)
        group_all_complete(lane, now_ns);
}

int64_t group_progress_ns(const struct lane *lane, int64_t now_ns, int64_t rest_ns) {
    const struct group *group = &lane->groups[lane->first];
    if (lane->count == 0 || group->mean_ns == 0) /* nothing, or nothing that is known */
        return 0;
    /* A thread that is slow between two launches is not known to be: unless the stream was never
     * idle in between, only since the last of them has the device surely had all of the work. */
    int64_t since_ns = group->backlogged || lane->last_end.our_ns > group->closed_ns
                           ? lane->last_end.our_ns
                           : group->closed_ns;
    int64_t most_ns = group->cost_ns > rest_ns ? group->cost_ns - rest_ns : 0;
    return now_ns - since_ns < most_ns ? now_ns - since_ns : most_ns;
}

void group_abandon(struct lane *lane) {
    int64_t now_ns = clock_now_ns();
    while (lane->count > 0) {
        give_event(lane, lane->groups[lane->first].end);
        leave_flight(lane, NULL, now_ns);
    }
    if (lane->open)
        complete(lane, shut(lane, now_ns), NULL, now_ns);
}
