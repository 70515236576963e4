/* Slots of contexts, streams, events and operations; entering and leaving queues; memory. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "model.h"

uint32_t simgpu_group(const struct simgpu_device *device, uint32_t context) {
    uint32_t mps = device->clients[device->contexts[context].client].mps;
    return mps == SIMGPU_NONE ? context : SIMGPU_CONTEXTS + mps;
}

/* --- memory --- */

uint64_t simgpu_memory_free(const struct simgpu_device *device) {
    return device->kind.memory_bytes - device->kind.reserved_bytes - device->memory_used_bytes;
}

bool simgpu_memory_take(struct simgpu_device *device, uint32_t client, uint64_t bytes) {
    struct simgpu_client *c = &device->clients[client];
    if (bytes > simgpu_memory_free(device))
        return false;
    if (c->memory_limit_bytes && c->memory_bytes + bytes > c->memory_limit_bytes)
        return false;
    c->memory_bytes += bytes;
    device->memory_used_bytes += bytes;
    return true;
}

void simgpu_memory_give(struct simgpu_device *device, uint32_t client, uint64_t bytes) {
    device->clients[client].memory_bytes -= bytes;
    device->memory_used_bytes -= bytes;
}

/* --- streams --- */

int simgpu_stream_create(struct simgpu_device *device, uint32_t context, uint32_t flags,
                         int32_t priority) {
    uint32_t slot = 0;
    while (slot < device->streams_touched && device->streams[slot].state != SIMGPU_FREE)
        slot++;
    if (slot == SIMGPU_STREAMS)
        return -ENOSPC;
    if (slot == device->streams_touched)
        device->streams_touched = slot + 1;
    struct simgpu_stream *stream = &device->streams[slot];
    stream->context = context;
    stream->context_id = device->contexts[context].id;
    stream->flags = flags;
    stream->priority = priority;
    stream->enqueued = stream->completed;
    stream->backlog_ns = 0;
    stream->last = SIMGPU_NONE;
    stream->lane = SIMGPU_NONE;
    stream->closing = 0;
    stream->state = SIMGPU_USED;
    return (int)slot;
}

void simgpu_stream_destroy(struct simgpu_device *device, uint32_t stream) {
    struct simgpu_stream *s = &device->streams[stream];
    s->closing = 1;
    if (s->completed == s->enqueued)
        s->state = SIMGPU_FREE;
}

/* --- contexts --- */

int simgpu_context_create(struct simgpu_device *device, uint32_t client, double thread_share,
                          uint64_t bytes) {
    uint32_t slot = 0;
    while (slot < SIMGPU_CONTEXTS && device->contexts[slot].state != SIMGPU_FREE)
        slot++;
    if (slot == SIMGPU_CONTEXTS)
        return -ENOSPC;
    if (bytes > simgpu_memory_free(device))
        return -ENOMEM;
    struct simgpu_context *context = &device->contexts[slot];
    context->client = client;
    context->id = ++device->next_id;
    context->thread_share = thread_share;
    context->bytes = bytes;
    context->queued = 0;
    context->legacy = SIMGPU_NONE;
    context->state = SIMGPU_USED;
    device->clients[client].context_bytes += bytes;
    device->clients[client].thread_share = thread_share;
    device->memory_used_bytes += bytes;
    int legacy = simgpu_stream_create(device, slot, SIMGPU_STREAM_LEGACY, 0);
    if (legacy < 0) {
        simgpu_context_destroy(device, slot);
        return legacy;
    }
    context->legacy = (uint32_t)legacy;
    return (int)slot;
}

void simgpu_context_destroy(struct simgpu_device *device, uint32_t slot) {
    struct simgpu_context *context = &device->contexts[slot];
    simgpu_cancel(device, slot);
    for (uint32_t i = 0; i < device->streams_touched; i++)
        if (device->streams[i].state == SIMGPU_USED && device->streams[i].context == slot)
            device->streams[i].state = SIMGPU_FREE;
    device->clients[context->client].context_bytes -= context->bytes;
    context->state = SIMGPU_FREE;
    device->memory_used_bytes -= context->bytes;
}

/* --- events --- */

int simgpu_event_create(struct simgpu_device *device, uint32_t client) {
    uint32_t slot = device->events_free;
    if (slot != SIMGPU_NONE) {
        device->events_free = device->events[slot].next;
    } else {
        slot = device->events_touched;
        if (slot == SIMGPU_EVENTS)
            return -ENOSPC;
        device->events_touched = slot + 1;
    }
    struct simgpu_event *event = &device->events[slot];
    event->client = client;
    event->client_id = device->clients[client].id;
    event->id = ++device->next_id;
    event->stream = SIMGPU_NONE;
    event->sequence = 0;
    event->time_ns = 0;
    event->state = SIMGPU_USED;
    return (int)slot;
}

void simgpu_event_destroy(struct simgpu_device *device, uint32_t slot) {
    struct simgpu_event *event = &device->events[slot];
    event->state = SIMGPU_FREE;
    event->next = device->events_free;
    device->events_free = slot;
}

/* --- operations --- */

static uint32_t take_op(struct simgpu_device *device) {
    uint32_t slot = device->ops_free;
    if (slot != SIMGPU_NONE) {
        device->ops_free = device->ops[slot].next;
        return slot;
    }
    slot = device->ops_touched;
    if (slot == SIMGPU_OPS)
        return SIMGPU_NONE;
    device->ops_touched = slot + 1;
    return slot;
}

static void free_op(struct simgpu_device *device, uint32_t slot) {
    struct simgpu_op *op = &device->ops[slot];
    atomic_store_explicit(&op->state, SIMGPU_OP_FREE, memory_order_release);
    op->next = device->ops_free;
    device->ops_free = slot;
}

/* The least time that the operation takes: all of its context's SMs, boost clock. */
static double least_ns(const struct simgpu_op *op, double thread_share) {
    if (op->kind == SIMGPU_MARK || isinf(op->work_ns))
        return 0;
    return op->work_ns * (op->sm_share > thread_share ? op->sm_share / thread_share : 1);
}

bool simgpu_link(struct simgpu_device *device, uint32_t slot) {
    struct simgpu_op *op = &device->ops[slot];
    struct simgpu_stream *stream = &device->streams[op->stream];
    struct simgpu_context *context = &device->contexts[op->context];
    op->next = SIMGPU_NONE;
    op->before_ns = stream->backlog_ns;
    op->backlog_ns = stream->backlog_ns + least_ns(op, context->thread_share);
    stream->backlog_ns = op->backlog_ns;
    atomic_store_explicit(&stream->enqueued, op->sequence, memory_order_relaxed);
    context->queued++;
    device->clients[op->client].unfinished++;
    uint32_t before = stream->last;
    stream->last = slot;
    if (stream->lane != SIMGPU_NONE) {
        device->ops[before].next = slot;
        return false;
    }
    stream->lane = device->lane_count;
    device->lanes[device->lane_count++] =
        (struct simgpu_lane){.stream = op->stream,
                             .op = slot,
                             .client = op->client,
                             .context = op->context,
                             .group = simgpu_group(device, op->context),
                             .running = op->state == SIMGPU_OP_RUNNING,
                             .completed = stream->completed,
                             .progress = op->progress[op->which]};
    return true;
}

int simgpu_enqueue(struct simgpu_device *device, uint32_t stream_slot,
                   const struct simgpu_work *work) {
    struct simgpu_stream *stream = &device->streams[stream_slot];
    struct simgpu_context *context = &device->contexts[stream->context];
    struct simgpu_client *client = &device->clients[context->client];
    if (context->queued >= SIMGPU_QUEUE_DEPTH)
        return -EAGAIN;
    uint32_t slot = take_op(device);
    if (slot == SIMGPU_NONE)
        return -EAGAIN;

    struct simgpu_op *op = &device->ops[slot];
    uint64_t id = device->next_id + 1;
    atomic_store_explicit(&device->next_id, id, memory_order_relaxed);
    op->kind = work->kind;
    op->stream = stream_slot;
    op->context = stream->context;
    op->client = context->client;
    op->id = id;
    op->sequence = stream->enqueued + 1;
    op->work_ns = fmax(work->work_ns, 1);
    op->sm_share = (float)work->sm_share;
    op->bandwidth = (float)work->bandwidth;
    op->occupancy = (float)work->occupancy;
    op->xid = work->xid;
    op->bytes = work->bytes;
    op->priority = stream->priority + client->mps_priority;
    op->wait_stream = work->wait_stream;
    op->wait_sequence = work->wait_sequence;
    op->event = work->event;
    op->effect = work->effect;
    op->token = work->token;
    op->enqueued_ns = device->now_ns;
    op->started_ns = op->ended_ns = 0;
    op->which = 0;
    op->progress[0] = (struct simgpu_progress){.left_ns = op->work_ns, .since_ns = device->now_ns};
    if (work->event != SIMGPU_NONE) {
        struct simgpu_event *event = &device->events[work->event];
        op->event_id = event->id;
        event->stream = stream_slot;
        event->sequence = op->sequence;
    }
    atomic_store_explicit(&op->state, SIMGPU_OP_QUEUED, memory_order_release);
    if (simgpu_link(device, slot))
        simgpu_reschedule(device);
    return (int)slot;
}

static void write_log(struct simgpu_device *device, const struct simgpu_op *op, uint64_t ran_ns,
                      bool cancelled) {
    const struct simgpu_client *client = &device->clients[op->client];
    struct simgpu_log_entry *entry = &device->log[device->log_count % SIMGPU_LOG];
    entry->id = op->id;
    entry->sequence = op->sequence;
    entry->enqueued_ns = op->enqueued_ns;
    entry->started_ns = op->started_ns;
    entry->ended_ns = device->now_ns;
    entry->ran_ns = ran_ns;
    entry->work_ns = op->work_ns;
    entry->pid = client->pid;
    entry->context = op->context;
    entry->stream = op->stream;
    entry->kind = (uint16_t)op->kind;
    entry->cancelled = cancelled;
    entry->sm_share = op->sm_share;
    entry->bandwidth = op->bandwidth;
    memcpy(entry->tag, client->tag, SIMGPU_TAG);
    entry->number = device->log_count + 1;
}

void simgpu_finish(struct simgpu_device *device, uint32_t slot, uint64_t ran_ns, bool cancelled) {
    struct simgpu_op *op = &device->ops[slot];
    struct simgpu_stream *stream = &device->streams[op->stream];
    struct simgpu_context *context = &device->contexts[op->context];
    struct simgpu_client *client = &device->clients[op->client];
    if (op->event != SIMGPU_NONE) {
        struct simgpu_event *event = &device->events[op->event];
        if (event->state == SIMGPU_USED && event->id == op->event_id)
            event->time_ns = device->now_ns;
    }
    bool logged = device->logging && op->kind != SIMGPU_MARK;
    if (logged)
        write_log(device, op, ran_ns, cancelled);
    bool kept = op->effect && !cancelled;
    op->ended_ns = device->now_ns;
    if (kept)
        atomic_store_explicit(&op->state, SIMGPU_OP_ENDED, memory_order_release);
    atomic_store_explicit(&stream->completed, op->sequence, memory_order_release);
    if (logged)
        atomic_store_explicit(&device->log_count, device->log_count + 1, memory_order_release);

    context->queued--;
    client->unfinished--;
    if (simgpu_is_kernel(op))
        device->kernels_ended++;
    if (!kept) {
        free_op(device, slot);
    } else {
        op->next = SIMGPU_NONE;
        if (client->ended_first == SIMGPU_NONE)
            client->ended_first = slot;
        else
            device->ops[client->ended_last].next = slot;
        client->ended_last = slot;
    }
    if (stream->closing && stream->completed == stream->enqueued)
        stream->state = SIMGPU_FREE;
}

void simgpu_complete(struct simgpu_device *device, uint32_t slot, uint64_t id) {
    struct simgpu_op *op = &device->ops[slot];
    if (op->id != id || op->state != SIMGPU_OP_RUNNING)
        return;
    struct simgpu_lane *lane = &device->lanes[device->streams[op->stream].lane];
    struct simgpu_progress progress = {.rate = lane->progress.rate,
                                       .since_ns = device->now_ns,
                                       .ran_ns = simgpu_ran_ns(lane, device->now_ns)};
    uint32_t other = 1 - op->which;
    op->progress[other] = progress;
    atomic_store_explicit(&op->which, other, memory_order_release);
    lane->progress = progress;
    simgpu_reschedule(device);
    simgpu_advance(device, device->now_ns);
    simgpu_signal(device);
}

void simgpu_cancel(struct simgpu_device *device, uint32_t context) {
    bool any = false;
    for (uint32_t i = 0; i < device->lane_count;) {
        const struct simgpu_lane *lane = &device->lanes[i];
        if (lane->context != context) {
            i++;
            continue;
        }
        uint32_t op = lane->op;
        uint64_t ran_ns = simgpu_ran_ns(lane, device->now_ns);
        simgpu_remove_lane(device, i);
        while (op != SIMGPU_NONE) {
            uint32_t next = device->ops[op].next;
            simgpu_finish(device, op, ran_ns, true);
            ran_ns = 0; /* those behind it had not begun */
            op = next;
        }
        any = true;
    }
    if (!any)
        return;
    simgpu_reschedule(device);
    simgpu_signal(device);
}

bool simgpu_collect(struct simgpu_device *device, uint32_t client, uint64_t *token) {
    struct simgpu_client *c = &device->clients[client];
    uint32_t slot = c->ended_first;
    if (slot == SIMGPU_NONE)
        return false;
    *token = device->ops[slot].token;
    c->ended_first = device->ops[slot].next;
    free_op(device, slot);
    return true;
}
