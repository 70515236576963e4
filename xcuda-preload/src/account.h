/* The account of a process: what is in flight, held against the window, and what was spent, held
 * against the budget. */
#ifndef XCUDA_ACCOUNT_H
#define XCUDA_ACCOUNT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "inflation.h"
#include "timeline.h"

/* When nothing completes for so long although the gate is open, a launch may go out of turn: what
 * is in flight may be waiting for it. */
#define ACCOUNT_PATIENCE_NS INT64_C(100000000)

/* Sums since the process began, and what is in flight. Under the lock, except where said. */
struct account {
    _Atomic int64_t window_used_ns; /* granted, and not known to be complete; no lock */
    _Atomic int64_t due_ns;         /* when the last that was launched is expected to be complete */
    _Atomic int64_t progress_ns; /* when something last completed, or went out of turn; no lock */
    _Atomic int64_t out_of_turn_ns; /* when a launch last went out of turn; no lock */
    _Atomic int64_t held_ns;        /* when one was last held at a frozen gate; no lock */
    _Atomic uint64_t throttled_ns;  /* no lock */
    _Atomic uint64_t frozen_ns;     /* no lock */
    _Atomic uint64_t launches;      /* let through; no lock */
    _Atomic int64_t in_flight_ns;   /* what the launches in flight cost; no lock */
    _Atomic uint32_t in_flight;     /* launches; no lock */
    uint64_t busy_ns;               /* measured */
    int64_t charged_ns;             /* charged to the budget for what is in flight */
    struct inflation inflation;
    struct timeline timeline;
    /* Of late: what lanes were busy each, and what they were busy together. */
    int64_t each_ns, together_ns;
};

extern struct account account;

void account_lock(void);
void account_unlock(void);

/* Takes so much of the window, of which `progress_ns` are taken by what has been done by now. False
 * if there is not so much left. It always is when what is left to be done is nothing, or next to
 * nothing: one launch longer than the window is the floor. */
bool account_reserve(int64_t wanted_ns, int64_t window_ns, int64_t progress_ns);

/* Takes so much, but only when less than `beside_ns`, or nothing, is left to be done. */
bool account_reserve_beside(int64_t wanted_ns, int64_t beside_ns, int64_t progress_ns);

void account_unreserve(int64_t reserved_ns);

/* Enters launches, and what they cost of the window, into the counts; and that they are complete,
 * which gives that back. */
void account_launched(uint32_t launches, int64_t cost_ns);
void account_landed(uint32_t launches, int64_t cost_ns);

/* Enters when what was just launched is expected to be complete. */
void account_expect(int64_t due_ns);

/* Whether something is in flight that should have been complete for so long that it may be waiting
 * for a launch. */
bool account_overdue(int64_t now_ns);

/* Whether a launch may go out of turn now; if so, it is its turn no more. `since_ns`: when the
 * gate opened, or the waiting began. */
bool account_out_of_turn(int64_t now_ns, int64_t since_ns);

/* Enters, under the lock, that a lane was busy in this interval. */
void account_busy(int64_t start_ns, int64_t end_ns);

/* Whether something was measured of late: then the inflation is known, and soon no more. */
bool account_measures(int64_t now_ns);

/* The window as a bound on the sum over lanes: as many times the bound on time as lanes have run
 * side by side of late. */
int64_t account_widen(int64_t window_ns);

/* Wall time to wait until the budget allows a launch; 0: now. Reads what other processes of the job
 * have spent (job.h). INT64_MAX: never. */
int64_t account_budget_wait_ns(int64_t now_ns, uint32_t permille);

/* Charges in advance what is about to be launched, so that other processes see it. */
void account_charge(int64_t charge_ns);

void account_forget_all(void);

#endif
