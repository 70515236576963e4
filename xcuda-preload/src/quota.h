/* The quota on device memory: what the process holds, and whether it may have more. The calls of
 * the program that it stands in for are in quota_pointers.c, quota_arrays.c, quota_physical.c,
 * quota_contexts.c and quota_graphs.c. */
#ifndef XCUDA_QUOTA_H
#define XCUDA_QUOTA_H

#include <stdbool.h>
#include <stdint.h>

#include "hooks.h"
#include "ledger.h"

/* Takes so much of the quota, before the driver is asked. False if the job would have too much;
 * then the call fails with CUDA_ERROR_OUT_OF_MEMORY. */
bool quota_take(uint64_t bytes);

void quota_give(uint64_t bytes);

/* After the driver was asked for memory: remembers for what the bytes were taken, or gives them
 * back. Returns `result`. */
CUresult quota_settle_taken(enum hook_index hook, CUresult result,
                            const struct ledger_entry *entry);

/* Notes what is held. What was noted under the same address or handle is gone. */
void quota_remember(const struct ledger_entry *entry);

/* Takes an entry out of the ledger before the driver is asked to free: afterwards another thread
 * may already have the same address. */
bool quota_forget(enum ledger_kind kind, uint64_t key, struct ledger_entry *entry);

/* After that: gives the bytes back, or puts the entry back if the driver refused. What was not
 * known was freed all the same. Returns `result`. */
CUresult quota_settle_freed(enum hook_index hook, CUresult result, bool known,
                            const struct ledger_entry *entry);

/* Gives the bytes of a LEDGER_POOLED or LEDGER_EXEC back to its pool. */
void quota_pooled_gone(const struct ledger_entry *entry);

/* The context that memory allocated now belongs to. */
CUcontext quota_current_context(void);

/* The memory that belongs to a context is gone with it. */
void quota_context_gone(CUcontext context);

/* The ledger, for those who do more than that. */
struct ledger *quota_lock(void);
void quota_unlock(void);

/* Under the lock: takes so much if the job may have it, without patience. */
bool quota_try(uint64_t bytes);

/* Under the lock: what was taken is now so much, because it is. False if the job may not have it.
 */
bool quota_replace(uint64_t before_bytes, uint64_t after_bytes);

/* Tells the job page how much less is held than was published. Whether it was. */
bool quota_trim(void);

void quota_forget_all(void);
void quota_forget_contexts(void);

#endif
