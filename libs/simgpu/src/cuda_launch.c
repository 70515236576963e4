/* Launches: from a grid and parameters to work of the model. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_graph.h"

/* A kernel that declares nothing: this long for each wave of blocks, and this much bandwidth. */
static const double default_wave_ns = 10000;
static const double default_bandwidth = 0.3;

unsigned blocks_per_sm(const struct simgpu_kind *kind, unsigned threads) {
    unsigned warps = (threads + 31) / 32;
    unsigned fit = kind->threads_per_sm / (32 * warps);
    return fit < kind->blocks_per_sm ? fit : kind->blocks_per_sm;
}

static double product(const unsigned three[3]) {
    return (double)three[0] * three[1] * three[2];
}

CUresult launch_check(const struct context *context, const struct launch *launch) {
    static const unsigned max_grid[3] = {0x7fffffff, 65535, 65535};
    static const unsigned max_block[3] = {1024, 1024, 64};
    const struct simgpu_kind *kind = &context->gpu->shared.device->kind;
    for (int i = 0; i < 3; i++)
        if (!launch->grid[i] || launch->grid[i] > max_grid[i] || !launch->block[i] ||
            launch->block[i] > max_block[i])
            return CUDA_ERROR_INVALID_VALUE;
    unsigned threads = launch->block[0] * launch->block[1] * launch->block[2];
    if (threads > 1024 || launch->shared_bytes > (unsigned)launch->kernel->max_dynamic_shared ||
        launch->shared_bytes > kind->shared_per_sm_bytes)
        return CUDA_ERROR_INVALID_VALUE;
    if (launch->cooperative &&
        product(launch->grid) > (double)blocks_per_sm(kind, threads) * kind->sm_count)
        return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    return CUDA_SUCCESS;
}

/* --- parameters --- */

static CUresult packed_params(const struct kernel *kernel, void **extra, char *buffer) {
    const char *packed = NULL;
    size_t bytes = 0;
    for (; *extra != CU_LAUNCH_PARAM_END; extra += 2) {
        if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER)
            packed = extra[1];
        else if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE)
            bytes = *(size_t *)extra[1];
        else
            return CUDA_ERROR_INVALID_VALUE;
    }
    if (!packed || bytes < kernel->params_bytes)
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(buffer, packed, kernel->params_bytes);
    return CUDA_SUCCESS;
}

CUresult launch_params(const struct kernel *kernel, void **params, void **extra, char *buffer) {
    if (params && extra)
        return CUDA_ERROR_INVALID_VALUE;
    if (!kernel->param_count)
        return CUDA_SUCCESS;
    if (extra)
        return packed_params(kernel, extra, buffer);
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < kernel->param_count; i++)
        memcpy(buffer + kernel->param_offset[i], params[i], kernel->param_size[i]);
    return CUDA_SUCCESS;
}

static uint64_t param_of(const struct kernel *kernel, const char *params, unsigned index) {
    uint64_t value = 0;
    memcpy(&value, params + kernel->param_offset[index], kernel->param_size[index]);
    return value;
}

/* --- cost --- */

struct shape {
    double grid_share; /* of the SMs that the blocks fill */
    double waves;
    double occupancy; /* of all warps of the device */
};

static struct shape shape_of(const struct simgpu_kind *kind, const struct launch *launch) {
    unsigned threads = launch->block[0] * launch->block[1] * launch->block[2];
    double blocks = product(launch->grid);
    double resident = (double)blocks_per_sm(kind, threads) * kind->sm_count;
    double warps = blocks * ((threads + 31) / 32) * 32;
    return (struct shape){
        .grid_share = fmin(1, blocks / resident),
        .waves = ceil(blocks / resident),
        .occupancy = fmin(1, warps / ((double)kind->threads_per_sm * kind->sm_count)),
    };
}

static double amount_of(const struct amount *amount, const struct kernel *kernel,
                        const char *params, double otherwise) {
    switch (amount->kind) {
    case AMOUNT_CONSTANT:
        return amount->factor;
    case AMOUNT_PARAM:
        return amount->factor * (double)param_of(kernel, params, amount->param);
    default:
        return otherwise;
    }
}

static CUresult work_of(const struct gpu *gpu, const struct launch *launch, const char *params,
                        struct simgpu_work *work) {
    const struct simgpu_kind *kind = &gpu->shared.device->kind;
    const struct kernel *kernel = launch->kernel;
    const struct cost *cost = &kernel->cost;
    struct shape shape = shape_of(kind, launch);
    *work = mark_work();
    work->kind = cost->wait_word.kind == AMOUNT_NONE ? SIMGPU_KERNEL : SIMGPU_WORD_WAIT;
    work->sm_share = amount_of(&cost->sm_pct, kernel, params, 100 * shape.grid_share) / 100;
    work->bandwidth = amount_of(&cost->bandwidth_pct, kernel, params,
                                cost->declared ? 0 : 100 * default_bandwidth) /
                      100;
    work->occupancy = shape.occupancy;
    work->xid = cost->xid;
    if (!(work->sm_share > 0 && work->sm_share <= 1) ||
        !(work->bandwidth >= 0 && work->bandwidth <= 1))
        return CUDA_ERROR_INVALID_VALUE;
    if (!cost->declared)
        work->work_ns = default_wave_ns * shape.waves;
    else if (work->kind == SIMGPU_WORD_WAIT)
        work->work_ns = INFINITY;
    else if (cost->bytes.kind != AMOUNT_NONE)
        work->work_ns =
            amount_of(&cost->bytes, kernel, params, 0) / (kind->bandwidth_gbps * work->bandwidth);
    else
        work->work_ns = amount_of(&cost->duration_ns, kernel, params, 0);
    bool endless = isinf(work->work_ns) && work->kind == SIMGPU_KERNEL;
    return isnan(work->work_ns) || endless ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult launch_submit(struct stream *stream, const struct launch *launch, const char *params) {
    const struct kernel *kernel = launch->kernel;
    struct simgpu_work work;
    CUresult result = work_of(stream->context->gpu, launch, params, &work);
    if (result)
        return result;
    struct effect *effect = NULL;
    if (kernel->cost.count_word.kind != AMOUNT_NONE) {
        effect = effect_new(EFFECT_ADD);
        if (!effect)
            return CUDA_ERROR_OUT_OF_MEMORY;
        effect->address = param_of(kernel, params, kernel->cost.count_word.param);
        effect->value = 1;
    }
    if (work.kind != SIMGPU_WORD_WAIT)
        return submit(stream, work, effect, NULL, NULL);
    struct call wait = {.kind = CALL_WAIT,
                        .address = param_of(kernel, params, kernel->cost.wait_word.param),
                        .value_bytes = 4,
                        .condition = 2, /* any bit */
                        .value = UINT32_MAX};
    return submit(stream, work, effect, &wait, NULL);
}

/* --- calls --- */

static CUresult launch_in(CUstream handle, const struct launch *launch, void **params,
                          void **extra) {
    struct stream *stream;
    char buffer[4096];
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    if (!object_is(OBJECT_KERNEL, launch->kernel))
        return CUDA_ERROR_INVALID_HANDLE;
    result = launch_check(stream->context, launch);
    result = result ? result : launch_params(launch->kernel, params, extra, buffer);
    if (result)
        return result;
    bool captured;
    result = capture_of(stream, &captured);
    if (result)
        return result;
    if (!captured)
        return launch_submit(stream, launch, buffer);
    struct node node = {.type = CU_GRAPH_NODE_TYPE_KERNEL, .launch = *launch, .params = buffer};
    return capture_node(stream, &node);
}

CUDA_API CUresult cuLaunchKernel(CUfunction kernel, unsigned grid_x, unsigned grid_y,
                                 unsigned grid_z, unsigned block_x, unsigned block_y,
                                 unsigned block_z, unsigned shared_bytes, CUstream stream,
                                 void **params, void **extra) {
    struct launch launch = {.kernel = kernel,
                            .grid = {grid_x, grid_y, grid_z},
                            .block = {block_x, block_y, block_z},
                            .shared_bytes = shared_bytes};
    return launch_in(stream, &launch, params, extra);
}

CUDA_API CUresult cuLaunchCooperativeKernel(CUfunction kernel, unsigned grid_x, unsigned grid_y,
                                            unsigned grid_z, unsigned block_x, unsigned block_y,
                                            unsigned block_z, unsigned shared_bytes,
                                            CUstream stream, void **params) {
    struct launch launch = {.kernel = kernel,
                            .grid = {grid_x, grid_y, grid_z},
                            .block = {block_x, block_y, block_z},
                            .shared_bytes = shared_bytes,
                            .cooperative = true};
    return launch_in(stream, &launch, params, NULL);
}

CUDA_API CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction kernel, void **params,
                                   void **extra) {
    if (!config || (config->numAttrs && !config->attrs))
        return CUDA_ERROR_INVALID_VALUE;
    struct launch launch = {.kernel = kernel,
                            .grid = {config->gridDimX, config->gridDimY, config->gridDimZ},
                            .block = {config->blockDimX, config->blockDimY, config->blockDimZ},
                            .shared_bytes = config->sharedMemBytes};
    for (unsigned i = 0; i < config->numAttrs; i++)
        if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE)
            launch.cooperative = config->attrs[i].value.cooperative != 0;
    return launch_in(config->hStream, &launch, params, extra);
}

CUDA_API CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *launches, unsigned count,
                                                       unsigned flags) {
    if (!launches || !count || flags > 3)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_SUCCESS;
    for (unsigned i = 0; i < count && result == CUDA_SUCCESS; i++) {
        const CUDA_LAUNCH_PARAMS *l = &launches[i];
        result = cuLaunchCooperativeKernel(l->function, l->gridDimX, l->gridDimY, l->gridDimZ,
                                           l->blockDimX, l->blockDimY, l->blockDimZ,
                                           l->sharedMemBytes, l->hStream, l->kernelParams);
    }
    return result;
}

/* --- calls from before cuLaunchKernel --- */

static CUresult old_function(CUfunction kernel) {
    CUresult result = enter();
    if (result)
        return result;
    if (!object_is(OBJECT_KERNEL, kernel))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!kernel->params)
        kernel->params = calloc(1, 4096);
    return kernel->params ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUDA_API CUresult cuFuncSetBlockShape(CUfunction kernel, int x, int y, int z) {
    CUresult result = old_function(kernel);
    if (result)
        return result;
    if (x <= 0 || y <= 0 || z <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    kernel->block[0] = (unsigned)x;
    kernel->block[1] = (unsigned)y;
    kernel->block[2] = (unsigned)z;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuFuncSetSharedSize(CUfunction kernel, unsigned bytes) {
    CUresult result = old_function(kernel);
    if (result == CUDA_SUCCESS)
        kernel->shared_bytes = bytes;
    return result;
}

CUDA_API CUresult cuParamSetSize(CUfunction kernel, unsigned bytes) {
    CUresult result = old_function(kernel);
    if (result)
        return result;
    return bytes >= kernel->params_bytes && bytes <= 4096 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUDA_API CUresult cuParamSetv(CUfunction kernel, int offset, void *value, unsigned bytes) {
    CUresult result = old_function(kernel);
    if (result)
        return result;
    if (!value || offset < 0 || bytes > 4096 || (unsigned)offset + bytes > 4096)
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(kernel->params + offset, value, bytes);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuParamSeti(CUfunction kernel, int offset, unsigned value) {
    return cuParamSetv(kernel, offset, &value, sizeof value);
}

CUDA_API CUresult cuParamSetf(CUfunction kernel, int offset, float value) {
    return cuParamSetv(kernel, offset, &value, sizeof value);
}

CUDA_API CUresult cuLaunchGridAsync(CUfunction kernel, int width, int height, CUstream stream) {
    CUresult result = old_function(kernel);
    if (result)
        return result;
    if (width <= 0 || height <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    size_t bytes = kernel->params_bytes;
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, kernel->params, CU_LAUNCH_PARAM_BUFFER_SIZE,
                     &bytes, CU_LAUNCH_PARAM_END};
    return cuLaunchKernel(kernel, (unsigned)width, (unsigned)height, 1, kernel->block[0],
                          kernel->block[1], kernel->block[2], kernel->shared_bytes, stream, NULL,
                          extra);
}

CUDA_API CUresult cuLaunchGrid(CUfunction kernel, int width, int height) {
    return cuLaunchGridAsync(kernel, width, height, NULL);
}

CUDA_API CUresult cuLaunch(CUfunction kernel) {
    return cuLaunchGrid(kernel, 1, 1);
}

/* --- occupancy --- */

static CUresult occupancy(int *blocks, CUfunction kernel, int threads, size_t shared_bytes) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!object_is(OBJECT_KERNEL, kernel))
        return CUDA_ERROR_INVALID_HANDLE;
    const struct simgpu_kind *kind = &context->gpu->shared.device->kind;
    if (!blocks || threads <= 0 || threads > 1024)
        return CUDA_ERROR_INVALID_VALUE;
    unsigned fit = blocks_per_sm(kind, (unsigned)threads);
    if (shared_bytes && kind->shared_per_sm_bytes / shared_bytes < fit)
        fit = (unsigned)(kind->shared_per_sm_bytes / shared_bytes);
    *blocks = (int)fit;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction kernel,
                                                              int threads, size_t shared_bytes) {
    return occupancy(blocks, kernel, threads, shared_bytes);
}

CUDA_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *blocks, CUfunction kernel, int threads, size_t shared_bytes, unsigned flags) {
    return flags > 1 ? CUDA_ERROR_INVALID_VALUE : occupancy(blocks, kernel, threads, shared_bytes);
}

/* The smallest grid and the block with which all threads of the device are in use. */
CUDA_API CUresult cuOccupancyMaxPotentialBlockSizeWithFlags(int *min_grid, int *block,
                                                            CUfunction kernel,
                                                            size_t (*shared_of)(int),
                                                            size_t shared_bytes, int limit,
                                                            unsigned flags) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!min_grid || !block || flags > 1)
        return CUDA_ERROR_INVALID_VALUE;
    int best = 0;
    int top = limit > 0 && limit < 1024 ? limit : 1024;
    for (int threads = top / 32 * 32; threads >= 32; threads -= 32) {
        int blocks;
        result = occupancy(&blocks, kernel, threads, shared_of ? shared_of(threads) : shared_bytes);
        if (result)
            return result;
        if (blocks * threads <= best)
            continue;
        best = blocks * threads;
        *block = threads;
        *min_grid = blocks * (int)context->gpu->shared.device->kind.sm_count;
    }
    return best ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUDA_API CUresult cuOccupancyMaxPotentialBlockSize(int *min_grid, int *block, CUfunction kernel,
                                                   size_t (*shared_of)(int), size_t shared_bytes,
                                                   int limit) {
    return cuOccupancyMaxPotentialBlockSizeWithFlags(min_grid, block, kernel, shared_of,
                                                     shared_bytes, limit, 0);
}

CUDA_API CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t *bytes, CUfunction kernel,
                                                          int blocks, int threads) {
    int fit;
    struct context *context;
    CUresult result = occupancy(&fit, kernel, threads, 0);
    result = result ? result : enter_context(&context);
    if (result)
        return result;
    if (!bytes || blocks <= 0 || blocks > fit)
        return CUDA_ERROR_INVALID_VALUE;
    *bytes = context->gpu->shared.device->kind.shared_per_sm_bytes / (unsigned)blocks;
    return CUDA_SUCCESS;
}
