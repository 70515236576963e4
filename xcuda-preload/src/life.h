/* The life of the library in a process: set up when CUDA is first used, put away in a child after
 * fork, and at exit. */
#ifndef XCUDA_LIFE_H
#define XCUDA_LIFE_H

#include <stdbool.h>

/* Sets everything up. False if there is nothing to gate: no job of ours, or no driver. */
bool life_start(void);

#endif
