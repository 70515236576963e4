/* What a launch is known by: a 64-bit number, equal for what should take equally long. 0: nothing
 * that is gated. */
#ifndef XCUDA_WORK_H
#define XCUDA_WORK_H

#include <string.h>

#include "cuda_types.h"

/* Odd factors with bits all over, as in multiplicative hashing. */
#define WORK_FACTOR_1 UINT64_C(0x9e3779b97f4a7c15)
#define WORK_FACTOR_2 UINT64_C(0xd6e8feb86659fd93)
#define WORK_FACTOR_3 (WORK_FACTOR_1 * WORK_FACTOR_2)
#define WORK_FACTOR_Y 0x2c1b3c6d
#define WORK_FACTOR_Z 0x297a2d39

/* On the launch path, where stub.h does the same, hence short: a grid is folded into 32 bits.
 * Estimates are placed by the upper bits of the product. */
static inline uint64_t work_kernel(CUfunction function, unsigned x, unsigned y, unsigned z) {
    uint32_t grid = (z * WORK_FACTOR_Z + y) * WORK_FACTOR_Y + x;
    return ((uint64_t)(uintptr_t)function ^ grid * WORK_FACTOR_2) * WORK_FACTOR_1;
}

static inline uint64_t work_configured(const CUlaunchConfig *config, CUfunction function) {
    return config == NULL
               ? 0
               : work_kernel(function, config->gridDimX, config->gridDimY, config->gridDimZ);
}

/* One grid on several devices is one launch here. */
static inline uint64_t work_listed(const CUDA_LAUNCH_PARAMS *list, unsigned count) {
    return list == NULL || count == 0
               ? 0
               : work_kernel(list->function, list->gridDimX, list->gridDimY, list->gridDimZ);
}

/* Kinds of work without a handle, told from handles by being small. */
enum work_kind { WORK_COPY = 1, WORK_SET = 2, WORK_BATCH = 3 };

static inline uint64_t work_graph(CUgraphExec graph) {
    return ((uint64_t)(uintptr_t)graph * WORK_FACTOR_3) | 1;
}

/* Sizes that differ by less than an eighth are alike: a size counts as its magnitude and the three
 * bits behind the first, which a floating-point number has in one place. */
static inline uint64_t work_sized(enum work_kind kind, size_t bytes) {
    double number = (double)(int64_t)bytes;
    uint64_t bits;
    memcpy(&bits, &number, sizeof bits);
    return (((bits >> 49) * 4 + kind) * WORK_FACTOR_3) | 1;
}

static inline uint64_t work_copy(size_t bytes) {
    return work_sized(WORK_COPY, bytes);
}

static inline uint64_t work_set(size_t bytes) {
    return work_sized(WORK_SET, bytes);
}

static inline uint64_t work_batch(size_t count) {
    return work_sized(WORK_BATCH, count);
}

static inline uint64_t work_copies(const size_t *sizes, size_t count) {
    size_t bytes = 0;
    for (size_t i = 0; sizes != NULL && i < count; i++)
        bytes += sizes[i];
    return work_copy(bytes);
}

/* A copy of which one side is the host's does not run on the device. */
static inline uint64_t work_copy2d(const CUDA_MEMCPY2D *copy) {
    if (copy == NULL || copy->srcMemoryType == CU_MEMORYTYPE_HOST ||
        copy->dstMemoryType == CU_MEMORYTYPE_HOST)
        return 0;
    return work_copy(copy->WidthInBytes * copy->Height);
}

static inline uint64_t work_copy3d(const CUDA_MEMCPY3D *copy) {
    if (copy == NULL || copy->srcMemoryType == CU_MEMORYTYPE_HOST ||
        copy->dstMemoryType == CU_MEMORYTYPE_HOST)
        return 0;
    return work_copy(copy->WidthInBytes * copy->Height * copy->Depth);
}

#endif
