/* A thread of our own that looks after things while the program's threads do something else: groups
 * that are complete, the slot in the job page, the monitor's heartbeat, the end of the process. It
 * handles no signal. */
#ifndef XCUDA_WARDEN_H
#define XCUDA_WARDEN_H

#include <stdbool.h>

void warden_start(void);

/* There is something to look after: launches, or memory given back. */
void warden_wake(void);

/* The process is to end by this signal, once nothing is in flight. May be called by a handler.
 * False if there is no warden to do it. */
bool warden_stop_by(int signal_number);

/* From here on it makes no call to the driver. Waits until it is out of one. */
void warden_retire(void);

/* It makes none between these two. Waits until it is out of one; for ever when the process ends. */
void warden_keep_off(void);
void warden_let_in(void);

/* In a child after fork. */
void warden_forget(void);

#endif
