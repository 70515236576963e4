/* A lock for what is done again and again: a dozen instructions as long as nobody else wants it,
 * a fifth of a mutex. All zeros are a free one, also in a child after fork. */
#ifndef XCUDA_LOCK_H
#define XCUDA_LOCK_H

#include <stdatomic.h>
#include <stdint.h>

enum { LOCK_FREE, LOCK_HELD, LOCK_WANTED };

struct lock {
    _Atomic uint32_t state;
};

void lock_wait(struct lock *lock);
void lock_wake(struct lock *lock);

static inline void lock_take(struct lock *lock) {
    uint32_t free = LOCK_FREE;
    if (__builtin_expect(!atomic_compare_exchange_strong_explicit(&lock->state, &free, LOCK_HELD,
                                                                  memory_order_acquire,
                                                                  memory_order_relaxed),
                         0))
        lock_wait(lock);
}

static inline void lock_release(struct lock *lock) {
    uint32_t before = atomic_exchange_explicit(&lock->state, LOCK_FREE, memory_order_release);
    if (__builtin_expect(before == LOCK_WANTED, 0))
        lock_wake(lock);
}

#endif
