/* State of libnvidia-ml.so.1 in one process, and what every call does first. */
#ifndef SIMGPU_NVML_STATE_H
#define SIMGPU_NVML_STATE_H

#include <stdbool.h>
#include <stddef.h>

#include "device.h"
#include "nvml_api.h"
#include "nvml_kinds.h"

/* What NVML says of itself, of the driver and of CUDA. */
#define NVML_DRIVER_VERSION "580.95.05"
#define NVML_DRIVER_BRANCH  "r580"
#define NVML_NVML_VERSION   "13." NVML_DRIVER_VERSION
enum { NVML_CUDA_VERSION = 13000 };

struct nvmlDevice_st {
    struct simgpu gpu;
    const struct nvml_kind *kind;
    unsigned index;
    bool open;
};

/* Devices found by the newest nvmlInit, in order of their indices. */
unsigned nvml_device_count(void);
struct nvmlDevice_st *nvml_device_at(unsigned number);

/* NVML_ERROR_UNINITIALIZED before nvmlInit and after the last nvmlShutdown. */
nvmlReturn_t nvml_initialized(void);

/* What a call on a device checks: initialization, the handle, that `out` is not NULL, and that the
 * GPU is not lost. */
nvmlReturn_t nvml_check(nvmlDevice_t device, const void *out);
/* The same for calls that a lost GPU still answers. */
nvmlReturn_t nvml_check_handle(nvmlDevice_t device, const void *out);

/* CPU time stamps of NVML, in µs since 1970, from times of the model; one offset per process, so
 * that one time always has the same stamp. */
unsigned long long nvml_stamp_us(uint64_t model_ns);
uint64_t nvml_model_ns(unsigned long long stamp_us);

/* Copies a text with its end: NVML_ERROR_INSUFFICIENT_SIZE when it does not fit. */
nvmlReturn_t nvml_copy_text(char *to, size_t length, const char *text);

/* The calls, which are all that follows in the files that include this, are exported by nvml.map.
 */
#pragma GCC visibility push(default)

#endif
