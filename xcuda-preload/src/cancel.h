/* Threads of the program may be cancelled. None of ours is a place for that: it would leave locks
 * taken, and a launch has been no such place so far. */
#ifndef XCUDA_CANCEL_H
#define XCUDA_CANCEL_H

#include <pthread.h>

static inline int cancel_forbid(void) {
    int before;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
    return before;
}

static inline void cancel_restore(int before) {
    pthread_setcancelstate(before, NULL);
}

#endif
