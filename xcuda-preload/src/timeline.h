/* When the device worked for this process: the union of intervals, which come in roughly, but not
 * exactly, in order. */
#ifndef XCUDA_TIMELINE_H
#define XCUDA_TIMELINE_H

#include <stdint.h>

enum { TIMELINE_SPANS = 64 };

struct timeline {
    struct {
        int64_t start_ns, end_ns;
    } spans[TIMELINE_SPANS]; /* disjoint, in order of time */
    unsigned count;
    int64_t closed_ns; /* what ended before is taken as covered: too long ago to be told apart */
};

/* Adds an interval. Returns how much of it was not covered yet. */
int64_t timeline_add(struct timeline *timeline, int64_t start_ns, int64_t end_ns);

#endif
