/* The gate of this job, from the pages. */
#ifndef XCUDA_GATE_H
#define XCUDA_GATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "pages.h"
#include "visibility.h"

/* Why launches cannot take the short way. Any bit sends them to launch_admit. */
enum attention {
    ATTENTION_START = 1,     /* nothing is set up yet */
    ATTENTION_INERT = 2,     /* no job of ours */
    ATTENTION_CAPTURE = 4,   /* a stream is being captured */
    ATTENTION_STALE = 8,     /* the monitor is not alive */
    ATTENTION_CLOSED = 16,   /* this process is about to end: nothing is launched any more */
    ATTENTION_CONTEXTS = 32, /* several contexts: a stream alone does not say which */
    ATTENTION_BEACON = 64,   /* an online process: launches are counted, and not held (beacon.h) */
    ATTENTION_UNMARKED = 128 /* closed, and nothing is marked in streams any more (drain.c) */
};

extern HIDDEN _Atomic uint32_t attention;

/* The words as they are on the pages (launch path). */
extern HIDDEN const uint64_t *gate_device_word;
extern HIDDEN const uint64_t *gate_job_word;

/* What holds now, and the words that say so. */
struct gate_look {
    struct mux_gate gate;
    uint64_t device_word, job_word;
};

void gate_start(void);
void gate_forget(void);
struct gate_look gate_look(int64_t now_ns);

/* Looks at the files again. One thread at a time. */
void gate_refresh(void);

/* Looks whether the monitor is alive. Any thread; two at once may both log what they see. */
void gate_age(int64_t now_ns);

/* From job control. */
enum mux_job_phase gate_phase(void);
uint64_t gate_quota_bytes(void);   /* 0: none */
uint64_t gate_context_bytes(void); /* 0: ask the driver */

/* How long online processes keep launches off from now on: as mux_beacon_wait_ns. */
int64_t gate_beacon_wait_ns(int64_t now_ns);

/* Epoch of the device's gate that was last obeyed. */
uint32_t gate_epoch(void);

#endif
