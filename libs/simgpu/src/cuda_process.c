/* The process: finding its devices, threads, fork, and the end. */
#include <ctype.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "cuda_driver.h"

struct driver driver = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local struct thread thread_state;
static pthread_key_t thread_key;

struct thread *this_thread(void) {
    return &thread_state;
}

/* --- visible devices --- */

static void uuid_text(const uint8_t uuid[16], char text[41]) {
    int at = snprintf(text, 41, "GPU-");
    for (int i = 0; i < 16; i++)
        at += snprintf(text + at, 41 - (size_t)at,
                       i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", uuid[i]);
}

static bool is_number(const char *text) {
    for (const char *c = text; *c; c++)
        if (!isdigit((unsigned char)*c))
            return false;
    return *text != 0;
}

/* Position of the device that an entry of CUDA_VISIBLE_DEVICES names, or -1. */
static int find_named(const char *name, const struct gpu *all, int count) {
    if (is_number(name)) {
        long position = strtol(name, NULL, 10);
        return position < count ? (int)position : -1;
    }
    if (strncmp(name, "GPU-", 4) != 0)
        return -1;
    for (int i = 0; i < count; i++) {
        char text[41];
        uuid_text(all[i].shared.device->uuid, text);
        if (strncasecmp(name, text, strlen(name)) == 0) /* a beginning will do */
            return i;
    }
    return -1;
}

/* What comes after an entry that names no device is not visible, as with the real driver. */
static int choose_visible(const char *visible, struct gpu *all, int count) {
    char list[4096];
    snprintf(list, sizeof list, "%s", visible);
    int chosen = 0;
    char *rest = list;
    for (char *name = strsep(&rest, ","); name && chosen < SIMGPU_DEVICES;
         name = strsep(&rest, ",")) {
        while (isspace((unsigned char)*name))
            name++;
        for (size_t end = strlen(name); end && isspace((unsigned char)name[end - 1]);)
            name[--end] = 0;
        int found = find_named(name, all, count);
        if (found < 0 || all[found].ordinal >= 0)
            break;
        all[found].ordinal = chosen;
        driver.gpus[chosen++] = all[found];
    }
    return chosen;
}

static int open_all(struct gpu *all) {
    int count = 0;
    for (unsigned index = 0; index < SIMGPU_DEVICES; index++) {
        memset(&all[count], 0, sizeof all[count]);
        if (simgpu_open(&all[count].shared, driver.dir, index) != 0)
            continue;
        all[count].index = index;
        all[count].ordinal = -1;
        all[count].client = SIMGPU_NONE;
        all[count].life_fd = -1;
        pthread_mutex_init(&all[count].effects_lock, NULL);
        pthread_mutex_init(&all[count].calls_lock, NULL);
        count++;
    }
    return count;
}

static int find_gpus(void) {
    static struct gpu all[SIMGPU_DEVICES];
    const char *dir = getenv("MUXFLOW_SIMGPU");
    if (!dir || strlen(dir) >= sizeof driver.dir)
        return 0;
    strcpy(driver.dir, dir);
    int count = open_all(all);
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (!visible) {
        for (int i = 0; i < count; i++) {
            all[i].ordinal = i;
            driver.gpus[i] = all[i];
        }
        return count;
    }
    int chosen = choose_visible(visible, all, count);
    for (int i = 0; i < count; i++)
        if (all[i].ordinal < 0)
            simgpu_close(&all[i].shared);
    return chosen;
}

/* --- fork, threads, exit --- */

/* A child has no part in its parent's contexts, and must not keep it alive on the device. */
static void after_fork_in_child(void) {
    if (driver.state == DRIVER_NEW)
        return;
    driver.state = DRIVER_FORKED;
    for (int i = 0; i < driver.gpu_count; i++)
        if (driver.gpus[i].life_fd >= 0)
            close(driver.gpus[i].life_fd);
}

static void end_thread(void *state) {
    struct thread *thread = state;
    if (driver.state != DRIVER_READY)
        return;
    while (thread->own_streams) {
        struct stream *stream = thread->own_streams;
        thread->own_streams = stream->next_own;
        if (object_is(OBJECT_STREAM, stream) && stream->is_own)
            stream_forget(stream);
    }
}

void this_thread_ends(void) {
    pthread_setspecific(thread_key, &thread_state);
}

/* An orderly end: the device knows at once, and exactly what was still in flight. */
__attribute__((destructor)) static void say_farewell(void) {
    if (driver.state != DRIVER_READY)
        return;
    driver.state = DRIVER_ENDING;
    for (int i = 0; i < driver.gpu_count; i++) {
        struct gpu *gpu = &driver.gpus[i];
        if (gpu->client == SIMGPU_NONE)
            continue;
        simgpu_lock(&gpu->shared);
        simgpu_client_bury(gpu->shared.device, gpu->client);
        simgpu_unlock(&gpu->shared);
    }
}

/* --- entering --- */

CUresult enter(void) {
    if (driver.state != DRIVER_READY)
        return driver.state == DRIVER_ENDING ? CUDA_ERROR_DEINITIALIZED
                                             : CUDA_ERROR_NOT_INITIALIZED;
    return thread_state.in_callback ? CUDA_ERROR_NOT_PERMITTED : CUDA_SUCCESS;
}

CUresult enter_context(struct context **context) {
    CUresult result = enter();
    if (result)
        return result;
    struct context *current =
        thread_state.depth ? thread_state.stack[thread_state.depth - 1] : NULL;
    if (!current)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (!object_is(OBJECT_CONTEXT, current))
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    *context = current;
    return context_error(current);
}

CUresult gpu_lock(struct gpu *gpu) {
    struct simgpu_device *device = gpu->shared.device;
    simgpu_lock(&gpu->shared);
    CUresult result = CUDA_SUCCESS;
    if (driver.state != DRIVER_READY)
        result = CUDA_ERROR_DEINITIALIZED;
    else if (gpu->client != SIMGPU_NONE && device->clients[gpu->client].error)
        result = (CUresult)device->clients[gpu->client].error;
    else if (device->lost)
        result = CUDA_ERROR_DEVICE_UNAVAILABLE;
    if (result)
        simgpu_unlock(&gpu->shared);
    return result;
}

void gpu_unlock(struct gpu *gpu) {
    simgpu_unlock(&gpu->shared);
}

CUresult gpu_of(CUdevice device, struct gpu **gpu) {
    if (device < 0 || device >= driver.gpu_count)
        return CUDA_ERROR_INVALID_DEVICE;
    *gpu = &driver.gpus[device];
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuInit(unsigned flags) {
    if (flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (driver.state == DRIVER_FORKED || driver.state == DRIVER_ENDING)
        return enter();
    pthread_mutex_lock(&driver.mutex);
    if (driver.state == DRIVER_NEW) {
        driver.gpu_count = find_gpus();
        if (driver.gpu_count) {
            pthread_key_create(&thread_key, end_thread);
            pthread_atfork(NULL, NULL, after_fork_in_child);
            driver.state = DRIVER_READY;
        }
    }
    pthread_mutex_unlock(&driver.mutex);
    return driver.state == DRIVER_READY ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

CUDA_API CUresult cuDriverGetVersion(int *version) {
    if (!version)
        return CUDA_ERROR_INVALID_VALUE;
    *version = DRIVER_VERSION;
    return CUDA_SUCCESS;
}
