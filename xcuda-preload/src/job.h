/* This process's slot in the job page: what it publishes, and what it must know of its job's other
 * processes. */
#ifndef XCUDA_JOB_H
#define XCUDA_JOB_H

#include <stdbool.h>
#include <stdint.h>

#include "hooks.h"

/* Claims a slot, and again when it was lost or could not be had. */
void job_claim(void);

/* Writes the account into the slot. */
void job_publish(void);

/* The other processes of the job. */
struct job_others {
    int64_t spent_ns; /* device time, or charged for what is in flight; falls by what was charged
                         too much */
    unsigned wanting; /* how many have worked, or waited to, of late */
};

/* Fills it in as of `age_ns` ago at most. */
void job_look_at_others(struct job_others *others, int64_t now_ns, int64_t age_ns);

/* An age that is good enough while waiting. */
#define JOB_LOOK_NS INT64_C(1000000)

/* Charges the process with `bytes` of device memory in all. False, and nothing charged, if the job
 * would then hold more than its quota. Less than before is always possible. */
bool job_charge(uint64_t bytes);

/* The same for memory that is there already. */
void job_charge_anyway(uint64_t bytes);

/* Device memory that the job may still have, if it has a quota. */
uint64_t job_left_bytes(uint64_t quota_bytes);

/* Whether the job holds no more than its quota. */
bool job_fits(void);

void job_note_refusal(uint64_t bytes);

/* Notes the first error after which a context is of no more use. */
void job_note_result(enum hook_index hook, CUresult result);

void job_note_drained(bool drained);

/* The last words: the memory is free again, nothing is in flight. */
void job_end(void);

void job_forget_all(void);

#endif
