/* The program's clock. */
#ifndef XCUDA_CLOCK_H
#define XCUDA_CLOCK_H

#include <errno.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

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
 * Leaves errno alone. The C library's function would be a place where a thread may be cancelled. */
static inline void clock_doze(int64_t duration_ns) {
    int before = errno;
    struct timespec duration = {duration_ns / 1000000000, duration_ns % 1000000000};
    syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &duration, NULL);
    errno = before;
}

#endif
