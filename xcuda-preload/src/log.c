#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cancel.h"
#include "clock.h"
#include "settings.h"

enum { LINES_PER_SECOND = 10, LINE_BYTES = 512 };

static bool within_rate(void) {
    static _Atomic int64_t second;
    static _Atomic int written;
    int64_t now = clock_now_ns() / 1000000000;
    if (atomic_exchange(&second, now) != now)
        atomic_store(&written, 0);
    return atomic_fetch_add(&written, 1) < LINES_PER_SECOND;
}

void log_line(const char *format, ...) {
    const char *path = settings()->log;
    if (path[0] == '\0' || !within_rate())
        return;
    int before = errno, cancel = cancel_forbid();
    char line[LINE_BYTES];
    int used = snprintf(line, sizeof line, "xcuda[%d]: ", (int)getpid());
    va_list arguments;
    va_start(arguments, format);
    int wanted = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, arguments);
    va_end(arguments);
    size_t length = strnlen(line, sizeof line - 2);
    line[length++] = '\n';
    /* Opened for each line: a descriptor of ours would be in the way of a program that counts or
     * closes its own. */
    int fd = strcmp(path, "stderr") == 0
                 ? STDERR_FILENO
                 : open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0600);
    if (wanted >= 0 && fd >= 0 && write(fd, line, length) < 0)
        errno = 0; /* nobody to tell */
    if (fd >= 0 && fd != STDERR_FILENO)
        close(fd);
    cancel_restore(cancel);
    errno = before;
}
