#include "nvml_kinds.h"

#include <string.h>

#define MIB (1024ULL * 1024ULL)

/* Sample periods: NVML's documentation gives a range, 1/6 s to 1 s, and no figure per product; the
 * oldest kind has the longest here, so that both ends of the range are met.
 * PCI ids: the public PCI ID database. Idle clocks, limits and temperatures: what `nvidia-smi -q`
 * shows for an idle board. Cores and engines: the whitepapers of Turing, Ampere and Hopper. */
static const struct nvml_kind kinds[] = {
    {
        .name = "T4",
        .sample_ns = 1000000000,
        .brand = NVML_BRAND_TESLA,
        .architecture = 6,
        .pci_device_id = 0x1EB810DE,
        .pci_subsystem_id = 0x12A210DE,
        .pcie_generation = 3,
        .cores_per_sm = 64,
        .idle_sm_mhz = 300,
        .idle_memory_mhz = 405,
        .idle_pstate = 8,
        .shutdown_c = 96,
        .gpu_max_c = 85,
        .memory_max_c = 0,
        .min_limit_w = 60,
        .bar1_bytes = 256 * MIB,
        .copy_engines = 3,
        .decoders = 2,
        .jpegs = 0,
        .ofas = 0,
        .mig = false,
    },
    {
        .name = "A100",
        .sample_ns = 500000000,
        .brand = NVML_BRAND_NVIDIA,
        .architecture = 7,
        .pci_device_id = 0x20B010DE,
        .pci_subsystem_id = 0x134F10DE,
        .pcie_generation = 4,
        .cores_per_sm = 64,
        .idle_sm_mhz = 210,
        .idle_memory_mhz = 1215,
        .idle_pstate = 0,
        .shutdown_c = 92,
        .gpu_max_c = 85,
        .memory_max_c = 95,
        .min_limit_w = 100,
        .bar1_bytes = 65536 * MIB,
        .copy_engines = 7,
        .decoders = 5,
        .jpegs = 1,
        .ofas = 1,
        .mig = true,
    },
    {
        .name = "A100-80G",
        .sample_ns = 500000000,
        .brand = NVML_BRAND_NVIDIA,
        .architecture = 7,
        .pci_device_id = 0x20B210DE,
        .pci_subsystem_id = 0x147F10DE,
        .pcie_generation = 4,
        .cores_per_sm = 64,
        .idle_sm_mhz = 210,
        .idle_memory_mhz = 1593,
        .idle_pstate = 0,
        .shutdown_c = 92,
        .gpu_max_c = 85,
        .memory_max_c = 95,
        .min_limit_w = 100,
        .bar1_bytes = 131072 * MIB,
        .copy_engines = 7,
        .decoders = 5,
        .jpegs = 1,
        .ofas = 1,
        .mig = true,
    },
    {
        .name = "H200",
        .sample_ns = 166666667,
        .brand = NVML_BRAND_NVIDIA,
        .architecture = 9,
        .pci_device_id = 0x233510DE,
        .pci_subsystem_id = 0x18BE10DE,
        .pcie_generation = 5,
        .cores_per_sm = 128,
        .idle_sm_mhz = 345,
        .idle_memory_mhz = 3201,
        .idle_pstate = 0,
        .shutdown_c = 95,
        .gpu_max_c = 87,
        .memory_max_c = 95,
        .min_limit_w = 200,
        .bar1_bytes = 262144 * MIB,
        .copy_engines = 8,
        .decoders = 7,
        .jpegs = 7,
        .ofas = 1,
        .mig = true,
    },
};

const struct nvml_kind *nvml_kind_of(const struct simgpu_kind *kind) {
    for (unsigned i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (strcmp(kinds[i].name, kind->name) == 0)
            return &kinds[i];
    return NULL;
}
