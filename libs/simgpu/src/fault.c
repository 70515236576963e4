/* Faults of the hardware, injected or caused by a kernel that declares one. */
#include "model.h"

static void record(struct simgpu_device *device, uint32_t xid, uint32_t pid) {
    uint64_t number = device->xid_count + 1;
    device->xids[(number - 1) % SIMGPU_XIDS] =
        (struct simgpu_xid){.number = number, .time_ns = device->now_ns, .xid = xid, .pid = pid};
    atomic_store_explicit(&device->xid_count, number, memory_order_release);
    simgpu_signal(device);
}

static void fail_all(struct simgpu_device *device, int32_t error) {
    for (uint32_t i = 0; i < SIMGPU_MPS_RECORDS; i++)
        simgpu_mps_fault(device, i, error);
    for (uint32_t i = 0; i < device->clients_touched; i++)
        if (device->clients[i].state == SIMGPU_CLIENT_USED)
            simgpu_client_fail(device, i, error);
}

/* The culprit alone, or with everybody who shares its server (`spreads`). */
static void fail_culprit(struct simgpu_device *device, uint32_t pid, int32_t error, bool spreads) {
    for (uint32_t i = 0; i < device->clients_touched; i++) {
        struct simgpu_client *client = &device->clients[i];
        if (client->state != SIMGPU_CLIENT_USED || (pid && client->pid != pid))
            continue;
        if (spreads && simgpu_mps_serves(device, client->mps, i))
            simgpu_mps_fault(device, client->mps, error);
        simgpu_client_fail(device, i, error);
    }
}

void simgpu_inject_xid(struct simgpu_device *device, uint32_t xid, uint32_t pid) {
    record(device, xid, pid);
    switch (xid) {
    case 13: /* graphics engine exception */
    case 43: /* GPU stopped processing */
        fail_culprit(device, pid, SIMGPU_ERROR_LAUNCH_FAILED, true);
        break;
    case 31: /* memory page fault */
        fail_culprit(device, pid, SIMGPU_ERROR_ILLEGAL_ADDRESS, true);
        break;
    case 94: /* contained memory error */
        fail_culprit(device, pid, SIMGPU_ERROR_CONTAINED, false);
        break;
    case 48: /* double-bit memory error */
    case 95: /* uncontained memory error */
        fail_all(device, SIMGPU_ERROR_ECC_UNCORRECTABLE);
        break;
    case 79: /* the GPU has fallen off the bus */
        simgpu_lose(device);
        break;
    default:
        break;
    }
}

void simgpu_lose(struct simgpu_device *device) {
    device->lost = 1;
    fail_all(device, SIMGPU_ERROR_DEVICE_UNAVAILABLE);
    simgpu_signal(device);
}

void simgpu_restore(struct simgpu_device *device) {
    device->lost = 0;
    simgpu_signal(device);
}

void simgpu_set_clock(struct simgpu_device *device, uint32_t sm_mhz, uint64_t throttle_reasons) {
    device->sm_clock_mhz = sm_mhz;
    device->throttle_reasons = throttle_reasons;
    simgpu_reschedule(device);
    simgpu_signal(device);
}
