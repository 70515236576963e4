/* MPS on a device: records of control daemons, what becomes of their clients. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model.h"

/* FNV-1a, 64 bits. */
uint64_t simgpu_path_hash(const char *path) {
    char *resolved = realpath(path, NULL);
    uint64_t hash = 0xcbf29ce484222325;
    for (const char *c = resolved ? resolved : path; *c; c++)
        hash = (hash ^ (uint8_t)*c) * 0x100000001b3;
    free(resolved);
    return hash;
}

uint32_t simgpu_mps_find(const struct simgpu_device *device, uint64_t pipe_hash) {
    for (uint32_t i = 0; i < SIMGPU_MPS_RECORDS; i++)
        if (device->mps[i].state != SIMGPU_MPS_FREE && device->mps[i].pipe_hash == pipe_hash)
            return i;
    return SIMGPU_NONE;
}

int simgpu_mps_register(struct simgpu *gpu, const char *pipe_directory) {
    struct simgpu_device *device = gpu->device;
    uint64_t hash = simgpu_path_hash(pipe_directory);
    uint32_t old = simgpu_mps_find(device, hash);
    if (old != SIMGPU_NONE) {
        if (simgpu_life_is_held(gpu, SIMGPU_LIFE_MPS_CONTROL + old))
            return -EEXIST;
        if (simgpu_life_is_held(gpu, SIMGPU_LIFE_MPS_SERVER + old))
            device->mps[old].pipe_hash = 0; /* goes on for the clients that it has */
        else
            simgpu_mps_unregister(device, old);
    }
    uint32_t slot = 0;
    while (slot < SIMGPU_MPS_RECORDS && device->mps[slot].state != SIMGPU_MPS_FREE)
        slot++;
    if (slot == SIMGPU_MPS_RECORDS)
        return -ENOSPC;
    struct simgpu_mps *mps = &device->mps[slot];
    mps->control_pid = (uint32_t)getpid();
    mps->server_pid = 0;
    mps->uid = mps->wanted_uid = mps->wanted_pid = 0;
    mps->pipe_hash = hash;
    mps->thread_pct = 100;
    mps->priority = 0;
    mps->memory_limit_bytes = 0;
    mps->fault_error = 0;
    mps->faults = 0;
    mps->registered_ns = device->now_ns;
    mps->state = SIMGPU_MPS_IDLE;
    return (int)slot;
}

bool simgpu_mps_serves(const struct simgpu_device *device, uint32_t mps, uint32_t client) {
    const struct simgpu_client *c = &device->clients[client];
    return mps != SIMGPU_NONE && c->state == SIMGPU_CLIENT_USED && c->mps == mps &&
           c->mps_server == device->mps[mps].server_id;
}

static void fail_clients(struct simgpu_device *device, uint32_t mps, int32_t error) {
    for (uint32_t i = 0; i < device->clients_touched; i++)
        if (simgpu_mps_serves(device, mps, i))
            simgpu_client_fail(device, i, error);
}

void simgpu_mps_server_started(struct simgpu_device *device, uint32_t slot, uint32_t server_pid,
                               uint32_t uid) {
    struct simgpu_mps *mps = &device->mps[slot];
    mps->server_pid = server_pid;
    mps->uid = uid;
    mps->server_id = ++device->next_id;
    mps->server_started_ns = device->now_ns;
    mps->state = SIMGPU_MPS_READY;
    simgpu_signal(device);
}

void simgpu_mps_server_stopped(struct simgpu_device *device, uint32_t slot) {
    struct simgpu_mps *mps = &device->mps[slot];
    mps->state = SIMGPU_MPS_STOPPING;
    fail_clients(device, slot, SIMGPU_ERROR_MPS_RPC_FAILURE);
    mps->server_pid = 0;
    mps->state = SIMGPU_MPS_IDLE;
    simgpu_signal(device);
}

void simgpu_mps_unregister(struct simgpu_device *device, uint32_t slot) {
    if (device->mps[slot].server_pid)
        simgpu_mps_server_stopped(device, slot);
    device->mps[slot].state = SIMGPU_MPS_FREE;
    simgpu_signal(device);
}

void simgpu_mps_fault(struct simgpu_device *device, uint32_t slot, int32_t error) {
    struct simgpu_mps *mps = &device->mps[slot];
    if (mps->state != SIMGPU_MPS_READY && mps->state != SIMGPU_MPS_CLOSING)
        return;
    mps->fault_error = error;
    mps->faults++;
    mps->state = SIMGPU_MPS_FAULTED;
    fail_clients(device, slot, error);
    simgpu_mps_left(device, slot);
}

void simgpu_mps_left(struct simgpu_device *device, uint32_t slot) {
    if (device->mps[slot].state != SIMGPU_MPS_FAULTED)
        return;
    for (uint32_t i = 0; i < device->clients_touched; i++)
        if (simgpu_mps_serves(device, slot, i))
            return;
    device->mps[slot].state = SIMGPU_MPS_READY;
    simgpu_signal(device);
}

int simgpu_mps_terminate_client(struct simgpu_device *device, uint32_t mps, uint32_t pid) {
    for (uint32_t i = 0; i < device->clients_touched; i++) {
        if (!simgpu_mps_serves(device, mps, i) || device->clients[i].pid != pid)
            continue;
        simgpu_client_fail(device, i, SIMGPU_ERROR_MPS_CLIENT_TERMINATED);
        return 0;
    }
    return -ESRCH;
}
