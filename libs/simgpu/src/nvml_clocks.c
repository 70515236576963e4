/* Clocks and what holds them down, power, energy, temperature. */
#include "nvml_state.h"

/* A GPU without a kernel for this long has lowered its clocks. */
enum { IDLE_AFTER_NS = 1000000000 };

/* Drivers average the power sensor over about this long. */
enum { POWER_WINDOW_NS = 100000000 };

struct clocks {
    unsigned sm_mhz, memory_mhz, pstate;
    unsigned long long reasons;
};

/* Under the lock. */
static bool is_idle(const struct simgpu_device *model) {
    struct simgpu_totals now = simgpu_device_totals(model);
    struct simgpu_totals then = simgpu_device_totals_at(model, now.time_ns - IDLE_AFTER_NS);
    return now.busy_ns <= then.busy_ns;
}

static struct clocks read_clocks(nvmlDevice_t device) {
    simgpu_lock(&device->gpu);
    const struct simgpu_device *model = device->gpu.device;
    struct clocks clocks = {
        .sm_mhz = model->sm_clock_mhz,
        .memory_mhz = model->memory_clock_mhz,
        .pstate = 0,
        .reasons = model->throttle_reasons,
    };
    if (is_idle(model)) {
        if (clocks.sm_mhz > device->kind->idle_sm_mhz)
            clocks.sm_mhz = device->kind->idle_sm_mhz;
        clocks.memory_mhz = device->kind->idle_memory_mhz;
        clocks.pstate = device->kind->idle_pstate;
        clocks.reasons |= NVML_CLOCKS_REASON_GPU_IDLE;
    }
    simgpu_unlock(&device->gpu);
    return clocks;
}

/* The video clock is not modelled; on these boards it goes with the SM clock. */
static unsigned clock_of(const struct clocks *clocks, nvmlClockType_t type) {
    return type == NVML_CLOCK_MEM ? clocks->memory_mhz : clocks->sm_mhz;
}

static struct clocks highest_clocks(nvmlDevice_t device) {
    return (struct clocks){
        .sm_mhz = device->gpu.device->kind.boost_mhz,
        .memory_mhz = device->gpu.device->kind.memory_mhz,
    };
}

/* --- Clocks --- */

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *mhz) {
    nvmlReturn_t result = nvml_check(device, mhz);
    if (result != NVML_SUCCESS)
        return result;
    if ((unsigned)type > NVML_CLOCK_VIDEO)
        return NVML_ERROR_INVALID_ARGUMENT;
    struct clocks clocks = read_clocks(device);
    *mhz = clock_of(&clocks, type);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type,
                                       unsigned int *mhz) {
    nvmlReturn_t result = nvml_check(device, mhz);
    if (result != NVML_SUCCESS)
        return result;
    if ((unsigned)type > NVML_CLOCK_VIDEO)
        return NVML_ERROR_INVALID_ARGUMENT;
    struct clocks clocks = highest_clocks(device);
    *mhz = clock_of(&clocks, type);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxCustomerBoostClock(nvmlDevice_t device, nvmlClockType_t type,
                                                unsigned int *mhz) {
    return nvmlDeviceGetMaxClockInfo(device, type, mhz);
}

/* Application clocks stand at the highest, as on these boards by default. */
nvmlReturn_t nvmlDeviceGetClock(nvmlDevice_t device, nvmlClockType_t type, nvmlClockId_t id,
                                unsigned int *mhz) {
    if (id == NVML_CLOCK_ID_CURRENT)
        return nvmlDeviceGetClockInfo(device, type, mhz);
    nvmlReturn_t result = nvml_check(device, mhz);
    if (result != NVML_SUCCESS)
        return result;
    if ((unsigned)id > NVML_CLOCK_ID_CUSTOMER_BOOST_MAX)
        return NVML_ERROR_INVALID_ARGUMENT;
    return nvmlDeviceGetMaxClockInfo(device, type, mhz);
}

nvmlReturn_t nvmlDeviceGetApplicationsClock(nvmlDevice_t device, nvmlClockType_t type,
                                            unsigned int *mhz) {
    return nvmlDeviceGetMaxClockInfo(device, type, mhz);
}

nvmlReturn_t nvmlDeviceGetDefaultApplicationsClock(nvmlDevice_t device, nvmlClockType_t type,
                                                   unsigned int *mhz) {
    return nvmlDeviceGetMaxClockInfo(device, type, mhz);
}

static nvmlReturn_t list_of_one(unsigned *count, unsigned *list, unsigned value) {
    unsigned room = *count;
    *count = 1;
    if (room < 1)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    if (list == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    list[0] = value;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t device, unsigned int *count,
                                                unsigned int *mhz) {
    nvmlReturn_t result = nvml_check(device, count);
    return result != NVML_SUCCESS ? result
                                  : list_of_one(count, mhz, device->gpu.device->kind.memory_mhz);
}

nvmlReturn_t nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice_t device, unsigned int memory_mhz,
                                                  unsigned int *count, unsigned int *mhz) {
    nvmlReturn_t result = nvml_check(device, count);
    if (result != NVML_SUCCESS)
        return result;
    if (memory_mhz != device->gpu.device->kind.memory_mhz)
        return NVML_ERROR_NOT_FOUND;
    return list_of_one(count, mhz, device->gpu.device->kind.boost_mhz);
}

/* --- Reasons and states --- */

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device,
                                                    unsigned long long *reasons) {
    nvmlReturn_t result = nvml_check(device, reasons);
    if (result == NVML_SUCCESS)
        *reasons = read_clocks(device).reasons;
    return result;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device,
                                                       unsigned long long *reasons) {
    return nvmlDeviceGetCurrentClocksEventReasons(device, reasons);
}

nvmlReturn_t nvmlDeviceGetSupportedClocksEventReasons(nvmlDevice_t device,
                                                      unsigned long long *reasons) {
    nvmlReturn_t result = nvml_check(device, reasons);
    if (result == NVML_SUCCESS)
        *reasons = NVML_CLOCKS_REASON_SUPPORTED;
    return result;
}

nvmlReturn_t nvmlDeviceGetSupportedClocksThrottleReasons(nvmlDevice_t device,
                                                         unsigned long long *reasons) {
    return nvmlDeviceGetSupportedClocksEventReasons(device, reasons);
}

nvmlReturn_t nvmlDeviceGetPerformanceState(nvmlDevice_t device, unsigned int *state) {
    nvmlReturn_t result = nvml_check(device, state);
    if (result == NVML_SUCCESS)
        *state = read_clocks(device).pstate;
    return result;
}

nvmlReturn_t nvmlDeviceGetPowerState(nvmlDevice_t device, unsigned int *state) {
    return nvmlDeviceGetPerformanceState(device, state);
}

/* --- Power --- */

static unsigned power_mw(nvmlDevice_t device) {
    simgpu_lock(&device->gpu);
    unsigned mw = simgpu_power_mw(device->gpu.device, POWER_WINDOW_NS);
    simgpu_unlock(&device->gpu);
    return mw;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *mw) {
    nvmlReturn_t result = nvml_check(device, mw);
    if (result == NVML_SUCCESS)
        *mw = power_mw(device);
    return result;
}

static nvmlReturn_t power_limit(nvmlDevice_t device, unsigned *mw) {
    nvmlReturn_t result = nvml_check(device, mw);
    if (result == NVML_SUCCESS)
        *mw = device->gpu.device->kind.limit_w * 1000;
    return result;
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned int *mw) {
    return power_limit(device, mw);
}

nvmlReturn_t nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t device, unsigned int *mw) {
    return power_limit(device, mw);
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *mw) {
    return power_limit(device, mw);
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *low_mw,
                                                          unsigned int *high_mw) {
    nvmlReturn_t result = nvml_check(device, low_mw);
    if (result != NVML_SUCCESS)
        return result;
    if (high_mw == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *low_mw = device->kind->min_limit_w * 1000;
    *high_mw = device->gpu.device->kind.limit_w * 1000;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerManagementMode(nvmlDevice_t device, nvmlEnableState_t *mode) {
    nvmlReturn_t result = nvml_check(device, mode);
    if (result == NVML_SUCCESS)
        *mode = NVML_FEATURE_ENABLED;
    return result;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *mj) {
    nvmlReturn_t result = nvml_check(device, mj);
    if (result != NVML_SUCCESS)
        return result;
    simgpu_lock(&device->gpu);
    *mj = simgpu_energy_mj(device->gpu.device);
    simgpu_unlock(&device->gpu);
    return NVML_SUCCESS;
}

/* --- Temperature --- */

static unsigned temperature_c(nvmlDevice_t device) {
    simgpu_lock(&device->gpu);
    unsigned celsius = simgpu_temperature_c(device->gpu.device);
    simgpu_unlock(&device->gpu);
    return celsius;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor,
                                      unsigned int *celsius) {
    nvmlReturn_t result = nvml_check(device, celsius);
    if (result != NVML_SUCCESS)
        return result;
    if (sensor != NVML_TEMPERATURE_GPU)
        return NVML_ERROR_INVALID_ARGUMENT;
    *celsius = temperature_c(device);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_v1_t *temperature) {
    nvmlReturn_t result = nvml_check(device, temperature);
    if (result != NVML_SUCCESS)
        return result;
    if (temperature->version != NVML_STRUCT_VERSION(nvmlTemperature_v1_t, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (temperature->sensorType != NVML_TEMPERATURE_GPU)
        return NVML_ERROR_INVALID_ARGUMENT;
    temperature->temperature = (int)temperature_c(device);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device,
                                               nvmlTemperatureThresholds_t threshold,
                                               unsigned int *celsius) {
    nvmlReturn_t result = nvml_check(device, celsius);
    if (result != NVML_SUCCESS)
        return result;
    switch (threshold) {
    case NVML_TEMPERATURE_THRESHOLD_SHUTDOWN:
        *celsius = device->kind->shutdown_c;
        return NVML_SUCCESS;
    case NVML_TEMPERATURE_THRESHOLD_SLOWDOWN:
        *celsius = device->gpu.device->kind.slowdown_c;
        return NVML_SUCCESS;
    case NVML_TEMPERATURE_THRESHOLD_MEM_MAX:
        *celsius = device->kind->memory_max_c;
        return device->kind->memory_max_c > 0 ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
    case NVML_TEMPERATURE_THRESHOLD_GPU_MAX:
        *celsius = device->kind->gpu_max_c;
        return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_SUPPORTED;
}

/* Boards for servers are cooled by their chassis. */
nvmlReturn_t nvmlDeviceGetNumFans(nvmlDevice_t device, unsigned int *count) {
    nvmlReturn_t result = nvml_check(device, count);
    if (result == NVML_SUCCESS)
        *count = 0;
    return result;
}
