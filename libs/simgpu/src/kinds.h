/* The kinds of GPU that can be simulated, from public figures. */
#ifndef SIMGPU_KINDS_H
#define SIMGPU_KINDS_H

#include <stdint.h>

struct simgpu_kind {
    char name[16];    /* as in configurations: "T4" */
    char product[48]; /* as the driver names it: "Tesla T4" */
    uint64_t memory_bytes;
    uint64_t reserved_bytes; /* taken by the driver: not free on an idle device */
    uint64_t context_bytes;  /* taken by each context */
    uint32_t sm_count;
    uint32_t compute_major, compute_minor;
    uint32_t threads_per_sm, blocks_per_sm;
    uint32_t concurrent_kernels;
    uint32_t base_mhz, boost_mhz, memory_mhz;
    uint32_t bandwidth_gbps; /* device memory, 10^9 bytes/s */
    uint32_t pcie_gbps;      /* one direction, 10^9 bytes/s, as copies reach it */
    uint32_t bus_width_bits;
    uint32_t l2_bytes;
    uint32_t shared_per_sm_bytes;
    uint32_t idle_w, limit_w;
    uint32_t slowdown_c;
    uint32_t mps_clients;
    uint32_t gpm; /* 1: NVML gives GPM metrics */
};

extern const struct simgpu_kind simgpu_kinds[];
extern const uint32_t simgpu_kind_count;

const struct simgpu_kind *simgpu_kind_find(const char *name); /* NULL: unknown */

#endif
