/* Functions of the C library that this library stands in front of, found without asking any of
 * them. */
#ifndef XCUDA_LIBC_H
#define XCUDA_LIBC_H

/* The C library's own function, or NULL. Allocates nothing: allocators ask for symbols, too. */
void *libc_function(const char *name);

#endif
