/* What the library has to say, for whoever set XCUDA_LOG. */
#ifndef XCUDA_LOG_H
#define XCUDA_LOG_H

/* Writes one line, at most ten in a second. Never on a path that a launch takes. */
__attribute__((format(printf, 1, 2))) void log_line(const char *format, ...);

#endif
