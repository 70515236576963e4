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
    int64_t reference_ns; /* when it was, by our clock */
    CUevent spare[CONTEXT_SPARE_EVENTS];
    unsigned spares;
};

/* The record of a context; made if there is none. NULL when there are too many. */
struct context *context_of(CUcontext handle);

/* Forgets a context whose events are gone, or will be in a moment. */
void context_forget(CUcontext handle);

/* Calls `visit` with each. Not under the lock. */
void context_each(void (*visit)(CUcontext handle));

void context_forget_all(void);

/* Whether the current context must be asked for, since there are several. */
bool context_several(void);

/* An event of this context, which is current; NULL if the driver gives none. */
CUevent context_take_event(struct context *context);

void context_give_event(struct context *context, CUevent event);

/* When this event, which is complete, happened, by our clock: from above known to within the time
 * that passed until somebody looked, and consistent among the events of a context. Takes over the
 * event. */
int64_t context_when(struct context *context, CUevent event, int64_t now_ns);

/* Device time from one complete event to another; -1 if the driver cannot tell. */
int64_t context_between_ns(CUevent start, CUevent end);

#endif
