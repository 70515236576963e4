/* What NVML alone tells of a kind of GPU, beside struct simgpu_kind. */
#ifndef SIMGPU_NVML_KINDS_H
#define SIMGPU_NVML_KINDS_H

#include <stdbool.h>
#include <stdint.h>

#include "kinds.h"
#include "nvml_api.h"

struct nvml_kind {
    const char *name;   /* of struct simgpu_kind */
    uint64_t sample_ns; /* period of utilization samples */
    nvmlBrandType_t brand;
    unsigned architecture;  /* NVML_DEVICE_ARCH_* */
    unsigned pci_device_id; /* device in the upper half, vendor in the lower */
    unsigned pci_subsystem_id;
    unsigned pcie_generation;
    unsigned cores_per_sm;
    unsigned idle_sm_mhz, idle_memory_mhz, idle_pstate;
    unsigned shutdown_c, gpu_max_c;
    unsigned memory_max_c; /* 0: no memory sensor */
    unsigned min_limit_w;
    uint64_t bar1_bytes;
    unsigned copy_engines, decoders, jpegs, ofas;
    bool mig;
};

const struct nvml_kind *nvml_kind_of(const struct simgpu_kind *kind);

#endif
