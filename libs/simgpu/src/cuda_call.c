/* The helper: a thread, one for each device, that calls host functions when their turn has come,
 * looks at the words that operations wait for, and applies effects for programs that make no calls.
 */
#include <signal.h>
#include <stdlib.h>

#include "cuda_memory.h"

enum {
    HELPER_WORD_NS = 50 * 1000,   /* between looks at a word that an operation waits for ... */
    HELPER_WORD_MAX_NS = 1000000, /* ... growing to this */
};

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

void want_helper(struct gpu *gpu, uint64_t until_ns) {
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

void add_call(struct gpu *gpu, const struct call *call, uint32_t op) {
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
