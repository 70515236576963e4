/* The way of what the gate lets pass: copies from and to the host, marks, waits, memory in the
 * order of a stream. Nothing of it may begin any more when the process is to end: it would be in
 * flight when that dies. */
#ifndef XCUDA_PASSAGE_H
#define XCUDA_PASSAGE_H

#include <stdbool.h>

/* Before the driver is called; sets the library up if need be. Does not return when the way is
 * closed. */
bool passage_enter(void);

/* After it; paces a job that saves its state. `entered`: what passage_enter gave. */
void passage_leave(bool entered);

/* Closes the way for good, and waits until nobody is on it. */
void passage_close(void);

/* Opens it, with nobody on it: in a child after fork. */
void passage_forget_all(void);

#endif
