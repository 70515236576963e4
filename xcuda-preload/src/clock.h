/* The program's clock. */
#ifndef XCUDA_CLOCK_H
#define XCUDA_CLOCK_H

#include <errno.h>
#include <stdint.h>
#include <time.h>

static inline int64_t clock_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static inline int64_t clock_boottime_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Sleeps for so long, or until a handler of a signal has run: signals are delivered meanwhile.
 * Leaves errno alone. */
static inline void clock_doze(int64_t duration_ns) {
    int before = errno;
    struct timespec duration = {duration_ns / 1000000000, duration_ns % 1000000000};
    nanosleep(&duration, NULL);
    errno = before;
}

#endif
