#include "nvml_state.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Taken around nvmlInit and nvmlShutdown alone; before any device's lock. Readers look at
 * `initialized`: NVML leaves it to its callers not to shut down under their own calls. */
static pthread_mutex_t state_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic unsigned initialized;
static struct nvmlDevice_st devices[SIMGPU_DEVICES];
static _Atomic unsigned device_count;
static int64_t stamp_offset_ns;

static int64_t realtime_offset(void) {
    struct timespec real, monotonic;
    clock_gettime(CLOCK_REALTIME, &real);
    clock_gettime(CLOCK_MONOTONIC, &monotonic);
    return (real.tv_sec - monotonic.tv_sec) * 1000000000LL + (real.tv_nsec - monotonic.tv_nsec);
}

/* A device of a kind that this library does not know is left out, like one without a driver. */
static void open_devices(const char *dir) {
    unsigned count = 0;
    for (unsigned index = 0; index < SIMGPU_DEVICES; index++) {
        struct nvmlDevice_st *device = &devices[count];
        if (simgpu_open(&device->gpu, dir, index) != 0)
            continue;
        device->kind = nvml_kind_of(&device->gpu.device->kind);
        if (device->kind == NULL) {
            simgpu_close(&device->gpu);
            continue;
        }
        device->index = count;
        device->open = true;
        count++;
    }
    device_count = count;
}

static void close_devices(void) {
    unsigned count = device_count;
    device_count = 0;
    for (unsigned i = 0; i < count; i++) {
        devices[i].open = false;
        simgpu_close(&devices[i].gpu);
    }
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    const char *dir = getenv("MUXFLOW_SIMGPU");
    nvmlReturn_t result = NVML_SUCCESS;
    pthread_mutex_lock(&state_lock);
    if (initialized > 0) {
        initialized++;
    } else if (dir == NULL || dir[0] == '\0' || access(dir, R_OK | X_OK) != 0) {
        result = NVML_ERROR_DRIVER_NOT_LOADED;
    } else {
        stamp_offset_ns = realtime_offset();
        open_devices(dir);
        initialized = 1;
    }
    pthread_mutex_unlock(&state_lock);
    return result;
}

nvmlReturn_t nvmlInit_v2(void) {
    return nvmlInitWithFlags(0);
}

nvmlReturn_t nvmlInit(void) {
    return nvmlInitWithFlags(0);
}

nvmlReturn_t nvmlShutdown(void) {
    nvmlReturn_t result = NVML_SUCCESS;
    pthread_mutex_lock(&state_lock);
    if (initialized == 0)
        result = NVML_ERROR_UNINITIALIZED;
    else if (--initialized == 0)
        close_devices();
    pthread_mutex_unlock(&state_lock);
    return result;
}

unsigned nvml_device_count(void) {
    return device_count;
}

struct nvmlDevice_st *nvml_device_at(unsigned number) {
    return &devices[number];
}

nvmlReturn_t nvml_initialized(void) {
    return initialized > 0 ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

static bool is_handle(nvmlDevice_t device) {
    return device >= devices && device < devices + device_count &&
           ((char *)device - (char *)devices) % sizeof devices[0] == 0 && device->open;
}

nvmlReturn_t nvml_check_handle(nvmlDevice_t device, const void *out) {
    if (initialized == 0)
        return NVML_ERROR_UNINITIALIZED;
    return is_handle(device) && out != NULL ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvml_check(nvmlDevice_t device, const void *out) {
    nvmlReturn_t result = nvml_check_handle(device, out);
    if (result == NVML_SUCCESS && device->gpu.device->lost)
        return NVML_ERROR_GPU_IS_LOST;
    return result;
}

unsigned long long nvml_stamp_us(uint64_t model_ns) {
    return (unsigned long long)((int64_t)model_ns + stamp_offset_ns) / 1000;
}

uint64_t nvml_model_ns(unsigned long long stamp_us) {
    int64_t time_ns = (int64_t)(stamp_us * 1000) - stamp_offset_ns;
    return time_ns > 0 ? (uint64_t)time_ns : 0;
}

nvmlReturn_t nvml_copy_text(char *to, size_t length, const char *text) {
    size_t bytes = strlen(text) + 1;
    if (length < bytes)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(to, text, bytes);
    return NVML_SUCCESS;
}
