/* How busy a GPU and its processes were, in NVML's coarse windows. */
#include "nvml_windows.h"

/* --- The device --- */

/* Under the lock. */
static nvmlUtilization_t window_utilization(nvmlDevice_t device, uint64_t window) {
    struct simgpu_totals start =
        simgpu_device_totals_at(device->gpu.device, nvml_window_start(device, window));
    struct simgpu_totals end =
        simgpu_device_totals_at(device->gpu.device, nvml_window_start(device, window + 1));
    return (nvmlUtilization_t){
        .gpu = nvml_percent(device, start.busy_ns, end.busy_ns),
        .memory = nvml_percent(device, start.memory_ns, end.memory_ns),
    };
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization) {
    nvmlReturn_t result = nvml_check(device, utilization);
    if (result != NVML_SUCCESS)
        return result;
    uint64_t now_ns = simgpu_lock(&device->gpu);
    *utilization = window_utilization(device, nvml_newest_window(device, now_ns));
    simgpu_unlock(&device->gpu);
    return NVML_SUCCESS;
}

/* --- Samples: one per window, as far back as NVML's buffer and the model's history reach --- */

enum { SAMPLES_KEPT = 100 };

static uint64_t samples_kept(nvmlDevice_t device) {
    uint64_t reach = (uint64_t)(SIMGPU_HISTORY - 1) * SIMGPU_HISTORY_NS / device->kind->sample_ns;
    return reach < SAMPLES_KEPT ? reach : SAMPLES_KEPT;
}

/* Clocks are not kept: their one sample is of now. */
static nvmlReturn_t sample_clock(nvmlDevice_t device, nvmlClockType_t type, unsigned *count,
                                 nvmlSample_t *samples) {
    unsigned room = *count;
    *count = 1;
    if (samples == NULL)
        return NVML_SUCCESS;
    if (room < 1)
        return NVML_ERROR_INVALID_ARGUMENT;
    samples[0].timeStamp = nvml_stamp_us(simgpu_now());
    return nvmlDeviceGetClockInfo(device, type, &samples[0].sampleValue.uiVal);
}

static nvmlReturn_t sample_windows(nvmlDevice_t device, bool memory, unsigned long long after_us,
                                   unsigned *count, nvmlSample_t *samples) {
    unsigned room = *count;
    uint64_t kept = samples_kept(device);
    *count = (unsigned)kept;
    if (samples == NULL)
        return NVML_SUCCESS;
    if (room == 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    unsigned number = 0;
    uint64_t newest = nvml_newest_window(device, simgpu_lock(&device->gpu));
    simgpu_unlock(&device->gpu);
    uint64_t oldest = newest >= kept ? newest + 1 - kept : 0;
    for (uint64_t window = oldest; window <= newest && number < room; window++) {
        uint64_t end_ns = nvml_window_start(device, window + 1);
        if (end_ns <= device->gpu.device->created_ns || nvml_stamp_us(end_ns) <= after_us)
            continue;
        /* Locked anew for each: reading a hundred takes a millisecond, in which nobody could
         * launch. */
        simgpu_lock(&device->gpu);
        nvmlUtilization_t utilization = window_utilization(device, window);
        simgpu_unlock(&device->gpu);
        samples[number].timeStamp = nvml_stamp_us(end_ns);
        samples[number].sampleValue.uiVal = memory ? utilization.memory : utilization.gpu;
        number++;
    }
    *count = number;
    return number > 0 ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

/* Power is not kept window by window. */
nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, nvmlSamplingType_t type,
                                  unsigned long long after_us, nvmlValueType_t *value_type,
                                  unsigned int *count, nvmlSample_t *samples) {
    nvmlReturn_t result = nvml_check(device, count);
    if (result != NVML_SUCCESS)
        return result;
    if (value_type == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *value_type = NVML_VALUE_TYPE_UNSIGNED_INT;
    switch (type) {
    case NVML_GPU_UTILIZATION_SAMPLES:
        return sample_windows(device, false, after_us, count, samples);
    case NVML_MEMORY_UTILIZATION_SAMPLES:
        return sample_windows(device, true, after_us, count, samples);
    case NVML_PROCESSOR_CLK_SAMPLES:
        return sample_clock(device, NVML_CLOCK_SM, count, samples);
    case NVML_MEMORY_CLK_SAMPLES:
        return sample_clock(device, NVML_CLOCK_MEM, count, samples);
    default:
        return NVML_ERROR_NOT_SUPPORTED;
    }
}

/* --- Processes --- */

struct process_window {
    uint32_t pid;
    unsigned sm, memory; /* percent */
};

/* Those that were active in the newest window, if that ended after `after_us`. Gives its stamp, or
 * 0: it did not. */
static unsigned long long collect(nvmlDevice_t device, unsigned long long after_us,
                                  struct process_window found[SIMGPU_CLIENTS], unsigned *number) {
    *number = 0;
    uint64_t window = nvml_newest_window(device, simgpu_lock(&device->gpu));
    const struct simgpu_device *model = device->gpu.device;
    uint64_t start_ns = nvml_window_start(device, window);
    uint64_t end_ns = nvml_window_start(device, window + 1);
    unsigned long long stamp_us = nvml_stamp_us(end_ns);
    for (uint32_t i = 0; i < SIMGPU_CLIENTS && stamp_us > after_us; i++) {
        if (model->clients[i].state == SIMGPU_CLIENT_FREE || model->clients[i].since_ns >= end_ns)
            continue;
        struct simgpu_totals start = simgpu_client_totals_at(model, i, start_ns);
        struct simgpu_totals end = simgpu_client_totals_at(model, i, end_ns);
        struct process_window process = {
            .pid = model->clients[i].pid,
            .sm = nvml_percent(device, start.busy_ns, end.busy_ns),
            .memory = nvml_percent(device, start.memory_ns, end.memory_ns),
        };
        if (process.sm > 0 || process.memory > 0)
            found[(*number)++] = process;
    }
    simgpu_unlock(&device->gpu);
    return *number > 0 ? stamp_us : 0;
}

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
                                             nvmlProcessUtilizationSample_t *samples,
                                             unsigned int *count, unsigned long long after_us) {
    nvmlReturn_t result = nvml_check(device, count);
    if (result != NVML_SUCCESS)
        return result;
    struct process_window found[SIMGPU_CLIENTS];
    unsigned number, room = *count;
    unsigned long long stamp_us = collect(device, after_us, found, &number);
    if (samples == NULL || room < number) {
        *count = number > 0 ? number : 1; /* to ask with 0 entries again would end here again */
        return NVML_ERROR_INSUFFICIENT_SIZE;
    }
    *count = number;
    for (unsigned i = 0; i < number; i++)
        samples[i] = (nvmlProcessUtilizationSample_t){
            .pid = found[i].pid,
            .timeStamp = stamp_us,
            .smUtil = found[i].sm,
            .memUtil = found[i].memory,
        };
    return number > 0 ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t device,
                                                   nvmlProcessesUtilizationInfo_v1_t *info) {
    nvmlReturn_t result = nvml_check(device, info);
    if (result != NVML_SUCCESS)
        return result;
    if (info->version != NVML_STRUCT_VERSION(nvmlProcessesUtilizationInfo_v1_t, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    struct process_window found[SIMGPU_CLIENTS];
    unsigned number, room = info->processSamplesCount;
    unsigned long long stamp_us = collect(device, info->lastSeenTimeStamp, found, &number);
    if (info->procUtilArray == NULL || room < number) {
        info->processSamplesCount = number > 0 ? number : 1;
        return NVML_ERROR_INSUFFICIENT_SIZE;
    }
    info->processSamplesCount = number;
    for (unsigned i = 0; i < number; i++)
        info->procUtilArray[i] = (nvmlProcessUtilizationInfo_v1_t){
            .timeStamp = stamp_us,
            .pid = found[i].pid,
            .smUtil = found[i].sm,
            .memUtil = found[i].memory,
        };
    return number > 0 ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

/* --- Links: KB/s over the last 20 ms, as NVML has it --- */

enum { LINK_WINDOW_NS = 20000000 };

nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter,
                                         unsigned int *kb_per_s) {
    nvmlReturn_t result = nvml_check(device, kb_per_s);
    if (result != NVML_SUCCESS)
        return result;
    if (counter != NVML_PCIE_UTIL_TX_BYTES && counter != NVML_PCIE_UTIL_RX_BYTES)
        return NVML_ERROR_INVALID_ARGUMENT;
    uint64_t now_ns = simgpu_lock(&device->gpu);
    struct simgpu_totals now = simgpu_device_totals(device->gpu.device);
    struct simgpu_totals then =
        simgpu_device_totals_at(device->gpu.device, now_ns - LINK_WINDOW_NS);
    simgpu_unlock(&device->gpu);
    /* The GPU transmits what goes to the host. */
    double bytes = counter == NVML_PCIE_UTIL_TX_BYTES ? now.d2h_bytes - then.d2h_bytes
                                                      : now.h2d_bytes - then.h2d_bytes;
    *kb_per_s = (unsigned)(bytes / 1000 * (1e9 / LINK_WINDOW_NS));
    return NVML_SUCCESS;
}
