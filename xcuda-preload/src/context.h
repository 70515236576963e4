/* The contexts of the program: events to measure with, and a clock that relates them to ours.
 * All calls are made under the account's lock (account.h). */
#ifndef XCUDA_CONTEXT_H
#define XCUDA_CONTEXT_H

#include <stdbool.h>
#include <stdint.h>

#include "cuda_types.h"

enum { CONTEXTS = 64, CONTEXT_SPARE_EVENTS = 64 };

struct context {
    CUcontext handle;     /* NULL: free */
    CUevent reference;    /* an event of the past; NULL before the first one */
    int64_t reference_ns; /* when it was, by the device's clock, which began with the first one */
    int64_t offset_ns;    /* of that clock from ours, from above */
    CUevent spare[CONTEXT_SPARE_EVENTS];
    unsigned spares;
};

/* The record of a context; made if there is none. NULL for none, or when there are too many. */
struct context *context_of(CUcontext handle);

/* Forgets a context whose events are gone, or will be in a moment. */
void context_forget(CUcontext handle);

/* Calls `visit` with each. Not under the lock. */
void context_each(void (*visit)(CUcontext handle));

void context_forget_all(void);

/* Whether the current context must be asked for, since there are several. */
bool context_several(void);

/* Whether there is any. */
bool context_any(void);

/* An event of this context, which is current; NULL if the driver gives none. */
CUevent context_take_event(struct context *context);

/* Keeps it for the next who wants one, or destroys it: hundreds of streams need many at a time. */
void context_give_event(struct context *context, CUevent event);

/* A moment on the device. */
struct moment {
    int64_t device_ns; /* by a clock of its own; exact */
    int64_t our_ns;    /* by our clock: never in the future, and too late by no more than it took to
                          look at some event of this context */
};

/* When this event, which is complete, happened. Takes over the event. False if the driver cannot
 * tell. */
bool context_when(struct context *context, CUevent event, int64_t now_ns, struct moment *moment);

/* Device time from one complete event to another; -1 if the driver cannot tell. */
int64_t context_between_ns(CUevent start, CUevent end);

#endif
