/* NVML, behind its two functions that tell about a device's memory. It is never loaded by us. */
#ifndef XCUDA_NVML_H
#define XCUDA_NVML_H

#include <stdbool.h>

#include "hooks.h"

/* nvml[A-Z] */
static inline bool nvml_may_be(const char *name) {
    return name[0] == 'n' && name[1] == 'v' && name[2] == 'm' && name[3] == 'l' && name[4] >= 'A' &&
           name[4] <= 'Z';
}

/* Whether it is a function of NVML's that this hook stands in for. */
bool nvml_is(enum hook_index hook);

/* Finds NVML if the program has loaded it. */
bool nvml_find(void);

/* In a child after fork. */
void nvml_forget_lock(void);

/* The hook, if that is what it stands in for, else the function itself. */
void *nvml_route(void *function, enum hook_index hook);

#endif
