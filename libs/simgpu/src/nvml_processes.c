/* Processes on a GPU.
 *
 * As with a real MPS: its clients stand in the MPS list alone, and its server, through which they
 * reach the GPU, in the list of compute processes. */
#include "nvml_state.h"

enum { PROCESSES_MAX = SIMGPU_CLIENTS + SIMGPU_MPS_RECORDS };

struct process {
    uint32_t pid;
    uint64_t memory_bytes;
};

/* Processes with a context: those of MPS, or the others and the MPS servers. */
static unsigned collect(nvmlDevice_t device, bool mps, struct process found[PROCESSES_MAX]) {
    unsigned count = 0;
    simgpu_lock(&device->gpu);
    const struct simgpu_device *model = device->gpu.device;
    for (unsigned i = 0; i < SIMGPU_CLIENTS; i++) {
        const struct simgpu_client *client = &model->clients[i];
        if (client->state == SIMGPU_CLIENT_FREE || client->context_bytes == 0)
            continue;
        if ((client->mps != SIMGPU_NONE) == mps)
            found[count++] =
                (struct process){client->pid, client->context_bytes + client->memory_bytes};
    }
    for (unsigned i = 0; i < SIMGPU_MPS_RECORDS && !mps; i++)
        if (model->mps[i].state != SIMGPU_MPS_FREE && model->mps[i].server_pid != 0)
            /* Its own memory is not modelled: that of its clients counts as theirs. */
            found[count++] = (struct process){model->mps[i].server_pid, 0};
    simgpu_unlock(&device->gpu);
    return count;
}

/* What all lists do with the caller's array: none asks for the count. */
static nvmlReturn_t check_room(unsigned *room, unsigned needed, const void *array) {
    unsigned had = *room;
    *room = needed;
    if (had < needed)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    return needed > 0 && array == NULL ? NVML_ERROR_INVALID_ARGUMENT : NVML_SUCCESS;
}

static nvmlReturn_t list_v1(nvmlDevice_t device, bool mps, unsigned *count,
                            nvmlProcessInfo_v1_t *infos) {
    nvmlReturn_t result = nvml_check(device, count);
    if (result != NVML_SUCCESS)
        return result;
    struct process found[PROCESSES_MAX];
    unsigned number = collect(device, mps, found);
    result = check_room(count, number, infos);
    for (unsigned i = 0; i < number && result == NVML_SUCCESS; i++)
        infos[i] = (nvmlProcessInfo_v1_t){found[i].pid, found[i].memory_bytes};
    return result;
}

static nvmlReturn_t list_v2(nvmlDevice_t device, bool mps, unsigned *count,
                            nvmlProcessInfo_v2_t *infos) {
    nvmlReturn_t result = nvml_check(device, count);
    if (result != NVML_SUCCESS)
        return result;
    struct process found[PROCESSES_MAX];
    unsigned number = collect(device, mps, found);
    result = check_room(count, number, infos);
    for (unsigned i = 0; i < number && result == NVML_SUCCESS; i++)
        infos[i] = (nvmlProcessInfo_v2_t){
            .pid = found[i].pid,
            .usedGpuMemory = found[i].memory_bytes,
            .gpuInstanceId = NVML_NO_INSTANCE,
            .computeInstanceId = NVML_NO_INSTANCE,
        };
    return result;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int *count,
                                                  nvmlProcessInfo_v1_t *infos) {
    return list_v1(device, false, count, infos);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
                                                     nvmlProcessInfo_v2_t *infos) {
    return list_v2(device, false, count, infos);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                     nvmlProcessInfo_v2_t *infos) {
    return list_v2(device, false, count, infos);
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses(nvmlDevice_t device, unsigned int *count,
                                                     nvmlProcessInfo_v1_t *infos) {
    return list_v1(device, true, count, infos);
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
                                                        nvmlProcessInfo_v2_t *infos) {
    return list_v2(device, true, count, infos);
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                        nvmlProcessInfo_v2_t *infos) {
    return list_v2(device, true, count, infos);
}

static nvmlReturn_t no_graphics(nvmlDevice_t device, unsigned *count) {
    nvmlReturn_t result = nvml_check(device, count);
    if (result == NVML_SUCCESS)
        *count = 0;
    return result;
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses(nvmlDevice_t device, unsigned int *count,
                                                   nvmlProcessInfo_v1_t *infos) {
    (void)infos;
    return no_graphics(device, count);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
                                                      nvmlProcessInfo_v2_t *infos) {
    (void)infos;
    return no_graphics(device, count);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                      nvmlProcessInfo_v2_t *infos) {
    (void)infos;
    return no_graphics(device, count);
}

nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device,
                                                   nvmlProcessDetailList_v1_t *list) {
    nvmlReturn_t result = nvml_check(device, list);
    if (result != NVML_SUCCESS)
        return result;
    if (list->version != NVML_STRUCT_VERSION(nvmlProcessDetailList_v1_t, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (list->mode > NVML_PROCESS_MODE_ALL)
        return NVML_ERROR_INVALID_ARGUMENT;
    struct process found[2 * PROCESSES_MAX];
    unsigned number = 0;
    if (list->mode == NVML_PROCESS_MODE_COMPUTE || list->mode == NVML_PROCESS_MODE_ALL)
        number += collect(device, false, found);
    if (list->mode == NVML_PROCESS_MODE_MPS || list->mode == NVML_PROCESS_MODE_ALL)
        number += collect(device, true, found + number);
    result = check_room(&list->numProcArrayEntries, number, list->procArray);
    for (unsigned i = 0; i < number && result == NVML_SUCCESS; i++)
        list->procArray[i] = (nvmlProcessDetail_v1_t){
            .pid = found[i].pid,
            .usedGpuMemory = found[i].memory_bytes,
            .gpuInstanceId = NVML_NO_INSTANCE,
            .computeInstanceId = NVML_NO_INSTANCE,
        };
    return result;
}
