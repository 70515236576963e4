/* Modules, their kernels, and launches. */
#ifndef SIMGPU_CUDA_MODULE_H
#define SIMGPU_CUDA_MODULE_H

#include "cuda_memory.h"

/* --- modules (cuda_ptx.c, cuda_module.c) --- */

enum { KERNEL_PARAMS = 64, KERNEL_NAME = 256 };

enum amount_kind { AMOUNT_NONE, AMOUNT_CONSTANT, AMOUNT_PARAM, AMOUNT_GRID };

struct amount {
    enum amount_kind kind;
    unsigned param;
    double factor;
};

/* What a kernel declares: see the README. */
struct cost {
    bool declared;
    struct amount duration_ns, bytes, sm_pct, bandwidth_pct;
    struct amount wait_word, count_word; /* a parameter: address of a 32-bit word */
    uint32_t xid;
};

struct kernel {
    struct module *module;
    char name[KERNEL_NAME];
    unsigned param_count;
    unsigned param_offset[KERNEL_PARAMS];
    unsigned param_size[KERNEL_PARAMS];
    unsigned params_bytes;
    struct cost cost;
    int max_dynamic_shared;
    int carveout;
    struct kernel *next;
    /* of the calls before cuLaunchKernel */
    unsigned block[3];
    unsigned shared_bytes;
    char *params;
};

struct global {
    char name[KERNEL_NAME];
    size_t bytes;
    struct block block;
    struct global *next;
};

struct module {
    struct context *context; /* NULL: a library */
    struct kernel *kernels;
    struct global *globals;
    unsigned kernel_count;
};

/* Finds entries and global variables of PTX text. An error text of what is wrong is left in `log`.
 */
CUresult ptx_parse(const char *text, struct module *module, char *log, size_t log_bytes);
/* Reads one declaration of cost. Returns NULL, or what is wrong with it (at `wrong_at`; 0: with all
 * of it). */
const char *cost_parse(const char *text, size_t length, const struct kernel *kernel,
                       struct cost *cost, size_t *wrong_at);

/* --- launches (cuda_launch.c) --- */

struct launch {
    struct kernel *kernel;
    unsigned grid[3];
    unsigned block[3];
    unsigned shared_bytes;
    bool cooperative;
};

CUresult launch_check(const struct context *context, const struct launch *launch);
/* The parameters as one buffer of kernel->params_bytes. */
CUresult launch_params(const struct kernel *kernel, void **params, void **extra, char *buffer);
CUresult launch_submit(struct stream *stream, const struct launch *launch, const char *params);
unsigned blocks_per_sm(const struct simgpu_kind *kind, unsigned threads);

#endif
