/* Making a device, and repairing one whose lock was held by a process that died.
 *
 * What can be found half done, and why it can be repaired:
 *   - an operation that was being entered: its slot is still FREE; one that was being ended: its
 *     sequence is not above its stream's `completed`, or its state is ENDED;
 *   - progress: each operation's (left, rate, since) is replaced by one store, and rates change at
 *     now_ns, which is stored before them. So whoever was not yet reached went on at its old rate
 *     until now_ns, which is what its progress still says; the same holds for meters;
 *   - a log entry: written before the end is published and counted after it;
 *   - a fault: the server's or the device's state says that it has happened, before the first
 *     client is hit.
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"

#define MAGIC 0x757067646c756d73 /* "smuldgpu" */

static int set_up_lock(pthread_mutex_t *lock) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    int error = pthread_mutex_init(lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return error;
}

void simgpu_initialise(struct simgpu_device *device, unsigned index, const struct simgpu_kind *kind,
                       const uint8_t uuid[16], bool log, uint64_t now_ns) {
    device->layout = SIMGPU_LAYOUT;
    device->index = index;
    device->bytes = sizeof *device;
    device->kind = *kind;
    memcpy(device->uuid, uuid, sizeof device->uuid);
    device->logging = log;
    device->now_ns = device->created_ns = now_ns;
    device->sm_clock_mhz = kind->boost_mhz;
    device->memory_clock_mhz = kind->memory_mhz;
    device->meter.copy[0].totals.time_ns = now_ns;
    device->ops_free = device->events_free = SIMGPU_NONE;
    device->next_event_ns = device->slice_ends_ns = SIMGPU_NEVER;
    set_up_lock(&device->lock);
    device->magic = MAGIC;
}

bool simgpu_is_valid(const struct simgpu_device *device) {
    return device->magic == MAGIC && device->layout == SIMGPU_LAYOUT &&
           device->bytes == sizeof *device;
}

static int by_id(const void *a, const void *b, void *ops) {
    uint64_t first = ((const struct simgpu_op *)ops)[*(const uint32_t *)a].id;
    uint64_t second = ((const struct simgpu_op *)ops)[*(const uint32_t *)b].id;
    return first < second ? -1 : first > second;
}

static int by_end(const void *a, const void *b, void *ops) {
    uint64_t first = ((const struct simgpu_op *)ops)[*(const uint32_t *)a].ended_ns;
    uint64_t second = ((const struct simgpu_op *)ops)[*(const uint32_t *)b].ended_ns;
    if (first == second)
        return by_id(a, b, ops);
    return first < second ? -1 : 1;
}

static void forget_queues(struct simgpu_device *device) {
    device->ops_free = device->events_free = SIMGPU_NONE;
    device->lane_count = 0;
    for (uint32_t i = 0; i < SIMGPU_CONTEXTS; i++)
        device->contexts[i].queued = 0;
    for (uint32_t i = 0; i < device->clients_touched; i++) {
        device->clients[i].unfinished = 0;
        device->clients[i].ended_first = device->clients[i].ended_last = SIMGPU_NONE;
    }
    for (uint32_t i = 0; i < device->streams_touched; i++) {
        struct simgpu_stream *stream = &device->streams[i];
        const struct simgpu_context *context = &device->contexts[stream->context];
        if (stream->state == SIMGPU_USED &&
            (context->state != SIMGPU_USED || context->id != stream->context_id))
            stream->state = SIMGPU_FREE; /* its context was being made or destroyed */
        stream->enqueued = stream->completed;
        stream->backlog_ns = 0;
        stream->last = stream->lane = SIMGPU_NONE;
    }
    for (uint32_t i = 0; i < device->events_touched; i++) {
        struct simgpu_event *event = &device->events[i];
        if (event->state == SIMGPU_USED)
            continue;
        event->next = device->events_free;
        device->events_free = i;
    }
}

/* Whether a slot holds an operation that has still to end. */
static bool is_queued(const struct simgpu_device *device, const struct simgpu_op *op) {
    const struct simgpu_stream *stream = &device->streams[op->stream];
    return (op->state == SIMGPU_OP_QUEUED || op->state == SIMGPU_OP_RUNNING) &&
           device->contexts[op->context].state == SIMGPU_USED && stream->state == SIMGPU_USED &&
           stream->context == op->context && op->sequence > stream->completed;
}

/* Whether a slot holds an operation whose effect its process has still to collect. */
static bool is_ended(const struct simgpu_device *device, const struct simgpu_op *op) {
    return op->state == SIMGPU_OP_ENDED && device->clients[op->client].state == SIMGPU_CLIENT_USED;
}

static void relist(struct simgpu_device *device, uint32_t slot) {
    struct simgpu_op *op = &device->ops[slot];
    struct simgpu_client *client = &device->clients[op->client];
    op->next = SIMGPU_NONE;
    if (client->ended_first == SIMGPU_NONE)
        client->ended_first = slot;
    else
        device->ops[client->ended_last].next = slot;
    client->ended_last = slot;
}

static void rebuild_queues(struct simgpu_device *device) {
    uint32_t touched = device->ops_touched;
    uint32_t *queued = malloc(2 * sizeof *queued * (touched + 1));
    if (!queued)
        abort(); /* half a device is worse for everybody than a dead process */
    uint32_t *ended = queued + touched;
    uint32_t queued_count = 0;
    uint32_t ended_count = 0;
    for (uint32_t i = 0; i < touched; i++) {
        const struct simgpu_op *op = &device->ops[i];
        if (!is_ended(device, op))
            continue;
        ended[ended_count++] = i;
        if (device->streams[op->stream].completed < op->sequence)
            device->streams[op->stream].completed = op->sequence;
    }
    for (uint32_t i = 0; i < touched; i++) {
        struct simgpu_op *op = &device->ops[i];
        if (is_queued(device, op)) {
            queued[queued_count++] = i;
        } else if (!is_ended(device, op)) {
            op->state = SIMGPU_OP_FREE;
            op->next = device->ops_free;
            device->ops_free = i;
        }
    }
    qsort_r(queued, queued_count, sizeof *queued, by_id, device->ops);
    qsort_r(ended, ended_count, sizeof *ended, by_end, device->ops);
    for (uint32_t i = 0; i < queued_count; i++)
        simgpu_link(device, queued[i]);
    for (uint32_t i = 0; i < ended_count; i++)
        relist(device, ended[i]);
    free(queued);
    for (uint32_t i = 0; i < device->streams_touched; i++) {
        struct simgpu_stream *stream = &device->streams[i];
        if (stream->enqueued < stream->completed)
            stream->enqueued = stream->completed;
        if (stream->state == SIMGPU_USED && stream->closing && stream->lane == SIMGPU_NONE)
            stream->state = SIMGPU_FREE;
    }
}

/* An entry that was written, whose operation's end was published, and that was not counted. */
static void count_last_entry(struct simgpu_device *device) {
    const struct simgpu_log_entry *entry = &device->log[device->log_count % SIMGPU_LOG];
    if (entry->number == device->log_count + 1 &&
        device->streams[entry->stream].completed >= entry->sequence)
        device->log_count++;
}

static void recount_memory(struct simgpu_device *device) {
    for (uint32_t i = 0; i < device->clients_touched; i++)
        device->clients[i].context_bytes = 0;
    for (uint32_t i = 0; i < SIMGPU_CONTEXTS; i++)
        if (device->contexts[i].state == SIMGPU_USED)
            device->clients[device->contexts[i].client].context_bytes += device->contexts[i].bytes;
    uint64_t used = 0;
    for (uint32_t i = 0; i < device->clients_touched; i++)
        if (device->clients[i].state == SIMGPU_CLIENT_USED)
            used += device->clients[i].memory_bytes + device->clients[i].context_bytes;
    device->memory_used_bytes = used;
}

static void complete_faults(struct simgpu_device *device) {
    if (device->lost)
        simgpu_lose(device);
    for (uint32_t i = 0; i < device->clients_touched; i++) {
        struct simgpu_client *client = &device->clients[i];
        if (client->state != SIMGPU_CLIENT_USED)
            continue;
        bool served = simgpu_mps_serves(device, client->mps, i);
        uint32_t state = served ? device->mps[client->mps].state : SIMGPU_MPS_FREE;
        if (client->error)
            simgpu_client_fail(device, i, client->error);
        else if (state == SIMGPU_MPS_FAULTED)
            simgpu_client_fail(device, i, device->mps[client->mps].fault_error);
        else if (state == SIMGPU_MPS_STOPPING)
            simgpu_client_fail(device, i, SIMGPU_ERROR_MPS_RPC_FAILURE);
    }
    for (uint32_t i = 0; i < SIMGPU_MPS_RECORDS; i++) {
        if (device->mps[i].state == SIMGPU_MPS_STOPPING)
            simgpu_mps_server_stopped(device, i);
        simgpu_mps_left(device, i);
    }
}

void simgpu_recover(struct simgpu_device *device) {
    forget_queues(device);
    rebuild_queues(device);
    count_last_entry(device);
    recount_memory(device);
    memset(device->flowing, 1, sizeof device->flowing);
    simgpu_reschedule(device);
    complete_faults(device);
    simgpu_signal(device);
}
