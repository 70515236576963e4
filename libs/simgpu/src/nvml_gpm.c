/* GPU performance monitoring: counters of two samples give averages between them. */
#include <stdlib.h>

#include "nvml_state.h"

/* The GPU copies its counters out at this interval: samples between two copies are alike. */
enum { REFRESH_NS = 100000000 };

struct nvmlGpmSample_st {
    struct simgpu_totals totals; /* time_ns 0: nothing read yet */
};

struct metric_name {
    unsigned id;
    char *short_name, *long_name, *unit;
};

static const struct metric_name names[] = {
    {NVML_GPM_METRIC_GRAPHICS_UTIL, "GRACT", "Graphics Engine Activity", "%"},
    {NVML_GPM_METRIC_SM_UTIL, "SMUTL", "SM Activity", "%"},
    {NVML_GPM_METRIC_SM_OCCUPANCY, "SMOCC", "SM Occupancy", "%"},
    {NVML_GPM_METRIC_DRAM_BW_UTIL, "DRAMA", "DRAM Bandwidth", "%"},
    {NVML_GPM_METRIC_PCIE_TX_PER_SEC, "PCITX", "PCIe Transmitted", "MiB/sec"},
    {NVML_GPM_METRIC_PCIE_RX_PER_SEC, "PCIRX", "PCIe Received", "MiB/sec"},
};

nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *support) {
    nvmlReturn_t result = nvml_check(device, support);
    if (result != NVML_SUCCESS)
        return result;
    if (support->version != NVML_GPM_SUPPORT_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    support->isSupportedDevice = device->gpu.device->kind.gpm;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *sample) {
    if (nvml_initialized() != NVML_SUCCESS)
        return NVML_ERROR_UNINITIALIZED;
    if (sample == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *sample = calloc(1, sizeof **sample);
    return *sample != NULL ? NVML_SUCCESS : NVML_ERROR_MEMORY;
}

nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t sample) {
    if (sample == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    free(sample);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t sample) {
    nvmlReturn_t result = nvml_check(device, sample);
    if (result != NVML_SUCCESS)
        return result;
    if (!device->gpu.device->kind.gpm)
        return NVML_ERROR_NOT_SUPPORTED;
    uint64_t now_ns = simgpu_lock(&device->gpu);
    uint64_t refreshed_ns = now_ns / REFRESH_NS * REFRESH_NS;
    sample->totals = simgpu_device_totals_at(device->gpu.device, refreshed_ns);
    sample->totals.time_ns = refreshed_ns;
    simgpu_unlock(&device->gpu);
    return NVML_SUCCESS;
}

static nvmlReturn_t metric_value(unsigned id, const struct simgpu_totals *first,
                                 const struct simgpu_totals *second, double *value) {
    double elapsed_ns = (double)(second->time_ns - first->time_ns);
    double percent = 100 / elapsed_ns;
    double mib_per_s = 1e9 / elapsed_ns / (1 << 20);
    switch (id) {
    case NVML_GPM_METRIC_GRAPHICS_UTIL:
        *value = percent * (second->busy_ns - first->busy_ns);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_SM_UTIL:
        *value = percent * (second->sm_ns - first->sm_ns);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_SM_OCCUPANCY:
        *value = percent * (second->occupancy_ns - first->occupancy_ns);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_DRAM_BW_UTIL:
        *value = percent * (second->memory_ns - first->memory_ns);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_PCIE_TX_PER_SEC:
        *value = mib_per_s * (second->d2h_bytes - first->d2h_bytes);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_PCIE_RX_PER_SEC:
        *value = mib_per_s * (second->h2d_bytes - first->h2d_bytes);
        return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_SUPPORTED;
}

static void name_metric(nvmlGpmMetric_t *metric) {
    metric->metricInfo.shortName = NULL;
    metric->metricInfo.longName = NULL;
    metric->metricInfo.unit = NULL;
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
        if (names[i].id == metric->metricId) {
            metric->metricInfo.shortName = names[i].short_name;
            metric->metricInfo.longName = names[i].long_name;
            metric->metricInfo.unit = names[i].unit;
        }
}

/* Samples of one refresh say nothing about the time between them: each metric then has no data. */
nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *get) {
    if (nvml_initialized() != NVML_SUCCESS)
        return NVML_ERROR_UNINITIALIZED;
    if (get == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (get->version != NVML_GPM_METRICS_GET_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (get->sample1 == NULL || get->sample2 == NULL || get->numMetrics > NVML_GPM_METRIC_MAX)
        return NVML_ERROR_INVALID_ARGUMENT;
    const struct simgpu_totals *first = &get->sample1->totals, *second = &get->sample2->totals;
    if (first->time_ns == 0 || second->time_ns == 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned i = 0; i < get->numMetrics; i++) {
        nvmlGpmMetric_t *metric = &get->metrics[i];
        metric->value = 0;
        name_metric(metric);
        metric->nvmlReturn = second->time_ns <= first->time_ns
                                 ? NVML_ERROR_NO_DATA
                                 : metric_value(metric->metricId, first, second, &metric->value);
    }
    return NVML_SUCCESS;
}
