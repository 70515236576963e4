/* Memory: the table of blocks, pools, physical memory, arrays, copies and memsets. */
#ifndef SIMGPU_CUDA_MEMORY_H
#define SIMGPU_CUDA_MEMORY_H

#include "cuda_driver.h"

/* --- memory (cuda_block.c, cuda_memory.c) --- */

enum block_kind {
    BLOCK_DEVICE,
    BLOCK_MANAGED,
    BLOCK_HOST,       /* cuMemHostAlloc */
    BLOCK_REGISTERED, /* cuMemHostRegister */
    BLOCK_RESERVED,   /* cuMemAddressReserve, nothing mapped */
    BLOCK_MAPPED,     /* cuMemMap */
    BLOCK_POOL,
    BLOCK_IMPORTED, /* cuIpcOpenMemHandle */
    BLOCK_GRAPH,    /* an allocation node's */
};

struct block {
    uintptr_t start;
    size_t bytes;
    size_t mapped_bytes; /* of address space */
    enum block_kind kind;
    struct context *context;
    struct gpu *gpu;
    uint64_t charged_bytes; /* of the device's memory */
    uint64_t id;
    unsigned flags;
    int fd; /* of memory that can be shared; -1: none */
    struct pool *pool;
    struct physical *physical; /* what is mapped */
};

bool block_is_on_device(const struct block *block);
/* The block that contains the address; false: none does. */
bool block_find(uintptr_t address, struct block *found);
CUresult block_add(const struct block *block);
bool block_remove(uintptr_t start, struct block *removed);
bool block_update(const struct block *block); /* the one with the same start */
/* Address space for `bytes`, read and written as 0 until it is. */
void *space_take(size_t bytes, size_t alignment);
CUresult memory_take(struct gpu *gpu, uint64_t bytes);
void memory_give(struct gpu *gpu, uint64_t bytes);
void blocks_forget(struct context *context);
/* Memory of the device, charged to this process, entered into the table. */
CUresult device_alloc(struct context *context, size_t bytes, enum block_kind kind,
                      struct block *block);
void device_free(const struct block *block);

/* --- pools (cuda_pool.c) --- */

struct pool {
    struct gpu *gpu;
    bool is_default;
    bool destroyed; /* freed with its last block */
    uint64_t settings[CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES + 1];
    uint64_t release_threshold;
    uint64_t max_bytes;
    uint64_t used, used_high;
    uint64_t reserved, reserved_high;
};

void pool_free(const struct block *block); /* a block that is no longer in the table */

/* --- virtual memory (cuda_vmm.c) --- */

/* What cuMemCreate makes: memory without an address. */
struct physical {
    struct gpu *gpu;
    uint64_t charged_bytes;
    size_t bytes;
    int fd;
    unsigned references; /* the handle and its mappings */
    unsigned handles;
    CUmemAllocationProp properties;
};

void mapping_free(const struct block *block);

/* --- arrays (cuda_array.c) --- */

struct array {
    CUDA_ARRAY3D_DESCRIPTOR descriptor;
    struct block block; /* owned, unless the array is a level of a mipmap */
    bool is_level;
    uintptr_t start;
    size_t pitch, slice;
};

enum { MIPMAP_LEVELS = 16 };

struct mipmap {
    struct array *levels[MIPMAP_LEVELS];
    unsigned level_count;
    struct block block;
};

/* Where an array's bytes are. */
CUresult array_place(CUarray array, char **start, size_t *pitch, size_t *slice);

/* --- copies and memsets (cuda_copy.c, cuda_fill.c) --- */

struct copy {
    enum simgpu_op_kind kind;
    struct region region;
    bool from_pageable, to_pageable;
};

struct fill {
    CUdeviceptr address;
    size_t pitch, width, height; /* width in bytes */
    unsigned value, value_bytes;
};

/* Whether all of it is memory of devices; also across mappings that lie side by side. */
bool is_device_range(CUdeviceptr address, size_t bytes);
CUresult copy_of(const CUDA_MEMCPY3D *params, struct copy *copy);
CUresult copy_submit(struct stream *stream, const struct copy *copy, bool synchronous);
CUresult fill_check(const struct fill *fill);
CUresult fill_submit(struct stream *stream, const struct fill *fill);

#endif
