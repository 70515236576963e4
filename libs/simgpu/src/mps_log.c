#include "mps_log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 2048 };

static int log_fd = -1;
static const char *log_part = "Control";

void mps_log_to(int fd, const char *part) {
    log_fd = fd;
    log_part = part;
}

void mps_log(const char *format, ...) {
    if (log_fd < 0)
        return;
    struct timespec now;
    struct tm local;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &local);
    char line[LINE_MAX_BYTES];
    int length = snprintf(line, sizeof line, "[%d-%02d-%02d %02d:%02d:%02d.%03ld %s %5d] ",
                          local.tm_year + 1900, local.tm_mon + 1, local.tm_mday, local.tm_hour,
                          local.tm_min, local.tm_sec, now.tv_nsec / 1000000, log_part, getpid());
    va_list arguments;
    va_start(arguments, format);
    int text = vsnprintf(line + length, sizeof line - (size_t)length - 1, format, arguments);
    va_end(arguments);
    if (text < 0)
        return;
    size_t end = strlen(line);
    line[end] = '\n';
    /* One write per line, to a file opened for appending: lines of several processes do not mix. */
    if (write(log_fd, line, end + 1) < 0)
        log_fd = -1; /* a full disk costs the log, not the daemon */
}
