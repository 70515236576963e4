/* Functions of the C library that this library stands in front of, found without a call to any
 * other library: sanitizers ask for symbols when nothing in front of them works yet, and allocators
 * when there is no memory yet. The list of libraries is read without its lock: the C library is
 * among those that the program was started with, of which none goes and before which none comes. */
#ifndef XCUDA_LIBC_H
#define XCUDA_LIBC_H

#include <stdbool.h>

/* The C library's own function, or NULL. */
void *libc_function(const char *name);

/* Whether two strings are the same, without the C library. */
bool libc_same(const char *one, const char *other);

#endif
