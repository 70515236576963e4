/* Waiting until nothing of this process is in flight any more. */
#ifndef XCUDA_DRAIN_H
#define XCUDA_DRAIN_H

/* Closes the gate for good and waits until every launch that passed it is complete. Threads that
 * wait at the gate are not waited for. For the warden. */
void drain_for_good(void);

/* At the end of the process: waits for what is in flight, but not for ever; a program may launch
 * from its own destructors. */
void drain_at_exit(void);

#endif
