/* Events: places in streams, with the time at which they were reached. */
#include "cuda_graph.h"

void events_forget(struct context *context) {
    /* Handles of a destroyed context stay valid for destruction alone; their slots go now. */
    struct gpu *gpu = context->gpu;
    struct simgpu_device *device = gpu->shared.device;
    if (gpu_lock(gpu) != CUDA_SUCCESS)
        return;
    for (uint32_t i = 0; i < device->events_touched; i++)
        if (device->events[i].state == SIMGPU_USED && device->events[i].client == gpu->client &&
            device->events[i].context_id == context->id)
            simgpu_event_destroy(device, i);
    gpu_unlock(gpu);
}

/* What the newest record of the event waits for; stream SIMGPU_NONE: it was never recorded. */
static CUresult place_of(struct event *event, uint32_t *stream, uint64_t *sequence) {
    CUresult result = gpu_lock(event->gpu);
    if (result)
        return result;
    const struct simgpu_event *slot = &event->gpu->shared.device->events[event->slot];
    *stream = slot->stream;
    *sequence = slot->sequence;
    gpu_unlock(event->gpu);
    return CUDA_SUCCESS;
}

static CUresult event_of(CUevent handle) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    return object_is(OBJECT_EVENT, handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult event_wait(struct stream *stream, struct event *event) {
    struct simgpu_work work = mark_work();
    CUresult result = place_of(event, &work.wait_stream, &work.wait_sequence);
    if (result || work.wait_stream == SIMGPU_NONE)
        return result;
    if (event->gpu != stream->context->gpu) /* on another device: the host waits in its place */
        return wait_stream(event->gpu, work.wait_stream, work.wait_sequence);
    return submit(stream, work, NULL, NULL, NULL);
}

CUresult event_record(struct stream *stream, struct event *event) {
    if (event->gpu != stream->context->gpu)
        return CUDA_ERROR_INVALID_HANDLE;
    struct simgpu_work work = mark_work();
    work.event = event->slot;
    event->capture_id = 0;
    return submit(stream, work, NULL, NULL, NULL);
}

CUresult event_new(struct context *context, unsigned flags, struct event **created) {
    struct gpu *gpu = context->gpu;
    struct event *event = object_new(OBJECT_EVENT);
    if (!event)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = gpu_lock(gpu);
    int slot = -1;
    if (result == CUDA_SUCCESS) {
        slot = simgpu_event_create(gpu->shared.device, gpu->client);
        if (slot >= 0)
            gpu->shared.device->events[slot].context_id = context->id;
        else
            result = CUDA_ERROR_OUT_OF_MEMORY;
        gpu_unlock(gpu);
    }
    if (result) {
        object_free(OBJECT_EVENT, event);
        return result;
    }
    *event = (struct event){.gpu = gpu, .context = context, .slot = (uint32_t)slot, .flags = flags};
    event->slot_id = gpu->shared.device->events[slot].id;
    *created = event;
    return CUDA_SUCCESS;
}

/* --- calls --- */

CUDA_API CUresult cuEventCreate(CUevent *created, unsigned flags) {
    struct context *context;
    CUresult result = enter_context(&context);
    if (result)
        return result;
    if (!created || flags > 7 ||
        (flags & CU_EVENT_INTERPROCESS && !(flags & CU_EVENT_DISABLE_TIMING)))
        return CUDA_ERROR_INVALID_VALUE;
    return event_new(context, flags, created);
}

CUDA_API CUresult cuEventDestroy_v2(CUevent event) {
    CUresult result = enter();
    if (result)
        return result;
    if (!object_is(OBJECT_EVENT, event))
        return CUDA_ERROR_INVALID_HANDLE;
    struct simgpu_device *device = event->gpu->shared.device;
    if (!event->is_import && gpu_lock(event->gpu) == CUDA_SUCCESS) {
        if (device->events[event->slot].id == event->slot_id &&
            device->events[event->slot].state == SIMGPU_USED)
            simgpu_event_destroy(device, event->slot);
        gpu_unlock(event->gpu);
    }
    capture_forget_event(event);
    object_free(OBJECT_EVENT, event);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuEventDestroy(CUevent event) {
    return cuEventDestroy_v2(event);
}

CUDA_API CUresult cuEventRecordWithFlags(CUevent event, CUstream handle, unsigned flags) {
    struct stream *stream;
    CUresult result = stream_of(handle, &stream);
    if (result)
        return result;
    if (!object_is(OBJECT_EVENT, event))
        return CUDA_ERROR_INVALID_HANDLE;
    if (flags > CU_EVENT_RECORD_EXTERNAL)
        return CUDA_ERROR_INVALID_VALUE;
    bool captured;
    result = capture_of(stream, &captured);
    if (result)
        return result;
    if (!captured)
        return event_record(stream, event);
    if (!flags)
        return capture_record(stream, event);
    struct node node = {.type = CU_GRAPH_NODE_TYPE_EVENT_RECORD, .event = event};
    return capture_node(stream, &node);
}

CUDA_API CUresult cuEventRecord(CUevent event, CUstream handle) {
    return cuEventRecordWithFlags(event, handle, 0);
}

CUDA_API CUresult cuEventQuery(CUevent event) {
    CUresult result = event_of(event);
    result = result ? result : capture_forbids_event(event);
    if (result)
        return result;
    uint32_t stream;
    uint64_t sequence;
    result = place_of(event, &stream, &sequence);
    if (result || stream == SIMGPU_NONE)
        return result;
    return query_stream(event->gpu, stream, sequence);
}

CUDA_API CUresult cuEventSynchronize(CUevent event) {
    CUresult result = event_of(event);
    result = result ? result : capture_forbids_event(event);
    if (result)
        return result;
    uint32_t stream;
    uint64_t sequence;
    result = place_of(event, &stream, &sequence);
    if (result || stream == SIMGPU_NONE)
        return result;
    return wait_stream(event->gpu, stream, sequence);
}

CUDA_API CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    CUresult result = event_of(start);
    result = result ? result : event_of(end);
    if (result)
        return result;
    if (!milliseconds)
        return CUDA_ERROR_INVALID_VALUE;
    if ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING || start->gpu != end->gpu)
        return CUDA_ERROR_INVALID_HANDLE;
    uint32_t stream;
    uint64_t sequence;
    struct event *events[] = {start, end};
    for (int i = 0; i < 2; i++) {
        result = place_of(events[i], &stream, &sequence);
        if (result == CUDA_SUCCESS && stream == SIMGPU_NONE)
            result = CUDA_ERROR_INVALID_HANDLE;
        result = result ? result : query_stream(events[i]->gpu, stream, sequence);
        if (result)
            return result;
    }
    const struct simgpu_device *device = start->gpu->shared.device;
    int64_t passed_ns =
        (int64_t)(device->events[end->slot].time_ns - device->events[start->slot].time_ns);
    *milliseconds = (float)((double)passed_ns / 1e6);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end) {
    return cuEventElapsedTime(milliseconds, start, end);
}
