#include "control.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void simgpu_control_sizes(uint32_t sizes[6]) {
    sizes[0] = sizeof(struct simgpu_control_kind);
    sizes[1] = sizeof(struct simgpu_control_device);
    sizes[2] = sizeof(struct simgpu_control_client);
    sizes[3] = sizeof(struct simgpu_control_mps);
    sizes[4] = sizeof(struct simgpu_control_operation);
    sizes[5] = sizeof(struct simgpu_control_xid);
}

uint64_t simgpu_control_now(void) {
    return simgpu_now();
}

/* --- Devices --- */

int simgpu_control_kind(uint32_t number, struct simgpu_control_kind *kind) {
    if (number >= simgpu_kind_count)
        return -ENOENT;
    const struct simgpu_kind *entry = &simgpu_kinds[number];
    *kind = (struct simgpu_control_kind){
        .memory_bytes = entry->memory_bytes,
        .context_bytes = entry->context_bytes,
        .sm_count = entry->sm_count,
        .base_mhz = entry->base_mhz,
        .boost_mhz = entry->boost_mhz,
        .limit_w = entry->limit_w,
        .bandwidth_gbps = entry->bandwidth_gbps,
        .pcie_gbps = entry->pcie_gbps,
        .gpm = entry->gpm,
    };
    memcpy(kind->name, entry->name, sizeof kind->name);
    memcpy(kind->product, entry->product, sizeof kind->product);
    return 0;
}

int simgpu_control_create(const char *dir, uint32_t index, const char *kind, const uint8_t *uuid,
                          uint32_t log) {
    const struct simgpu_kind *entry = simgpu_kind_find(kind);
    if (entry == NULL)
        return -ENOENT;
    struct simgpu_options options = {.uuid = uuid, .log = log != 0};
    return simgpu_create(dir, index, entry, &options);
}

int simgpu_control_remove(const char *dir, uint32_t index) {
    return simgpu_remove(dir, index);
}

int simgpu_control_open(const char *dir, uint32_t index, struct simgpu **gpu) {
    struct simgpu *opened = calloc(1, sizeof *opened);
    if (opened == NULL)
        return -ENOMEM;
    int result = simgpu_open(opened, dir, index);
    if (result != 0) {
        free(opened);
        return result;
    }
    *gpu = opened;
    return 0;
}

void simgpu_control_close(struct simgpu *gpu) {
    simgpu_close(gpu);
    free(gpu);
}

/* --- Reading --- */

void simgpu_control_device(struct simgpu *gpu, struct simgpu_control_device *device) {
    uint64_t now_ns = simgpu_lock(gpu);
    const struct simgpu_device *model = gpu->device;
    struct simgpu_totals totals = simgpu_device_totals(model);
    *device = (struct simgpu_control_device){
        .index = model->index,
        .lost = model->lost,
        .memory_bytes = model->kind.memory_bytes,
        .memory_used_bytes = model->memory_used_bytes,
        .throttle_reasons = model->throttle_reasons,
        .sm_clock_mhz = model->sm_clock_mhz,
        .boost_mhz = model->kind.boost_mhz,
        .created_ns = model->created_ns,
        .now_ns = now_ns,
        .busy_ns = totals.busy_ns,
        .sm_ns = totals.sm_ns,
        .memory_ns = totals.memory_ns,
        .operations = model->log_count,
        .xids = model->xid_count,
    };
    memcpy(device->kind, model->kind.name, sizeof device->kind);
    memcpy(device->uuid, model->uuid, sizeof device->uuid);
    simgpu_unlock(gpu);
}

uint32_t simgpu_control_clients(struct simgpu *gpu, struct simgpu_control_client *clients,
                                uint32_t room) {
    uint32_t count = 0;
    simgpu_lock(gpu);
    const struct simgpu_device *model = gpu->device;
    for (uint32_t i = 0; i < SIMGPU_CLIENTS && count < room; i++) {
        const struct simgpu_client *client = &model->clients[i];
        if (client->state == SIMGPU_CLIENT_FREE)
            continue;
        clients[count] = (struct simgpu_control_client){
            .pid = client->pid,
            .mps_server_pid = client->mps == SIMGPU_NONE ? 0 : model->mps[client->mps].server_pid,
            .id = client->id,
            .memory_bytes = client->memory_bytes,
            .context_bytes = client->context_bytes,
            .since_ns = client->since_ns,
            .thread_share = client->thread_share,
            .busy_ns = simgpu_client_totals(model, i).busy_ns,
            .error = client->error,
            .unfinished = client->unfinished,
        };
        memcpy(clients[count].tag, client->tag, sizeof client->tag);
        count++;
    }
    simgpu_unlock(gpu);
    return count;
}

static uint32_t clients_of(const struct simgpu_device *model, uint32_t mps) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < SIMGPU_CLIENTS; i++)
        if (model->clients[i].state != SIMGPU_CLIENT_FREE && model->clients[i].mps == mps)
            count++;
    return count;
}

uint32_t simgpu_control_mps(struct simgpu *gpu, struct simgpu_control_mps *records, uint32_t room) {
    uint32_t count = 0;
    simgpu_lock(gpu);
    const struct simgpu_device *model = gpu->device;
    for (uint32_t i = 0; i < SIMGPU_MPS_RECORDS && count < room; i++) {
        const struct simgpu_mps *mps = &model->mps[i];
        if (mps->state == SIMGPU_MPS_FREE)
            continue;
        records[count++] = (struct simgpu_control_mps){
            .state = mps->state,
            .control_pid = mps->control_pid,
            .server_pid = mps->server_pid,
            .uid = mps->uid,
            .thread_pct = mps->thread_pct,
            .clients = clients_of(model, i),
            .faults = mps->faults,
        };
    }
    simgpu_unlock(gpu);
    return count;
}

static struct simgpu_control_operation operation_of(const struct simgpu_log_entry *entry) {
    struct simgpu_control_operation operation = {
        .number = entry->number,
        .id = entry->id,
        .enqueued_ns = entry->enqueued_ns,
        .started_ns = entry->started_ns,
        .ended_ns = entry->ended_ns,
        .ran_ns = entry->ran_ns,
        .work_ns = entry->work_ns,
        .pid = entry->pid,
        .context = entry->context,
        .stream = entry->stream,
        .kind = entry->kind,
        .cancelled = entry->cancelled,
        .sm_share = entry->sm_share,
        .bandwidth = entry->bandwidth,
    };
    memcpy(operation.tag, entry->tag, sizeof operation.tag);
    return operation;
}

/* Number before the oldest that a ring of this size still has. */
static uint64_t lost_before(uint64_t count, uint64_t ring) {
    return count > ring ? count - ring : 0;
}

uint32_t simgpu_control_log(struct simgpu *gpu, uint64_t after,
                            struct simgpu_control_operation *operations, uint32_t room) {
    uint32_t number = 0;
    simgpu_lock(gpu);
    const struct simgpu_device *model = gpu->device;
    uint64_t lost = lost_before(model->log_count, SIMGPU_LOG);
    for (uint64_t n = after > lost ? after : lost; n < model->log_count && number < room; n++)
        operations[number++] = operation_of(&model->log[n % SIMGPU_LOG]);
    simgpu_unlock(gpu);
    return number;
}

uint32_t simgpu_control_xids(struct simgpu *gpu, uint64_t after, struct simgpu_control_xid *xids,
                             uint32_t room) {
    uint32_t number = 0;
    simgpu_lock(gpu);
    const struct simgpu_device *model = gpu->device;
    uint64_t lost = lost_before(model->xid_count, SIMGPU_XIDS);
    for (uint64_t n = after > lost ? after : lost; n < model->xid_count && number < room; n++) {
        const struct simgpu_xid *entry = &model->xids[n % SIMGPU_XIDS];
        xids[number++] = (struct simgpu_control_xid){
            .number = entry->number,
            .time_ns = entry->time_ns,
            .xid = entry->xid,
            .pid = entry->pid,
        };
    }
    simgpu_unlock(gpu);
    return number;
}

/* --- Breaking --- */

void simgpu_control_inject_xid(struct simgpu *gpu, uint32_t xid, uint32_t pid) {
    simgpu_lock(gpu);
    simgpu_inject_xid(gpu->device, xid, pid);
    simgpu_unlock(gpu);
}

void simgpu_control_lose(struct simgpu *gpu) {
    simgpu_lock(gpu);
    simgpu_lose(gpu->device);
    simgpu_unlock(gpu);
}

void simgpu_control_restore(struct simgpu *gpu) {
    simgpu_lock(gpu);
    simgpu_restore(gpu->device);
    simgpu_unlock(gpu);
}

void simgpu_control_set_clock(struct simgpu *gpu, uint32_t mhz, uint64_t throttle_reasons) {
    simgpu_lock(gpu);
    simgpu_set_clock(gpu->device, mhz == 0 ? gpu->device->kind.boost_mhz : mhz, throttle_reasons);
    simgpu_unlock(gpu);
}
