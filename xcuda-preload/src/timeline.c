#include "timeline.h"

#include <string.h>

static void drop_oldest(struct timeline *timeline) {
    timeline->closed_ns = timeline->spans[0].end_ns;
    timeline->count--;
    memmove(&timeline->spans[0], &timeline->spans[1], timeline->count * sizeof timeline->spans[0]);
}

int64_t timeline_add(struct timeline *timeline, int64_t start_ns, int64_t end_ns) {
    if (timeline->count == TIMELINE_SPANS)
        drop_oldest(timeline);
    if (start_ns < timeline->closed_ns)
        start_ns = timeline->closed_ns;
    if (end_ns <= start_ns)
        return 0;

    /* Spans [first, last) touch the interval and become one with it. */
    unsigned first = timeline->count;
    while (first > 0 && timeline->spans[first - 1].end_ns >= start_ns)
        first--;
    unsigned last = first;
    int64_t covered_ns = 0, from_ns = start_ns, to_ns = end_ns;
    for (; last < timeline->count && timeline->spans[last].start_ns <= end_ns; last++) {
        int64_t span_start = timeline->spans[last].start_ns,
                span_end = timeline->spans[last].end_ns;
        covered_ns += (span_end < end_ns ? span_end : end_ns) -
                      (span_start > start_ns ? span_start : start_ns);
        from_ns = span_start < from_ns ? span_start : from_ns;
        to_ns = span_end > to_ns ? span_end : to_ns;
    }
    memmove(&timeline->spans[first + 1], &timeline->spans[last],
            (timeline->count - last) * sizeof timeline->spans[0]);
    timeline->spans[first].start_ns = from_ns;
    timeline->spans[first].end_ns = to_ns;
    timeline->count = timeline->count - (last - first) + 1;
    return end_ns - start_ns - covered_ns;
}
