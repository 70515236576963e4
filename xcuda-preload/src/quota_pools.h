/* Pools of memory, which keep what was freed, and may have grown by more than was asked for. What
 * counts is what a pool holds of the device, as the driver says: `reserved`. The driver is asked
 * only where that may be news: never for an allocation that surely fits in what the pool holds.
 *
 * The memory that graphs allocate when they run is a pool of this kind too, one per device. A graph
 * that allocates counts from its instantiation on: nothing is to be asked when it is launched. */
#ifndef XCUDA_QUOTA_POOLS_H
#define XCUDA_QUOTA_POOLS_H

#include <stdbool.h>
#include <stdint.h>

#include "cuda_types.h"

/* What is known of an allocation before the driver makes it. */
struct pool_wish {
    int pool;                /* index; POOL_NONE: it counts nowhere */
    uint64_t bytes;          /* as the pool rounds them */
    uint64_t promised_bytes; /* taken of the quota, in case that the pool grows */
    bool look;               /* afterwards, how much the pool then holds */
};

enum { POOL_NONE = -1, POOL_UNKNOWN = -2 };

/* The record of a pool, and that of a device's graphs; made if there is none. POOL_NONE if it is
 * not the device's memory, POOL_UNKNOWN if there are too many. */
int pool_of(CUmemoryPool handle);
int pool_of_graphs(CUdevice device);

/* The pool that a stream's allocations come from by default. POOL_UNKNOWN if the driver does not
 * tell. */
int pool_of_stream(CUstream stream);
void pool_current_changed(void);

/* Before: false if the job would have too much. */
bool pool_wish(struct pool_wish *wish, int pool, uint64_t bytes);

/* After: `made`: the driver has allocated. False if the pool has grown beyond the quota; then the
 * allocation is to be undone (pool_left). */
bool pool_settle(const struct pool_wish *wish, bool made);

/* So much of a pool was freed, perhaps in the order of a stream. */
void pool_left(int pool, uint64_t bytes);

/* Asks how much a pool holds. pool_look_at_all: those that may hold something else than they are
 * charged for; whether any did. */
void pool_look(int pool);
bool pool_look_at_all(void);

/* Memory that is not the device's. */
void pool_excuse(CUmemoryPool handle);

/* A pool that is to be destroyed: while the driver is at it, its handle may become another's. Its
 * memory goes with the last allocation. */
int pool_known(CUmemoryPool handle);
void pool_close(int pool);
void pool_gone(int pool);
void pool_reopen(int pool, CUmemoryPool handle);

/* The process has no context left, the last one having been the device's primary. */
void pool_contexts_gone(CUdevice device);

void pool_forget_all(void);

#endif
