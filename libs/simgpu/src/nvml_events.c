/* Event sets: XIDs as they happen. */
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "nvml_state.h"

/* How often a waiter looks for new XIDs, on all its devices. Looking costs an atomic read for
 * each, whereas the devices' signals, which serve launches too, would wake it far more often. */
enum { LOOK_NS = 2000000 };

enum { SUPPORTED_EVENTS = NVML_EVENT_XID_CRITICAL };

struct registration {
    nvmlDevice_t device;
    uint64_t seen; /* number of the last XID that was told, or that came before */
};

struct nvmlEventSet_st {
    pthread_mutex_t lock; /* before a device's lock */
    unsigned count;
    struct registration devices[SIMGPU_DEVICES];
};

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
    nvmlReturn_t result = nvml_check(device, types);
    if (result == NVML_SUCCESS)
        *types = SUPPORTED_EVENTS;
    return result;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    if (nvml_initialized() != NVML_SUCCESS)
        return NVML_ERROR_UNINITIALIZED;
    if (set == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *set = calloc(1, sizeof **set);
    if (*set == NULL)
        return NVML_ERROR_MEMORY;
    pthread_mutex_init(&(*set)->lock, NULL);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    if (set == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    pthread_mutex_destroy(&set->lock);
    free(set);
    return NVML_SUCCESS;
}

/* From now on: an XID that came before is not told. Registering again changes nothing. */
nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types,
                                      nvmlEventSet_t set) {
    nvmlReturn_t result = nvml_check(device, set);
    if (result != NVML_SUCCESS)
        return result;
    if ((types & ~(unsigned long long)SUPPORTED_EVENTS) != 0)
        return NVML_ERROR_NOT_SUPPORTED;
    if (types == 0)
        return NVML_SUCCESS;
    pthread_mutex_lock(&set->lock);
    unsigned i = 0;
    while (i < set->count && set->devices[i].device != device)
        i++;
    if (i == set->count)
        set->devices[set->count++] = (struct registration){device, device->gpu.device->xid_count};
    pthread_mutex_unlock(&set->lock);
    return NVML_SUCCESS;
}

/* The next XID of this device that was not told; those that its ring has lost are passed over. */
static bool take_xid(struct registration *registration, uint64_t *xid) {
    struct simgpu *gpu = &registration->device->gpu;
    if (gpu->device->xid_count == registration->seen)
        return false;
    simgpu_lock(gpu);
    uint64_t count = gpu->device->xid_count;
    if (count > registration->seen + SIMGPU_XIDS)
        registration->seen = count - SIMGPU_XIDS;
    *xid = gpu->device->xids[registration->seen % SIMGPU_XIDS].xid;
    registration->seen++;
    simgpu_unlock(gpu);
    return true;
}

/* One event, or an error of a device, or NVML_ERROR_TIMEOUT: there is nothing. */
static nvmlReturn_t look(nvmlEventSet_t set, nvmlEventData_t *data) {
    nvmlReturn_t result = NVML_ERROR_TIMEOUT;
    uint64_t xid;
    pthread_mutex_lock(&set->lock);
    for (unsigned i = 0; i < set->count && result == NVML_ERROR_TIMEOUT; i++)
        if (take_xid(&set->devices[i], &xid)) {
            *data = (nvmlEventData_t){
                .device = set->devices[i].device,
                .eventType = NVML_EVENT_XID_CRITICAL,
                .eventData = xid,
                .gpuInstanceId = NVML_NO_INSTANCE,
                .computeInstanceId = NVML_NO_INSTANCE,
            };
            result = NVML_SUCCESS;
        }
    for (unsigned i = 0; i < set->count && result == NVML_ERROR_TIMEOUT; i++)
        if (set->devices[i].device->gpu.device->lost)
            result = NVML_ERROR_GPU_IS_LOST;
    pthread_mutex_unlock(&set->lock);
    return result;
}

static void sleep_until(uint64_t time_ns) {
    struct timespec until = {(time_t)(time_ns / 1000000000), (long)(time_ns % 1000000000)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data,
                                 unsigned int timeout_ms) {
    if (nvml_initialized() != NVML_SUCCESS)
        return NVML_ERROR_UNINITIALIZED;
    if (set == NULL || data == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    uint64_t end_ns = simgpu_now() + timeout_ms * 1000000ULL;
    for (;;) {
        nvmlReturn_t result = look(set, data);
        uint64_t now_ns = simgpu_now();
        if (result != NVML_ERROR_TIMEOUT || now_ns >= end_ns)
            return result;
        sleep_until(now_ns + LOOK_NS < end_ns ? now_ns + LOOK_NS : end_ns);
    }
}

/* The first version's data ends before the MIG instances. */
nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_v1_t *data,
                              unsigned int timeout_ms) {
    if (data == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlEventData_t full;
    nvmlReturn_t result = nvmlEventSetWait_v2(set, &full, timeout_ms);
    if (result == NVML_SUCCESS)
        *data = (nvmlEventData_v1_t){full.device, full.eventType, full.eventData};
    return result;
}
