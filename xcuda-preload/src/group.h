/* Groups of launches: opened with a grant, closed with a mark in the stream, complete when the mark
 * has happened; then it is known how long the device worked on them. All of this with the lane
 * held. */
#ifndef XCUDA_GROUP_H
#define XCUDA_GROUP_H

#include "lane.h"

struct grant {
    struct estimate *estimate; /* of the first launch */
    int64_t window_ns;         /* taken from the window */
    int64_t charge_ns;         /* to the budget, in advance */
    bool sample;               /* for one launch, which is to be measured */
    bool exact;                /* the time it takes must be measured, not only expected */
};

/* Opens a group. The lane's context must be current. */
void group_open(struct lane *lane, const struct grant *grant, int64_t now_ns);

/* Whether another group can be in flight: a lane alone keeps to the window, too. */
static inline bool group_room(const struct lane *lane, int64_t window_ns, int64_t cost_ns) {
    int64_t in_flight_ns = 0;
    for (unsigned i = 0; i < lane->count; i++)
        in_flight_ns += lane->groups[(lane->first + i) % LANE_GROUPS].cost_ns;
    return lane->count < LANE_GROUPS && (lane->count <= 1 || in_flight_ns + cost_ns <= window_ns);
}

/* Makes two groups one, when the lane has as many in flight as it can tell apart. */
void group_make_room(struct lane *lane);

/* When the oldest group in flight is expected to be complete; 0: there is none. */
static inline int64_t group_due_ns(const struct lane *lane) {
    return lane->count == 0 ? 0 : lane->groups[lane->first].due_ns;
}

/* How much of the lane's oldest group in flight is done by now, going by what it costs. Of what is
 * not known to be complete at least `rest_ns` are taken as not done. */
int64_t group_progress_ns(const struct lane *lane, int64_t now_ns, int64_t rest_ns);

/* Counts one launch in, whose cost the grant has; the launch path does the same. */
void group_count(struct lane *lane, struct estimate *estimate);

/* Takes the launch that was counted last out again: the driver refused it. */
void group_uncount(struct lane *lane);

/* Enters into the account what was launched in the open group since the last time. */
void group_report(struct lane *lane);

/* Closes the open group with a mark behind it. The lane's context must be current. */
void group_close(struct lane *lane, int64_t now_ns);

/* Looks which groups are complete; or which of those that should be. */
void group_poll(struct lane *lane, int64_t now_ns);
void group_poll_due(struct lane *lane, int64_t now_ns);

/* The stream has nothing left to do: all groups of the lane are complete, the open one too. */
void group_all_complete(struct lane *lane, int64_t now_ns);

/* Asks the driver whether the stream has nothing left to do. The lane's context must be current. */
void group_ask(struct lane *lane, int64_t now_ns);

/* The same for an open group that has seen no launch since the last such look. */
void group_ask_if_quiet(struct lane *lane, int64_t now_ns);

/* Gives up knowing: everything is taken as complete, in the time that was expected. */
void group_abandon(struct lane *lane);

#endif
