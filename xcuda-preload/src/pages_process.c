/* Processes named for good, by pid and start time. */
#include "pages.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What /proc/<pid>/stat says, as far as we need it. */
struct process {
    char state;
    long threads;
    uint64_t start_ticks; /* in the time namespace of the one who reads */
};

static ssize_t read_file(const char *path, char *text, size_t bytes) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t got = read(fd, text, bytes - 1);
    close(fd);
    if (got >= 0)
        text[got] = '\0';
    return got;
}

/* What our time namespace adds to the initial one's clock. Ticks are 1/100 s wherever programs can
 * see them (USER_HZ). */
static int64_t own_offset_ticks(void) {
    char text[256];
    if (read_file("/proc/self/timens_offsets", text, sizeof text) <= 0)
        return 0; /* a kernel without time namespaces */
    const char *line = strstr(text, "boottime");
    long long seconds, nanoseconds;
    if (!line || sscanf(line, "boottime %lld %lld", &seconds, &nanoseconds) != 2)
        return 0;
    return seconds * 100 + nanoseconds / 10000000;
}

static bool look_up(pid_t pid, struct process *process) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    if (read_file(path, text, sizeof text) <= 0)
        return false;
    const char *after_name = strrchr(text, ')'); /* the name may hold spaces and brackets */
    unsigned long long start;
    if (!after_name ||
        sscanf(after_name + 1,
               " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %ld %*d %llu",
               &process->state, &process->threads, &start) != 3)
        return false;
    process->start_ticks = start;
    return true;
}

uint64_t mux_owner_of(pid_t pid) {
    struct process process;
    if (pid <= 0 || !look_up(pid, &process))
        return 0;
    return (process.start_ticks - (uint64_t)own_offset_ticks()) << 32 | (uint32_t)pid;
}

/* One tick of tolerance: offsets of time namespaces need not be whole ticks. */
static bool started_at(uint64_t ticks, uint64_t owner) {
    uint32_t apart = (uint32_t)ticks - (uint32_t)(owner >> 32);
    return apart + 1 <= 2;
}

bool mux_owner_lives(uint64_t owner) {
    pid_t pid = (pid_t)(uint32_t)owner;
    if (pid <= 0 || (kill(pid, 0) != 0 && errno == ESRCH))
        return false;
    struct process process;
    if (!look_up(pid, &process))
        return kill(pid, 0) == 0 || errno != ESRCH; /* no /proc, or it ended just now */
    /* A leader that has ended is a zombie as long as other threads run on. */
    if ((process.state == 'Z' || process.state == 'X') && process.threads <= 1)
        return false;
    /* Hardly anybody is in a time namespace: the offset is looked up only when it matters. */
    return started_at(process.start_ticks, owner) ||
           started_at(process.start_ticks - (uint64_t)own_offset_ticks(), owner);
}
