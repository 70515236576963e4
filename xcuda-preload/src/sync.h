/* Calls by which the program itself waits, or asks, for completion: what they tell costs nothing.
 */
#ifndef XCUDA_SYNC_H
#define XCUDA_SYNC_H

#include "hooks.h"
#include "lane.h"

/* Around the program's call. `stream`: STREAM_ALL for those that are not about one stream. */
void sync_enter(CUstream stream);
CUresult sync_leave(CUstream stream, enum hook_index hook, CUresult result);

/* The same after a copy to the host: one of nothing waits for nothing. */
CUresult read_leave(CUstream stream, enum hook_index hook, CUresult result, size_t bytes);

#endif
