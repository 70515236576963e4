/* Entering work into streams, and waiting for it. */
#include <math.h>
#include <stdlib.h>

#include "cuda_memory.h"

enum {
    PEERS_CHECK_NS = 2 * 1000 * 1000,
    SHORT_WAIT_NS = 5 * 1000,   /* not worth going to sleep for */
    FULL_QUEUE_NS = 500 * 1000, /* least time between looks of a launch that waits for room */
};

struct simgpu_work mark_work(void) {
    return (struct simgpu_work){
        .kind = SIMGPU_MARK, .wait_stream = SIMGPU_NONE, .event = SIMGPU_NONE};
}

struct simgpu_work endless_work(enum simgpu_op_kind kind) {
    struct simgpu_work work = mark_work();
    work.kind = kind;
    work.work_ns = INFINITY;
    return work;
}

CUresult submit(struct stream *stream, struct simgpu_work work, struct effect *effect,
                const struct call *call, uint64_t *sequence) {
    struct gpu *gpu = stream->context->gpu;
    struct simgpu_device *device = gpu->shared.device;
    work.effect = effect != NULL;
    work.token = (uintptr_t)effect;
    CUresult result = gpu_lock(gpu);
    int op = -1;
    while (result == CUDA_SUCCESS) {
        op = simgpu_enqueue(device, stream->slot, &work);
        if (op >= 0)
            break;
        uint64_t look_ns = device->now_ns + FULL_QUEUE_NS;
        if (device->next_event_ns > look_ns)
            look_ns = device->next_event_ns;
        if (look_ns > device->now_ns + PEERS_CHECK_NS)
            look_ns = device->now_ns + PEERS_CHECK_NS;
        uint32_t seen = device->signal;
        gpu_unlock(gpu);
        simgpu_wait(device, seen, look_ns);
        apply_effects(gpu); /* ended operations keep their slots until then */
        result = gpu_lock(gpu);
    }
    if (result) {
        if (effect)
            free(effect->owned);
        free(effect);
        return result;
    }
    if (sequence)
        *sequence = device->streams[stream->slot].enqueued;
    if (call)
        add_call(gpu, call, (uint32_t)op);
    if (effect) {
        atomic_fetch_add(&gpu->effects_pending, 1);
        want_helper(gpu, device->now_ns + HELPER_EFFECTS_NS);
    }
    gpu_unlock(gpu);
    return CUDA_SUCCESS;
}

/* --- waiting --- */

static bool peers_work(const struct gpu *gpu) {
    const struct simgpu_device *device = gpu->shared.device;
    for (uint32_t i = 0; i < device->clients_touched; i++)
        if (i != gpu->client && device->clients[i].state == SIMGPU_CLIENT_USED &&
            device->clients[i].unfinished)
            return true;
    return false;
}

CUresult wait_stream(struct gpu *gpu, uint32_t stream, uint64_t sequence) {
    struct simgpu_device *device = gpu->shared.device;
    CUresult result = gpu_lock(gpu);
    while (result == CUDA_SUCCESS && device->streams[stream].completed < sequence) {
        uint64_t until_ns = simgpu_predict(device, stream, sequence);
        /* The death of a peer changes the prediction, and only a look finds it. */
        if (until_ns > device->now_ns + PEERS_CHECK_NS && peers_work(gpu))
            until_ns = device->now_ns + PEERS_CHECK_NS;
        bool is_short = until_ns < device->now_ns + SHORT_WAIT_NS;
        uint32_t seen = device->signal;
        gpu_unlock(gpu);
        if (!is_short)
            simgpu_wait(device, seen, until_ns);
        result = gpu_lock(gpu);
    }
    if (result)
        return result;
    gpu_unlock(gpu);
    apply_effects(gpu);
    return CUDA_SUCCESS;
}

/* A stream of the context with work up to the operation `newest`, and how far that goes. */
static bool find_busy(const struct context *context, uint64_t newest, uint32_t *stream,
                      uint64_t *sequence) {
    const struct simgpu_device *device = context->gpu->shared.device;
    for (uint32_t i = 0; i < device->lane_count; i++) {
        const struct simgpu_lane *lane = &device->lanes[i];
        if (lane->context != context->slot || device->ops[lane->op].id > newest)
            continue;
        *stream = lane->stream;
        for (uint32_t op = lane->op; op != SIMGPU_NONE && device->ops[op].id <= newest;
             op = device->ops[op].next)
            *sequence = device->ops[op].sequence;
        return true;
    }
    return false;
}

CUresult wait_context(struct context *context) {
    struct gpu *gpu = context->gpu;
    CUresult result = gpu_lock(gpu);
    if (result)
        return result;
    /* What is enqueued from now on is not waited for. */
    uint64_t newest = gpu->shared.device->next_id;
    uint32_t stream;
    uint64_t sequence = 0;
    while (find_busy(context, newest, &stream, &sequence)) {
        gpu_unlock(gpu);
        result = wait_stream(gpu, stream, sequence);
        result = result ? result : gpu_lock(gpu);
        if (result)
            return result;
    }
    gpu_unlock(gpu);
    apply_effects(gpu);
    return CUDA_SUCCESS;
}

CUresult query_stream(struct gpu *gpu, uint32_t stream, uint64_t sequence) {
    CUresult result = gpu_lock(gpu);
    if (result)
        return result;
    bool ended = gpu->shared.device->streams[stream].completed >= sequence;
    gpu_unlock(gpu);
    if (!ended)
        return CUDA_ERROR_NOT_READY;
    apply_effects(gpu);
    return CUDA_SUCCESS;
}
