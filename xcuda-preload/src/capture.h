/* Captures of streams into graphs. What is launched into a stream that is captured is not executed,
 * and a query, a wait or an event of ours would break the capture. */
#ifndef XCUDA_CAPTURE_H
#define XCUDA_CAPTURE_H

#include <stdbool.h>

#include "gate.h"
#include "hooks.h"
#include "lane.h"

/* Around the calls of the program that begin and end a capture. */
void begin_enter(CUstream stream);
CUresult begin_leave(CUstream stream, enum hook_index hook, CUresult result);
void end_enter(CUstream stream);
CUresult end_leave(CUstream stream, enum hook_index hook, CUresult result);

/* Whether streams are being captured: then only capture_covers tells about a stream, and calls of
 * ours go between capture_relax and capture_restore. */
static inline bool capture_any(void) {
    return atomic_load(&attention) & ATTENTION_CAPTURE;
}

/* Whether a launch into the stream is to be left to the driver as it is. */
bool capture_covers(CUstream stream);

/* Whether a mark or a question of ours may go to the stream of a lane that has an open group, and
 * is held: streams that are captured, or may be in a moment, have none. */
static inline bool capture_spares(const struct lane *lane) {
    return !capture_any() || !lane->open ||
           !capture_covers(atomic_load_explicit(&lane->stream, memory_order_relaxed));
}

/* Lets this thread make calls that might break captures elsewhere, but are known not to. Returns
 * the mode to be restored. */
int capture_relax(void);
void capture_restore(int mode);

void capture_forget_all(void);

#endif
