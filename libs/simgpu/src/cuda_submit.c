/* Entering work into streams, waiting for it, and what its end does to memory and to the program.
 *
 * Effects: a copy moves its bytes when the model has ended it. Whoever sees an end in this process
 * first applies the effects of everything that ended before, in the order of the ends; so no call
 * tells of an end whose effect is not there. For a program that only looks at memory, a helper
 * thread applies effects within HELPER_EFFECTS_NS. The same thread calls host functions, and looks
 * at the words that operations wait for.
 */
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda_memory.h"

enum {
    HELPER_EFFECTS_NS = 2 * 1000 * 1000,
    HELPER_WORD_NS = 50 * 1000,   /* between looks at a word that an operation waits for ... */
    HELPER_WORD_MAX_NS = 1000000, /* ... growing to this */
    PEERS_CHECK_NS = 2 * 1000 * 1000,
    SHORT_WAIT_NS = 5 * 1000,   /* not worth going to sleep for */
    FULL_QUEUE_NS = 100 * 1000, /* between looks of a launch that waits for room */
    COLLECTED = 64,
};

/* --- effects --- */

struct effect *effect_new(enum effect_kind kind) {
    struct effect *effect = calloc(1, sizeof *effect);
    if (effect)
        effect->kind = kind;
    return effect;
}

static void run_copy(const struct region *r) {
    for (size_t z = 0; z < r->depth; z++)
        for (size_t y = 0; y < r->height; y++)
            memmove(r->to + z * r->to_slice + y * r->to_pitch,
                    r->from + z * r->from_slice + y * r->from_pitch, r->width);
}

/* Zeroes, without touching pages that have never been touched. */
static void zero(char *to, size_t bytes) {
    const size_t page = 4096;
    enum { WORTH_A_CALL = 1 << 20 };
    char *first = (char *)(((uintptr_t)to + page - 1) & ~(page - 1));
    char *end = (char *)(((uintptr_t)to + bytes) & ~(page - 1));
    struct block block;
    bool private_pages =
        block_find((uintptr_t)to, &block) && block_is_on_device(&block) && block.fd < 0;
    if (bytes < WORTH_A_CALL || !private_pages ||
        madvise(first, (size_t)(end - first), MADV_DONTNEED) != 0) {
        memset(to, 0, bytes);
        return;
    }
    memset(to, 0, (size_t)(first - to));
    memset(end, 0, (size_t)(to + bytes - end));
}

static void fill_row(char *to, size_t bytes, unsigned value_bytes, uint64_t value) {
    if (value == 0) {
        zero(to, bytes);
        return;
    }
    if (value_bytes == 1) {
        memset(to, (int)value, bytes);
        return;
    }
    for (size_t i = 0; i + value_bytes <= bytes; i += value_bytes)
        memcpy(to + i, &value, value_bytes);
}

static void run_fill(const struct effect *effect) {
    const struct region *r = &effect->region;
    for (size_t y = 0; y < r->height; y++)
        fill_row(r->to + y * r->to_pitch, r->width, effect->value_bytes, effect->value);
}

void effect_run(const struct effect *effect) {
    struct block block;
    switch (effect->kind) {
    case EFFECT_COPY:
        run_copy(&effect->region);
        break;
    case EFFECT_FILL:
        run_fill(effect);
        break;
    case EFFECT_STORE:
        if (effect->value_bytes == 8)
            atomic_store((_Atomic uint64_t *)effect->address, effect->value);
        else
            atomic_store((_Atomic uint32_t *)effect->address, (uint32_t)effect->value);
        break;
    case EFFECT_ADD:
        atomic_fetch_add((_Atomic uint32_t *)effect->address, (uint32_t)effect->value);
        break;
    case EFFECT_FREE:
        if (block_remove(effect->address, &block))
            device_free(&block);
        break;
    }
}

static void effect_end(struct effect *effect) {
    effect_run(effect);
    free(effect->owned);
    free(effect);
}

void apply_effects(struct gpu *gpu) {
    if (atomic_load(&gpu->effects_pending) == 0)
        return;
    pthread_mutex_lock(&gpu->effects_lock);
    uint32_t count;
    do {
        uint64_t tokens[COLLECTED];
        count = 0;
        if (gpu_lock(gpu) != CUDA_SUCCESS)
            break; /* the work is lost, and its effects with it */
        while (count < COLLECTED && simgpu_collect(gpu->shared.device, gpu->client, &tokens[count]))
            count++;
        gpu_unlock(gpu);
        for (uint32_t i = 0; i < count; i++)
            effect_end((struct effect *)(uintptr_t)tokens[i]); /* NOLINT: a pointer of ours */
        atomic_fetch_sub(&gpu->effects_pending, count);
    } while (count == COLLECTED);
    pthread_mutex_unlock(&gpu->effects_lock);
}

/* --- the helper: host functions and words --- */

static bool condition_holds(const struct call *call) {
    uint64_t is = call->value_bytes == 8 ? atomic_load((_Atomic uint64_t *)call->address)
                                         : atomic_load((_Atomic uint32_t *)call->address);
    bool wide = call->value_bytes == 8;
    switch (call->condition) {
    case 0:
        return wide ? (int64_t)(is - call->value) >= 0
                    : (int32_t)((uint32_t)is - (uint32_t)call->value) >= 0;
    case 1:
        return is == call->value;
    case 2:
        return (is & call->value) != 0;
    default:
        return ~(is | call->value) != 0;
    }
}

/* The first call whose turn it is, taken out of the list; or when to look again. The device is
 * locked. */
static struct call *take_due_call(struct gpu *gpu, uint64_t now_ns, uint64_t *until_ns,
                                  uint64_t word_ns) {
    struct simgpu_device *device = gpu->shared.device;
    pthread_mutex_lock(&gpu->calls_lock);
    struct call *previous = NULL;
    struct call *call = gpu->first_call;
    for (; call; previous = call, call = call->next) {
        const struct simgpu_op *op = &device->ops[call->op];
        bool running = op->id == call->op_id && op->state == SIMGPU_OP_RUNNING;
        bool waiting = op->id == call->op_id && op->state == SIMGPU_OP_QUEUED;
        if ((running && (call->kind != CALL_WAIT || condition_holds(call))) ||
            (!running && !waiting)) /* cancelled: a fault came before it */
            break;
        uint64_t look_ns = now_ns + word_ns;
        if (waiting) {
            look_ns = simgpu_predict(device, call->stream_slot, call->sequence - 1);
            if (look_ns <= now_ns)
                look_ns = device->next_event_ns;
        }
        *until_ns = look_ns < *until_ns ? look_ns : *until_ns;
    }
    if (call) {
        *(previous ? &previous->next : &gpu->first_call) = call->next;
        if (gpu->last_call == call)
            gpu->last_call = previous;
    }
    pthread_mutex_unlock(&gpu->calls_lock);
    return call;
}

static void call_program(const struct call *call) {
    struct thread *thread = this_thread();
    thread->in_callback = true;
    if (call->kind == CALL_FUNCTION)
        call->function(call->user_data);
    else
        call->callback(call->stream, CUDA_SUCCESS, call->user_data);
    thread->in_callback = false;
}

static void end_call(struct gpu *gpu, struct call *call) {
    struct simgpu_device *device = gpu->shared.device;
    simgpu_lock(&gpu->shared);
    bool alive =
        device->ops[call->op].id == call->op_id && device->ops[call->op].state == SIMGPU_OP_RUNNING;
    simgpu_unlock(&gpu->shared);
    if (alive && call->kind != CALL_WAIT) {
        apply_effects(gpu); /* of what ended before it */
        call_program(call);
    }
    simgpu_lock(&gpu->shared);
    if (driver.state == DRIVER_READY)
        simgpu_complete(device, call->op, call->op_id);
    simgpu_unlock(&gpu->shared);
    free(call);
}

static void *help(void *argument) {
    struct gpu *gpu = argument;
    struct simgpu_device *device = gpu->shared.device;
    uint64_t word_ns = HELPER_WORD_NS;
    for (;;) {
        uint64_t until_ns = SIMGPU_NEVER;
        uint64_t now_ns = simgpu_lock(&gpu->shared);
        if (driver.state != DRIVER_READY) {
            simgpu_unlock(&gpu->shared);
            return NULL;
        }
        struct call *call = take_due_call(gpu, now_ns, &until_ns, word_ns);
        if (atomic_load(&gpu->effects_pending) && until_ns > now_ns + HELPER_EFFECTS_NS)
            until_ns = now_ns + HELPER_EFFECTS_NS;
        uint32_t seen = device->signal;
        atomic_store(&gpu->helper_until_ns, until_ns);
        simgpu_unlock(&gpu->shared);
        apply_effects(gpu);
        if (call) {
            end_call(gpu, call);
            word_ns = HELPER_WORD_NS;
            continue;
        }
        simgpu_wait(device, seen, until_ns);
        word_ns = word_ns * 2 < HELPER_WORD_MAX_NS ? word_ns * 2 : HELPER_WORD_MAX_NS;
    }
}

/* Makes the helper look by `until_ns` at the latest. The device is locked. */
static void want_helper(struct gpu *gpu, uint64_t until_ns) {
    uint64_t helper_until_ns = atomic_load(&gpu->helper_until_ns);
    if (helper_until_ns == 0) {
        atomic_store(&gpu->helper_until_ns, SIMGPU_NEVER);
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        sigset_t all;
        sigset_t before;
        sigfillset(&all); /* signals are the program's own threads' */
        pthread_sigmask(SIG_SETMASK, &all, &before);
        pthread_t thread;
        pthread_create(&thread, &attributes, help, gpu);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attributes);
        return;
    }
    if (helper_until_ns > until_ns)
        simgpu_signal(gpu->shared.device);
}

static void add_call(struct gpu *gpu, const struct call *call, uint32_t op) {
    struct simgpu_device *device = gpu->shared.device;
    struct call *added = malloc(sizeof *added);
    if (!added)
        abort(); /* the operation is in its stream already and would never end */
    *added = *call;
    added->op = op;
    added->op_id = device->ops[op].id;
    added->stream_slot = device->ops[op].stream;
    added->sequence = device->ops[op].sequence;
    added->next = NULL;
    pthread_mutex_lock(&gpu->calls_lock);
    *(gpu->last_call ? &gpu->last_call->next : &gpu->first_call) = added;
    gpu->last_call = added;
    pthread_mutex_unlock(&gpu->calls_lock);
    want_helper(gpu, 0);
}

/* --- submitting --- */

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
    for (uint32_t i = 0; i < SIMGPU_CLIENTS; i++)
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
