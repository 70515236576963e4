/* Processes on a device: how they come, fail and go. */
#include <errno.h>
#include <string.h>

#include "model.h"

int simgpu_client_create(struct simgpu_device *device, uint32_t slot, uint32_t pid,
                         uint64_t start_ticks, uint32_t uid, const char *tag) {
    struct simgpu_client *client = &device->clients[slot];
    if (client->state != SIMGPU_CLIENT_FREE)
        return -EBUSY;
    if (device->clients_touched <= slot)
        device->clients_touched = slot + 1;
    memset((char *)client + sizeof client->state, 0, sizeof *client - sizeof client->state);
    client->pid = pid;
    client->start_ticks = start_ticks;
    client->uid = uid;
    client->id = ++device->next_id;
    client->mps = SIMGPU_NONE;
    client->thread_share = 1;
    client->since_ns = device->now_ns;
    client->ended_first = client->ended_last = SIMGPU_NONE;
    client->meter.copy[0].totals.time_ns = device->now_ns;
    strncpy(client->tag, tag, SIMGPU_TAG - 1);
    client->state = SIMGPU_CLIENT_USED;
    return 0;
}

static void cancel_all(struct simgpu_device *device, uint32_t client) {
    for (uint32_t i = 0; i < SIMGPU_CONTEXTS; i++)
        if (device->contexts[i].state == SIMGPU_USED && device->contexts[i].client == client)
            simgpu_cancel(device, i);
}

void simgpu_client_fail(struct simgpu_device *device, uint32_t slot, int32_t error) {
    struct simgpu_client *client = &device->clients[slot];
    if (client->error == 0)
        client->error = error;
    cancel_all(device, slot);
    for (uint64_t token; simgpu_collect(device, slot, &token);) {
        /* Nobody may see the effect of work that was lost. */
    }
    simgpu_signal(device);
}

void simgpu_client_bury(struct simgpu_device *device, uint32_t slot) {
    struct simgpu_client *client = &device->clients[slot];
    uint32_t mps = client->mps;
    if (client->unfinished && simgpu_mps_serves(device, mps, slot))
        simgpu_mps_fault(device, mps, SIMGPU_ERROR_MPS_CLIENT_TERMINATED);
    for (uint32_t i = 0; i < SIMGPU_CONTEXTS; i++)
        if (device->contexts[i].state == SIMGPU_USED && device->contexts[i].client == slot)
            simgpu_context_destroy(device, i);
    for (uint32_t i = 0; i < device->events_touched; i++)
        if (device->events[i].state == SIMGPU_USED && device->events[i].client == slot)
            simgpu_event_destroy(device, i);
    for (uint64_t token; simgpu_collect(device, slot, &token);) {
        /* The process that knew what to do is gone. */
    }
    device->memory_used_bytes -= client->memory_bytes;
    client->memory_bytes = 0;
    device->flowing[slot] = 0;
    client->state = SIMGPU_CLIENT_FREE;
    if (mps != SIMGPU_NONE)
        simgpu_mps_left(device, mps);
    simgpu_signal(device);
}
