#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "mps_control.h"
#include "mps_log.h"

void mps_device_uuid(const struct mps_device *device, char text[41]) {
    const uint8_t *u = device->gpu.device->uuid;
    snprintf(text, 41, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
             u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13],
             u[14], u[15]);
}

/* --- Which ones --- */

static unsigned open_all(const char *dir, struct mps_device found[SIMGPU_DEVICES]) {
    unsigned count = 0;
    for (unsigned index = 0; index < SIMGPU_DEVICES; index++) {
        struct mps_device *device = &found[count];
        if (simgpu_open(&device->gpu, dir, index) != 0)
            continue;
        device->index = index;
        count++;
    }
    return count;
}

/* The device that one entry of CUDA_VISIBLE_DEVICES names: by its place, or by the beginning of
 * its UUID. */
static struct mps_device *named(const char *name, struct mps_device *found, unsigned count) {
    if (isdigit((unsigned char)name[0])) {
        char *end;
        unsigned long place = strtoul(name, &end, 10);
        return *end == '\0' && place < count ? &found[place] : NULL;
    }
    struct mps_device *match = NULL;
    if (strlen(name) <= strlen("GPU-"))
        return NULL;
    for (unsigned i = 0; i < count; i++) {
        char uuid[41];
        mps_device_uuid(&found[i], uuid);
        if (strncasecmp(uuid, name, strlen(name)) != 0)
            continue;
        if (match != NULL)
            return NULL;
        match = &found[i];
    }
    return match;
}

/* In the order of the list, which ends at the first entry that names nothing, as in CUDA. */
static unsigned choose(const char *visible, struct mps_device *found, unsigned count,
                       struct mps_device chosen[SIMGPU_DEVICES]) {
    char names[MPS_LINE_MAX];
    snprintf(names, sizeof names, "%s", visible);
    unsigned number = 0;
    char *rest = NULL;
    for (char *name = strtok_r(names, ", ", &rest); name != NULL && number < count;
         name = strtok_r(NULL, ", ", &rest)) {
        struct mps_device *device = named(name, found, count);
        if (device == NULL || device->gpu.device == NULL)
            break;
        chosen[number++] = *device;
        device->gpu.device = NULL; /* moved */
    }
    return number;
}

/* The record and its life come together: under the lock nobody looks for the dead. */
static int register_on(struct mps_device *device, const char *dir, const char *pipe_dir) {
    simgpu_lock(&device->gpu);
    int record = simgpu_mps_register(&device->gpu, pipe_dir);
    int result = record;
    if (record >= 0) {
        device->record = (uint32_t)record;
        device->life_fd =
            simgpu_hold_life(dir, device->index, SIMGPU_LIFE_MPS_CONTROL + device->record);
        result = device->life_fd;
        if (result < 0)
            simgpu_mps_unregister(device->gpu.device, device->record);
    }
    simgpu_unlock(&device->gpu);
    return result < 0 ? result : 0;
}

void mps_devices_open(struct mps_devices *devices, const char *pipe_dir) {
    const char *dir = getenv("MUXFLOW_SIMGPU");
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    devices->count = 0;
    if (dir == NULL)
        return;
    struct mps_device found[SIMGPU_DEVICES], chosen[SIMGPU_DEVICES];
    unsigned found_count = open_all(dir, found);
    unsigned count = found_count;
    if (visible != NULL)
        count = choose(visible, found, found_count, chosen);
    else
        memcpy(chosen, found, found_count * sizeof found[0]);
    for (unsigned i = 0; visible != NULL && i < found_count; i++)
        if (found[i].gpu.device != NULL)
            simgpu_close(&found[i].gpu);
    for (unsigned i = 0; i < count; i++) {
        int result = register_on(&chosen[i], dir, pipe_dir);
        if (result == 0) {
            devices->list[devices->count++] = chosen[i];
            continue;
        }
        mps_log("Device %u is left out: %s", chosen[i].index, strerror(-result));
        simgpu_close(&chosen[i].gpu);
    }
}

void mps_devices_close(struct mps_devices *devices) {
    for (unsigned i = 0; i < devices->count; i++) {
        struct mps_device *device = &devices->list[i];
        simgpu_lock(&device->gpu);
        simgpu_mps_unregister(device->gpu.device, device->record);
        close(device->life_fd);
        simgpu_unlock(&device->gpu);
        simgpu_close(&device->gpu);
    }
    devices->count = 0;
}

/* --- Their records --- */

static struct simgpu_mps *record_of(const struct mps_device *device) {
    return &device->gpu.device->mps[device->record];
}

bool mps_devices_wanted(const struct mps_devices *devices, uid_t *uid) {
    for (unsigned i = 0; i < devices->count; i++)
        if (record_of(&devices->list[i])->state == SIMGPU_MPS_REQUESTED) {
            *uid = record_of(&devices->list[i])->wanted_uid;
            return true;
        }
    return false;
}

void mps_devices_set_state(struct mps_devices *devices, enum simgpu_mps_state from,
                           enum simgpu_mps_state to) {
    for (unsigned i = 0; i < devices->count; i++) {
        struct mps_device *device = &devices->list[i];
        simgpu_lock(&device->gpu);
        if (record_of(device)->state == from) {
            record_of(device)->state = to;
            simgpu_signal(device->gpu.device);
        }
        simgpu_unlock(&device->gpu);
    }
}

void mps_devices_set_limits(struct mps_devices *devices, const struct mps_limits *limits) {
    unsigned pct = (unsigned)(limits->thread_pct + 0.5);
    for (unsigned i = 0; i < devices->count; i++) {
        struct simgpu_mps *record = record_of(&devices->list[i]);
        record->thread_pct = pct > 0 ? pct : 1; /* the model counts whole percents */
        record->priority = limits->priority;
        record->memory_limit_bytes = limits->memory_bytes[i];
    }
}

void mps_devices_server_gone(struct mps_devices *devices, pid_t server) {
    for (unsigned i = 0; i < devices->count; i++) {
        struct mps_device *device = &devices->list[i];
        simgpu_lock(&device->gpu);
        if (record_of(device)->server_pid == (uint32_t)server)
            simgpu_mps_server_stopped(device->gpu.device, device->record);
        simgpu_unlock(&device->gpu);
    }
}

bool mps_devices_faulted(const struct mps_devices *devices) {
    for (unsigned i = 0; i < devices->count; i++)
        if (record_of(&devices->list[i])->state == SIMGPU_MPS_FAULTED)
            return true;
    return false;
}

/* --- Their clients --- */

unsigned mps_devices_clients(struct mps_devices *devices, struct mps_client *clients,
                             unsigned room) {
    unsigned count = 0;
    for (unsigned i = 0; i < devices->count; i++) {
        struct mps_device *device = &devices->list[i];
        simgpu_lock(&device->gpu);
        for (unsigned slot = 0; slot < SIMGPU_CLIENTS && count < room; slot++) {
            const struct simgpu_client *client = &device->gpu.device->clients[slot];
            if (client->state != SIMGPU_CLIENT_FREE && client->mps == device->record &&
                client->mps_server == record_of(device)->server_id)
                clients[count++] = (struct mps_client){(pid_t)client->pid, i};
        }
        simgpu_unlock(&device->gpu);
    }
    return count;
}

int mps_devices_terminate(struct mps_devices *devices, pid_t client) {
    int result = -ESRCH;
    for (unsigned i = 0; i < devices->count; i++) {
        struct mps_device *device = &devices->list[i];
        simgpu_lock(&device->gpu);
        if (simgpu_mps_terminate_client(device->gpu.device, device->record, (uint32_t)client) == 0)
            result = 0;
        simgpu_unlock(&device->gpu);
    }
    return result;
}
