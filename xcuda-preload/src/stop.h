/* How a job is asked to end: SIGTERM and SIGINT. A program that handles them itself gets them as it
 * would without us. One that does not would die at once, with work in flight, and under MPS that
 * breaks other clients of the GPU. So where the disposition is the default, a handler of ours takes
 * its place in the kernel, has the process drained, and lets the signal through: who waits for the
 * process sees the same end. The program keeps seeing its default. No other signal is touched. */
#ifndef XCUDA_STOP_H
#define XCUDA_STOP_H

/* Takes over what is the default now. */
void stop_start(void);

/* Takes over what has become the default unseen: a handler that was for once, a system call of the
 * program's own. */
void stop_reclaim(void);

/* Ends the process by this signal. For the warden. */
void stop_let_through(int number);

/* In a child after fork: dies as it would without us, and has nothing in flight. */
void stop_forget_all(void);

#endif
