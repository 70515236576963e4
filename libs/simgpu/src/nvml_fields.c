/* Field values: some of what other calls tell, by number and many at once. */
#include "nvml_state.h"

static nvmlReturn_t read_uint(nvmlReturn_t (*call)(nvmlDevice_t, unsigned int *),
                              nvmlDevice_t device, nvmlFieldValue_t *field) {
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
    return call(device, &field->value.uiVal);
}

static nvmlReturn_t read_field(nvmlDevice_t device, nvmlFieldValue_t *field) {
    unsigned low_mw, high_mw;
    switch (field->fieldId) {
    case NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION:
        field->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
        return nvmlDeviceGetTotalEnergyConsumption(device, &field->value.ullVal);
    case NVML_FI_DEV_POWER_INSTANT:
        return read_uint(nvmlDeviceGetPowerUsage, device, field);
    case NVML_FI_DEV_POWER_DEFAULT_LIMIT:
    case NVML_FI_DEV_POWER_CURRENT_LIMIT:
    case NVML_FI_DEV_POWER_REQUESTED_LIMIT:
        return read_uint(nvmlDeviceGetEnforcedPowerLimit, device, field);
    case NVML_FI_DEV_POWER_MIN_LIMIT:
        field->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
        return nvmlDeviceGetPowerManagementLimitConstraints(device, &field->value.uiVal, &high_mw);
    case NVML_FI_DEV_POWER_MAX_LIMIT:
        field->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
        return nvmlDeviceGetPowerManagementLimitConstraints(device, &low_mw, &field->value.uiVal);
    }
    return NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *fields) {
    nvmlReturn_t result = nvml_check(device, fields);
    if (result != NVML_SUCCESS)
        return result;
    if (count < 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < count; i++) {
        fields[i].timestamp = (long long)nvml_stamp_us(simgpu_now());
        fields[i].latencyUsec = 0;
        fields[i].value.ullVal = 0;
        fields[i].nvmlReturn = read_field(device, &fields[i]);
    }
    return NVML_SUCCESS;
}
