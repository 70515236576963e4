#include "context.h"

#include <string.h>

#include "account.h"
#include "driver.h"

/* Elapsed times are floats in milliseconds, good for a microsecond up to some seconds: then the
 * reference moves on. */
#define REFERENCE_LIFE_NS INT64_C(4000000000)

static struct context contexts[CONTEXTS];
static unsigned known;

struct context *context_of(CUcontext handle) {
    struct context *free = NULL;
    if (handle == NULL)
        return NULL;
    for (unsigned i = 0; i < CONTEXTS; i++) {
        if (contexts[i].handle == handle)
            return &contexts[i];
        if (contexts[i].handle == NULL && free == NULL)
            free = &contexts[i];
    }
    if (free != NULL) {
        *free = (struct context){.handle = handle};
        known++;
    }
    return free;
}

void context_forget(CUcontext handle) {
    for (unsigned i = 0; i < CONTEXTS; i++) {
        if (handle != NULL && contexts[i].handle == handle) {
            contexts[i] = (struct context){.handle = NULL};
            known--;
        }
    }
}

void context_each(void (*visit)(CUcontext handle)) {
    for (unsigned i = 0; i < CONTEXTS; i++) {
        account_lock();
        CUcontext handle = contexts[i].handle;
        account_unlock();
        if (handle != NULL)
            visit(handle);
    }
}

void context_forget_all(void) {
    memset(contexts, 0, sizeof contexts);
    known = 0;
}

bool context_several(void) {
    return known > 1;
}

bool context_any(void) {
    return known > 0;
}

CUevent context_take_event(struct context *context) {
    if (context->spares > 0)
        return context->spare[--context->spares];
    CUevent event = NULL;
    return driver.event_create(&event, CU_EVENT_DEFAULT) == CUDA_SUCCESS ? event : NULL;
}

void context_give_event(struct context *context, CUevent event) {
    if (event == NULL)
        return;
    if (context->spares < CONTEXT_SPARE_EVENTS)
        context->spare[context->spares++] = event;
    else
        driver.event_destroy(event);
}

int64_t context_between_ns(CUevent start, CUevent end) {
    float milliseconds;
    if (driver.event_elapsed(&milliseconds, start, end) != CUDA_SUCCESS)
        return -1;
    return (int64_t)((double)milliseconds * 1e6);
}

/* Moves the reference, or gives the event back. */
static void settle_reference(struct context *context, CUevent event, int64_t device_ns) {
    if (device_ns - context->reference_ns < REFERENCE_LIFE_NS) {
        context_give_event(context, event);
        return;
    }
    context_give_event(context, context->reference);
    context->reference = event;
    context->reference_ns = device_ns;
}

bool context_when(struct context *context, CUevent event, int64_t now_ns, struct moment *moment) {
    if (context->reference == NULL) {
        context->reference = event;
        context->offset_ns = now_ns;
        *moment = (struct moment){.device_ns = 0, .our_ns = now_ns};
        return true;
    }
    float milliseconds;
    if (driver.event_elapsed(&milliseconds, context->reference, event) != CUDA_SUCCESS) {
        context_give_event(context, event);
        return false;
    }
    moment->device_ns = context->reference_ns + (int64_t)((double)milliseconds * 1e6);
    if (moment->device_ns + context->offset_ns >
        now_ns) /* it has happened: the offset was too big */
        context->offset_ns = now_ns - moment->device_ns;
    moment->our_ns = moment->device_ns + context->offset_ns;
    settle_reference(context, event, moment->device_ns);
    return true;
}
