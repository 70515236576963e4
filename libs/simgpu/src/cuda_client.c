/* Becoming a client of a device, and of MPS where its control daemon serves the pipe directory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda_driver.h"

#define MPS_WAIT_NS 10000000000ULL /* for a server to start */

static uint64_t start_ticks(void) {
    char stat[1024];
    FILE *file = fopen("/proc/self/stat", "re");
    if (!file)
        return 0;
    size_t length = fread(stat, 1, sizeof stat - 1, file);
    fclose(file);
    stat[length] = 0;
    char *field = strrchr(stat, ')'); /* the name before it may contain anything */
    unsigned long long ticks = 0;
    if (field)
        sscanf(field + 1,
               "%*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu",
               &ticks);
    return ticks;
}

/* Waits, with the device locked, until the server of this record can be joined. */
static CUresult await_server(struct gpu *gpu, uint32_t record) {
    struct simgpu_device *device = gpu->shared.device;
    struct simgpu_mps *mps = &device->mps[record];
    uint64_t give_up_ns = device->now_ns + MPS_WAIT_NS;
    while (mps->state != SIMGPU_MPS_READY) {
        if (mps->state == SIMGPU_MPS_FREE)
            return CUDA_ERROR_MPS_CONNECTION_FAILED;
        if (mps->state == SIMGPU_MPS_FAULTED || device->now_ns >= give_up_ns)
            return CUDA_ERROR_MPS_SERVER_NOT_READY;
        if (mps->state == SIMGPU_MPS_IDLE) {
            mps->wanted_uid = geteuid();
            mps->wanted_pid = (uint32_t)getpid();
            mps->state = SIMGPU_MPS_REQUESTED;
            simgpu_signal(device);
        }
        uint32_t seen = device->signal;
        simgpu_unlock(&gpu->shared);
        simgpu_wait(device, seen, give_up_ns);
        simgpu_lock(&gpu->shared);
    }
    return mps->uid == geteuid() ? CUDA_SUCCESS : CUDA_ERROR_MPS_CONNECTION_FAILED;
}

/* Bytes of the device's entry in a list such as "0=2G,1=512M"; 0: no limit. */
static uint64_t memory_limit(const struct gpu *gpu) {
    const char *list = getenv("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT");
    while (list && *list) {
        char *end;
        long ordinal = strtol(list, &end, 10);
        if (*end != '=')
            return 0;
        unsigned long long bytes = strtoull(end + 1, &end, 10);
        if (*end == 'G' || *end == 'g')
            bytes <<= 30;
        else if (*end == 'M' || *end == 'm')
            bytes <<= 20;
        if (ordinal == gpu->ordinal)
            return bytes;
        list = strchr(end, ',');
        list = list ? list + 1 : NULL;
    }
    return 0;
}

static CUresult join_mps(struct gpu *gpu, uint32_t slot, uint32_t record) {
    struct simgpu_device *device = gpu->shared.device;
    const struct simgpu_mps *mps = &device->mps[record];
    struct simgpu_client *client = &device->clients[slot];
    const char *priority = getenv("CUDA_MPS_CLIENT_PRIORITY");
    uint32_t members = 0;
    for (uint32_t i = 0; i < SIMGPU_CLIENTS; i++)
        members +=
            device->clients[i].state == SIMGPU_CLIENT_USED && device->clients[i].mps == record;
    if (members >= device->kind.mps_clients)
        return CUDA_ERROR_MPS_MAX_CLIENTS_REACHED;
    client->mps_priority = priority ? atoi(priority) != 0 : mps->priority;
    uint64_t limit = memory_limit(gpu);
    client->memory_limit_bytes = limit ? limit : mps->memory_limit_bytes;
    client->mps_server = mps->server_id;
    client->mps = record;
    return CUDA_SUCCESS;
}

/* A free slot, whose life this process holds from now on. */
static int take_slot(struct gpu *gpu) {
    for (uint32_t i = 0; i < SIMGPU_CLIENTS; i++) {
        if (gpu->shared.device->clients[i].state != SIMGPU_CLIENT_FREE)
            continue;
        int fd = simgpu_hold_life(driver.dir, gpu->index, i);
        if (fd < 0)
            continue;
        gpu->life_fd = fd;
        return (int)i;
    }
    return -1;
}

CUresult become_client(struct gpu *gpu) {
    struct simgpu_device *device = gpu->shared.device;
    const char *pipe = getenv("CUDA_MPS_PIPE_DIRECTORY");
    uint32_t record = simgpu_mps_find(device, simgpu_path_hash(pipe ? pipe : "/tmp/nvidia-mps"));
    CUresult result = record == SIMGPU_NONE ? CUDA_SUCCESS : await_server(gpu, record);
    if (result)
        return result;
    int slot = take_slot(gpu);
    if (slot < 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    const char *tag = getenv("MUXFLOW_SIMGPU_TAG");
    simgpu_client_create(device, (uint32_t)slot, (uint32_t)getpid(), start_ticks(), geteuid(),
                         tag ? tag : "");
    if (record != SIMGPU_NONE)
        result = join_mps(gpu, (uint32_t)slot, record);
    if (result) {
        simgpu_client_bury(device, (uint32_t)slot);
        close(gpu->life_fd);
        gpu->life_fd = -1;
        return result;
    }
    gpu->client = (uint32_t)slot;
    return CUDA_SUCCESS;
}

double thread_share(const struct gpu *gpu, unsigned sm_count) {
    const struct simgpu_device *device = gpu->shared.device;
    const struct simgpu_client *client = &device->clients[gpu->client];
    if (client->mps == SIMGPU_NONE)
        return 1;
    double pct = device->mps[client->mps].thread_pct;
    const char *text = getenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE");
    double asked = text ? strtod(text, NULL) : 0;
    if (asked > 0 && asked < pct) /* a client can only lower it */
        pct = asked;
    double share = pct / 100;
    double exact = (double)sm_count / device->kind.sm_count;
    return sm_count && exact < share ? exact : share;
}
