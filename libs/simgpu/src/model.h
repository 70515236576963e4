/* The device model proper: what happens on a device, when. Nothing here reads a clock, takes a
 * lock or sleeps: time is an argument (tests drive it with times of their own), the caller holds
 * the lock, and the device has been brought to that time (simgpu_advance) before it is changed. */
#ifndef SIMGPU_MODEL_H
#define SIMGPU_MODEL_H

#include "device.h"

enum {
    SIMGPU_COPIES = 64, /* copies and memsets that run at once; further ones wait */
    SIMGPU_RUNNING = 128 + SIMGPU_COPIES,
};

/* What a stream is given to do. */
struct simgpu_work {
    enum simgpu_op_kind kind;
    double work_ns; /* alone at boost clock; INFINITY: until simgpu_complete */
    double sm_share;
    double bandwidth;
    double occupancy;
    uint64_t bytes;
    uint32_t wait_stream; /* SIMGPU_NONE: waits for its stream alone */
    uint64_t wait_sequence;
    uint32_t event;  /* to be recorded; SIMGPU_NONE: none */
    uint32_t effect; /* kept as ENDED until its process collects it */
    uint64_t token;
    uint32_t xid;
};

/* A running operation and its part of the device. */
struct simgpu_running {
    uint32_t lane;
    double rate;      /* 1: as alone at boost clock */
    double sm;        /* share of SMs */
    double occupancy; /* share of warps */
    double memory;    /* share of bandwidth */
};

/* --- schedule.c --- */

void simgpu_advance(struct simgpu_device *device, uint64_t now_ns);
/* To be called after anything but time has changed what can run or how fast. */
void simgpu_reschedule(struct simgpu_device *device);
/* How long the head of the lane has been on the device. */
uint64_t simgpu_ran_ns(const struct simgpu_lane *lane, uint64_t now_ns);
void simgpu_remove_lane(struct simgpu_device *device, uint32_t at);
/* When the stream will have ended everything up to `sequence` if nothing new comes: exact, or,
 * where much happens before that, earlier. SIMGPU_NEVER: not by itself. */
uint64_t simgpu_predict(const struct simgpu_device *device, uint32_t stream, uint64_t sequence);

/* --- rates.c --- */

bool simgpu_is_kernel(const struct simgpu_op *op);
bool simgpu_is_copy(const struct simgpu_op *op); /* memsets too */
/* Who runs among the lanes while `turn` has the device, and how fast. Returns how many. */
uint32_t simgpu_rates(const struct simgpu_device *device, const struct simgpu_lane *lanes,
                      uint32_t count, uint32_t turn, struct simgpu_running *running);
/* The work of a copy or memset of this many bytes on this device. */
struct simgpu_work simgpu_transfer(const struct simgpu_device *device, enum simgpu_op_kind kind,
                                   uint64_t bytes);

/* --- queue.c --- */

uint32_t simgpu_group(const struct simgpu_device *device, uint32_t context);
/* Slot of a new context with its legacy stream; -ENOMEM, -ENOSPC. */
int simgpu_context_create(struct simgpu_device *device, uint32_t client, double thread_share,
                          uint64_t bytes);
/* Frees the context, its streams and what they still have to do. */
void simgpu_context_destroy(struct simgpu_device *device, uint32_t context);
int simgpu_stream_create(struct simgpu_device *device, uint32_t context, uint32_t flags,
                         int32_t priority);
/* The slot is free once the stream's work has ended. */
void simgpu_stream_destroy(struct simgpu_device *device, uint32_t stream);
int simgpu_event_create(struct simgpu_device *device, uint32_t client);
void simgpu_event_destroy(struct simgpu_device *device, uint32_t event);

/* Slot of the operation, whose sequence is then its stream's `enqueued`. -EAGAIN: its context has
 * SIMGPU_QUEUE_DEPTH operations queued. */
int simgpu_enqueue(struct simgpu_device *device, uint32_t stream, const struct simgpu_work *work);
/* Puts an operation at the end of its stream. True: the stream had no work before. */
bool simgpu_link(struct simgpu_device *device, uint32_t op);
/* Ends an operation whose work is INFINITY. */
void simgpu_complete(struct simgpu_device *device, uint32_t op, uint64_t id);
/* The head of a lane has ended (schedule.c). */
void simgpu_finish(struct simgpu_device *device, uint32_t op, uint64_t ran_ns, bool cancelled);
/* Drops everything that the context has to do. */
void simgpu_cancel(struct simgpu_device *device, uint32_t context);
/* The client's oldest ended operation whose effect waits; its slot is then free. */
bool simgpu_collect(struct simgpu_device *device, uint32_t client, uint64_t *token);

bool simgpu_memory_take(struct simgpu_device *device, uint32_t client, uint64_t bytes);
void simgpu_memory_give(struct simgpu_device *device, uint32_t client, uint64_t bytes);
uint64_t simgpu_memory_free(const struct simgpu_device *device);

/* --- meters.c --- */

void simgpu_meters(struct simgpu_device *device, const struct simgpu_running *running,
                   uint32_t count);

/* --- clients.c --- */

/* Slot of a new client; -EUSERS: none is free. The caller holds the life of that slot. */
int simgpu_client_create(struct simgpu_device *device, uint32_t slot, uint32_t pid,
                         uint64_t start_ticks, uint32_t uid, const char *tag);
/* The process is gone, or leaves. With work in flight, an MPS client takes the others along. */
void simgpu_client_bury(struct simgpu_device *device, uint32_t client);
/* Every later call of the client fails with this CUresult, and its work is lost. */
void simgpu_client_fail(struct simgpu_device *device, uint32_t client, int32_t error);

/* --- sharing.c --- */

/* Record of the daemon of this pipe directory, or SIMGPU_NONE. */
uint32_t simgpu_mps_find(const struct simgpu_device *device, uint64_t pipe_hash);
/* Whether the client is one of the record's present server (not of an earlier one). */
bool simgpu_mps_serves(const struct simgpu_device *device, uint32_t mps, uint32_t client);
/* A client of that server is gone: a faulted server may be usable again. */
void simgpu_mps_left(struct simgpu_device *device, uint32_t mps);

/* --- recovery.c --- */

bool simgpu_is_valid(const struct simgpu_device *device); /* made by this version */

/* Rebuilds what is derived, and completes faults that the dead holder had begun. */
void simgpu_recover(struct simgpu_device *device);
/* A device as it is made, all of whose bytes are 0 so far. */
void simgpu_initialise(struct simgpu_device *device, unsigned index, const struct simgpu_kind *kind,
                       const uint8_t uuid[16], bool log, uint64_t now_ns);

#endif
