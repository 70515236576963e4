#include "kinds.h"

#include <string.h>

#define MIB (1024ULL * 1024ULL)

/* Memory as nvidia-smi shows it. PCIe: what pinned copies reach of 16 lanes of generation 3, 4
 * and 5. Context sizes are of the order that nvidia-smi shows for an idle context. */
const struct simgpu_kind simgpu_kinds[] = {
    {
        /* NVIDIA T4 Tensor Core GPU datasheet; Turing architecture whitepaper. */
        .name = "T4",
        .product = "Tesla T4",
        .memory_bytes = 15360 * MIB,
        .reserved_bytes = 445 * MIB,
        .context_bytes = 300 * MIB,
        .sm_count = 40,
        .compute_major = 7,
        .compute_minor = 5,
        .threads_per_sm = 1024,
        .blocks_per_sm = 16,
        .concurrent_kernels = 128,
        .base_mhz = 585,
        .boost_mhz = 1590,
        .memory_mhz = 5001,
        .bandwidth_gbps = 320,
        .pcie_gbps = 12,
        .bus_width_bits = 256,
        .l2_bytes = 4 * MIB,
        .shared_per_sm_bytes = 64 * 1024,
        .idle_w = 10,
        .limit_w = 70,
        .slowdown_c = 93,
        .mps_clients = 48,
        .gpm = 0,
    },
    {
        /* NVIDIA A100 Tensor Core GPU datasheet (SXM, 40 GB); Ampere architecture whitepaper. */
        .name = "A100",
        .product = "NVIDIA A100-SXM4-40GB",
        .memory_bytes = 40960 * MIB,
        .reserved_bytes = 571 * MIB,
        .context_bytes = 420 * MIB,
        .sm_count = 108,
        .compute_major = 8,
        .compute_minor = 0,
        .threads_per_sm = 2048,
        .blocks_per_sm = 32,
        .concurrent_kernels = 128,
        .base_mhz = 1095,
        .boost_mhz = 1410,
        .memory_mhz = 1215,
        .bandwidth_gbps = 1555,
        .pcie_gbps = 25,
        .bus_width_bits = 5120,
        .l2_bytes = 40 * MIB,
        .shared_per_sm_bytes = 164 * 1024,
        .idle_w = 52,
        .limit_w = 400,
        .slowdown_c = 92,
        .mps_clients = 48,
        .gpm = 0,
    },
    {
        /* The same with 80 GB. */
        .name = "A100-80G",
        .product = "NVIDIA A100-SXM4-80GB",
        .memory_bytes = 81920 * MIB,
        .reserved_bytes = 571 * MIB,
        .context_bytes = 420 * MIB,
        .sm_count = 108,
        .compute_major = 8,
        .compute_minor = 0,
        .threads_per_sm = 2048,
        .blocks_per_sm = 32,
        .concurrent_kernels = 128,
        .base_mhz = 1275,
        .boost_mhz = 1410,
        .memory_mhz = 1593,
        .bandwidth_gbps = 2039,
        .pcie_gbps = 25,
        .bus_width_bits = 5120,
        .l2_bytes = 40 * MIB,
        .shared_per_sm_bytes = 164 * 1024,
        .idle_w = 60,
        .limit_w = 400,
        .slowdown_c = 92,
        .mps_clients = 48,
        .gpm = 0,
    },
    {
        /* NVIDIA H200 Tensor Core GPU datasheet (SXM); Hopper architecture whitepaper. */
        .name = "H200",
        .product = "NVIDIA H200",
        .memory_bytes = 143771 * MIB,
        .reserved_bytes = 608 * MIB,
        .context_bytes = 450 * MIB,
        .sm_count = 132,
        .compute_major = 9,
        .compute_minor = 0,
        .threads_per_sm = 2048,
        .blocks_per_sm = 32,
        .concurrent_kernels = 128,
        .base_mhz = 1500,
        .boost_mhz = 1980,
        .memory_mhz = 3201,
        .bandwidth_gbps = 4800,
        .pcie_gbps = 55,
        .bus_width_bits = 6144,
        .l2_bytes = 60 * MIB,
        .shared_per_sm_bytes = 228 * 1024,
        .idle_w = 75,
        .limit_w = 700,
        .slowdown_c = 87,
        .mps_clients = 48,
        .gpm = 1,
    },
};

const uint32_t simgpu_kind_count = sizeof simgpu_kinds / sizeof simgpu_kinds[0];

const struct simgpu_kind *simgpu_kind_find(const char *name) {
    for (uint32_t i = 0; i < simgpu_kind_count; i++)
        if (strcmp(simgpu_kinds[i].name, name) == 0)
            return &simgpu_kinds[i];
    return NULL;
}
