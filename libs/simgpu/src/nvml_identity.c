/* Which GPUs there are, and what they are: handles, names, places, fixed properties. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "nvml_state.h"

enum { FIRST_BUS = 0x10, PCI_CLASS_DISPLAY = 0x03, PCI_SUBCLASS_3D = 0x02 };

static unsigned pci_bus(nvmlDevice_t device) {
    return FIRST_BUS + device->gpu.device->index;
}

static void format_uuid(nvmlDevice_t device, char text[NVML_UUID_ASCII_LENGTH]) {
    const uint8_t *u = device->gpu.device->uuid;
    snprintf(text, NVML_UUID_ASCII_LENGTH,
             "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1],
             u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14],
             u[15]);
}

/* Thirteen digits, as boards have; taken from the UUID, so that it stays with the board. */
static void format_serial(nvmlDevice_t device, char text[NVML_DEVICE_SERIAL_LENGTH]) {
    uint64_t number;
    memcpy(&number, device->gpu.device->uuid, sizeof number);
    snprintf(text, NVML_DEVICE_SERIAL_LENGTH, "%013llu",
             (unsigned long long)(number % 10000000000000ULL));
}

/* --- Handles --- */

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    if (nvml_initialized() != NVML_SUCCESS)
        return NVML_ERROR_UNINITIALIZED;
    if (count == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = nvml_device_count();
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCount(unsigned int *count) {
    return nvmlDeviceGetCount_v2(count);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    if (nvml_initialized() != NVML_SUCCESS)
        return NVML_ERROR_UNINITIALIZED;
    if (device == NULL || index >= nvml_device_count())
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = nvml_check(nvml_device_at(index), device);
    if (result == NVML_SUCCESS)
        *device = nvml_device_at(index);
    return result;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

static nvmlReturn_t find_device(bool (*is_it)(nvmlDevice_t, const void *), const void *wanted,
                                nvmlDevice_t *device) {
    if (nvml_initialized() != NVML_SUCCESS)
        return NVML_ERROR_UNINITIALIZED;
    if (wanted == NULL || device == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned i = 0; i < nvml_device_count(); i++) {
        nvmlDevice_t candidate = nvml_device_at(i);
        if (!is_it(candidate, wanted))
            continue;
        nvmlReturn_t result = nvml_check(candidate, device);
        if (result == NVML_SUCCESS)
            *device = candidate;
        return result;
    }
    return NVML_ERROR_NOT_FOUND;
}

static bool has_uuid(nvmlDevice_t device, const void *wanted) {
    char text[NVML_UUID_ASCII_LENGTH];
    format_uuid(device, text);
    return strcasecmp(text, wanted) == 0;
}

static bool has_uuid_bytes(nvmlDevice_t device, const void *wanted) {
    return memcmp(device->gpu.device->uuid, wanted, NVML_UUID_BINARY_LENGTH) == 0;
}

static bool has_serial(nvmlDevice_t device, const void *wanted) {
    char text[NVML_DEVICE_SERIAL_LENGTH];
    format_serial(device, text);
    return strcmp(text, wanted) == 0;
}

/* Domain, bus, device; with or without the domain, with or without the function. */
static bool has_bus_id(nvmlDevice_t device, const void *wanted) {
    unsigned domain = 0, bus = 0, slot = 0;
    if (sscanf(wanted, "%x:%x:%x", &domain, &bus, &slot) != 3) {
        domain = 0;
        if (sscanf(wanted, "%x:%x", &bus, &slot) != 2)
            return false;
    }
    return domain == 0 && bus == pci_bus(device) && slot == 0;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    return find_device(has_uuid, uuid, device);
}

nvmlReturn_t nvmlDeviceGetHandleByUUIDV(const nvmlUUID_v1_t *uuid, nvmlDevice_t *device) {
    if (nvml_initialized() != NVML_SUCCESS)
        return NVML_ERROR_UNINITIALIZED;
    if (uuid == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (uuid->version != NVML_STRUCT_VERSION(nvmlUUID_v1_t, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (uuid->type == NVML_UUID_TYPE_ASCII)
        return find_device(has_uuid, uuid->value.str, device);
    if (uuid->type == NVML_UUID_TYPE_BINARY)
        return find_device(has_uuid_bytes, uuid->value.bytes, device);
    return NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device) {
    return find_device(has_serial, serial, device);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device) {
    return find_device(has_bus_id, bus_id, device);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *bus_id, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByPciBusId_v2(bus_id, device);
}

/* --- Names --- */

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
    nvmlReturn_t result = nvml_check(device, name);
    return result != NVML_SUCCESS ? result
                                  : nvml_copy_text(name, length, device->gpu.device->kind.product);
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
    nvmlReturn_t result = nvml_check(device, uuid);
    if (result != NVML_SUCCESS)
        return result;
    char text[NVML_UUID_ASCII_LENGTH];
    format_uuid(device, text);
    return nvml_copy_text(uuid, length, text);
}

nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length) {
    nvmlReturn_t result = nvml_check(device, serial);
    if (result != NVML_SUCCESS)
        return result;
    char text[NVML_DEVICE_SERIAL_LENGTH];
    format_serial(device, text);
    return nvml_copy_text(serial, length, text);
}

/* The place among the devices that NVML sees. */
nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index) {
    nvmlReturn_t result = nvml_check(device, index);
    if (result == NVML_SUCCESS)
        *index = device->index;
    return result;
}

/* The number of the device's file: of /dev/nvidia<minor> there, of device-<minor> here. */
nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor) {
    nvmlReturn_t result = nvml_check(device, minor);
    if (result == NVML_SUCCESS)
        *minor = device->gpu.device->index;
    return result;
}

nvmlReturn_t nvmlDeviceGetBoardId(nvmlDevice_t device, unsigned int *board) {
    nvmlReturn_t result = nvml_check(device, board);
    if (result == NVML_SUCCESS)
        *board = pci_bus(device) << 8;
    return result;
}

nvmlReturn_t nvmlDeviceGetMultiGpuBoard(nvmlDevice_t device, unsigned int *several) {
    nvmlReturn_t result = nvml_check(device, several);
    if (result == NVML_SUCCESS)
        *several = 0;
    return result;
}

nvmlReturn_t nvmlDeviceGetBrand(nvmlDevice_t device, nvmlBrandType_t *brand) {
    nvmlReturn_t result = nvml_check(device, brand);
    if (result == NVML_SUCCESS)
        *brand = device->kind->brand;
    return result;
}

/* --- PCI --- */

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    nvmlReturn_t result = nvml_check(device, pci);
    if (result != NVML_SUCCESS)
        return result;
    memset(pci, 0, sizeof *pci);
    pci->bus = pci_bus(device);
    pci->pciDeviceId = device->kind->pci_device_id;
    pci->pciSubSystemId = device->kind->pci_subsystem_id;
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", 0u, pci->bus, 0u);
    snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.0", 0u, pci->bus, 0u);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfoExt(nvmlDevice_t device, nvmlPciInfoExt_v1_t *pci) {
    nvmlReturn_t result = nvml_check(device, pci);
    if (result != NVML_SUCCESS)
        return result;
    if (pci->version != NVML_STRUCT_VERSION(nvmlPciInfoExt_v1_t, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    pci->domain = 0;
    pci->bus = pci_bus(device);
    pci->device = 0;
    pci->pciDeviceId = device->kind->pci_device_id;
    pci->pciSubSystemId = device->kind->pci_subsystem_id;
    pci->baseClass = PCI_CLASS_DISPLAY;
    pci->subClass = PCI_SUBCLASS_3D;
    snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.0", 0u, pci->bus, 0u);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetBusType(nvmlDevice_t device, unsigned int *type) {
    nvmlReturn_t result = nvml_check(device, type);
    if (result == NVML_SUCCESS)
        *type = NVML_BUS_TYPE_PCIE;
    return result;
}

static nvmlReturn_t pcie_generation(nvmlDevice_t device, unsigned int *generation) {
    nvmlReturn_t result = nvml_check(device, generation);
    if (result == NVML_SUCCESS)
        *generation = device->kind->pcie_generation;
    return result;
}

nvmlReturn_t nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t device, unsigned int *generation) {
    return pcie_generation(device, generation);
}

nvmlReturn_t nvmlDeviceGetGpuMaxPcieLinkGeneration(nvmlDevice_t device, unsigned int *generation) {
    return pcie_generation(device, generation);
}

nvmlReturn_t nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t device, unsigned int *generation) {
    return pcie_generation(device, generation);
}

nvmlReturn_t nvmlDeviceGetPcieReplayCounter(nvmlDevice_t device, unsigned int *replays) {
    nvmlReturn_t result = nvml_check(device, replays);
    if (result == NVML_SUCCESS)
        *replays = 0;
    return result;
}

static nvmlReturn_t pcie_width(nvmlDevice_t device, unsigned int *lanes) {
    nvmlReturn_t result = nvml_check(device, lanes);
    if (result == NVML_SUCCESS)
        *lanes = 16;
    return result;
}

nvmlReturn_t nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t device, unsigned int *lanes) {
    return pcie_width(device, lanes);
}

nvmlReturn_t nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t device, unsigned int *lanes) {
    return pcie_width(device, lanes);
}

/* --- What it is made of --- */

nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, unsigned int *architecture) {
    nvmlReturn_t result = nvml_check(device, architecture);
    if (result == NVML_SUCCESS)
        *architecture = device->kind->architecture;
    return result;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    nvmlReturn_t result = nvml_check(device, major);
    if (result != NVML_SUCCESS)
        return result;
    if (minor == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *major = (int)device->gpu.device->kind.compute_major;
    *minor = (int)device->gpu.device->kind.compute_minor;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNumGpuCores(nvmlDevice_t device, unsigned int *cores) {
    nvmlReturn_t result = nvml_check(device, cores);
    if (result == NVML_SUCCESS)
        *cores = device->gpu.device->kind.sm_count * device->kind->cores_per_sm;
    return result;
}

nvmlReturn_t nvmlDeviceGetMemoryBusWidth(nvmlDevice_t device, unsigned int *bits) {
    nvmlReturn_t result = nvml_check(device, bits);
    if (result == NVML_SUCCESS)
        *bits = device->gpu.device->kind.bus_width_bits;
    return result;
}

/* Of whole GPUs only where MIG exists, as NVML has it. */
nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) {
    nvmlReturn_t result = nvml_check(device, attributes);
    if (result != NVML_SUCCESS)
        return result;
    if (!device->kind->mig)
        return NVML_ERROR_NOT_SUPPORTED;
    *attributes = (nvmlDeviceAttributes_t){
        .multiprocessorCount = device->gpu.device->kind.sm_count,
        .sharedCopyEngineCount = device->kind->copy_engines,
        .sharedDecoderCount = device->kind->decoders,
        .sharedJpegCount = device->kind->jpegs,
        .sharedOfaCount = device->kind->ofas,
        .memorySizeMB = device->gpu.device->kind.memory_bytes >> 20,
    };
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetAttributes(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) {
    return nvmlDeviceGetAttributes_v2(device, attributes);
}

/* --- Modes: what a fresh installation has --- */

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current,
                                  unsigned int *pending) {
    nvmlReturn_t result = nvml_check(device, current);
    if (result != NVML_SUCCESS)
        return result;
    if (pending == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!device->kind->mig)
        return NVML_ERROR_NOT_SUPPORTED;
    *current = *pending = NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is_mig) {
    nvmlReturn_t result = nvml_check_handle(device, is_mig);
    if (result == NVML_SUCCESS)
        *is_mig = 0;
    return result;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count) {
    nvmlReturn_t result = nvml_check(device, count);
    if (result == NVML_SUCCESS)
        *count = 0;
    return result;
}

nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, nvmlComputeMode_t *mode) {
    nvmlReturn_t result = nvml_check(device, mode);
    if (result == NVML_SUCCESS)
        *mode = NVML_COMPUTEMODE_DEFAULT;
    return result;
}

nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t *mode) {
    nvmlReturn_t result = nvml_check(device, mode);
    if (result == NVML_SUCCESS)
        *mode = NVML_FEATURE_ENABLED;
    return result;
}

static nvmlReturn_t no_display(nvmlDevice_t device, nvmlEnableState_t *state) {
    nvmlReturn_t result = nvml_check(device, state);
    if (result == NVML_SUCCESS)
        *state = NVML_FEATURE_DISABLED;
    return result;
}

nvmlReturn_t nvmlDeviceGetDisplayMode(nvmlDevice_t device, nvmlEnableState_t *state) {
    return no_display(device, state);
}

nvmlReturn_t nvmlDeviceGetDisplayActive(nvmlDevice_t device, nvmlEnableState_t *state) {
    return no_display(device, state);
}
