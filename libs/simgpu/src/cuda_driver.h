/* What the parts of the simulated driver share.
 *
 * Order of locks, outermost first; nobody holds two of one kind:
 *   driver.mutex      contexts and clients coming and going, graphs, modules
 *   gpu.effects_lock  while effects of ended operations are applied
 *   memory (cuda_memory.c), capture (cuda_capture.c)
 *   the device's lock (gpu_lock)
 *   gpu.calls_lock    the list of host functions
 * Callbacks of the program are called without any of them.
 */
#ifndef SIMGPU_CUDA_DRIVER_H
#define SIMGPU_CUDA_DRIVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "model.h"
#include "simgpu_cuda.h"

#define CUDA_API __attribute__((visibility("default")))

enum { DRIVER_VERSION = 13000 };

/* --- objects behind handles (cuda_object.c) --- */

enum object_kind {
    OBJECT_CONTEXT,
    OBJECT_STREAM,
    OBJECT_EVENT,
    OBJECT_MODULE,
    OBJECT_KERNEL,
    OBJECT_GRAPH,
    OBJECT_NODE,
    OBJECT_GRAPH_EXEC,
    OBJECT_POOL,
    OBJECT_ARRAY,
    OBJECT_MIPMAP,
    OBJECT_KINDS,
};

/* An object of zeroes, or NULL. Its address may be any value in a later call: object_is tells
 * whether it is one that is in use. */
void *object_new(enum object_kind kind);
void object_free(enum object_kind kind, void *object);
bool object_is(enum object_kind kind, const void *handle);

/* --- process, devices, threads (cuda_process.c) --- */

struct gpu {
    struct simgpu shared;
    unsigned index; /* of its file */
    int ordinal;
    _Atomic uint32_t client; /* this process on the device; SIMGPU_NONE: it has no context yet */
    int life_fd;
    struct context *primary;
    unsigned primary_retained;
    unsigned primary_flags;
    struct pool *default_pool, *current_pool;
    struct {
        uint64_t used, used_high, reserved, reserved_high;
    } graph_memory; /* cuda_graph_memory.c */

    pthread_mutex_t effects_lock;
    _Atomic uint32_t effects_pending;

    pthread_mutex_t calls_lock;
    struct call *first_call, *last_call;
    _Atomic uint64_t helper_until_ns; /* it looks again by itself then; 0: it does not run */
};

struct driver {
    pthread_mutex_t mutex;
    _Atomic int state; /* enum driver_state */
    int gpu_count;
    char dir[256];
    struct gpu gpus[SIMGPU_DEVICES];
};

enum driver_state { DRIVER_NEW = 0, DRIVER_READY, DRIVER_FORKED, DRIVER_ENDING };

extern struct driver driver;

enum { CONTEXT_STACK = 32 };

struct thread {
    struct context *stack[CONTEXT_STACK];
    unsigned depth;
    CUstreamCaptureMode capture_mode; /* of cuThreadExchangeStreamCaptureMode */
    bool in_callback;
    struct stream *own_streams; /* per-thread default streams, one for each context */
};

struct thread *this_thread(void);
void this_thread_ends(void); /* when it ends, its streams end too */

/* The first thing in every call. */
CUresult enter(void);
/* ... and in those that need a current context that has not failed. */
CUresult enter_context(struct context **context);

/* Locks the device for this process; not locked on an error. */
CUresult gpu_lock(struct gpu *gpu);
void gpu_unlock(struct gpu *gpu);
CUresult gpu_of(CUdevice device, struct gpu **gpu);

/* --- being a client (cuda_client.c) --- */

/* Enters this process on the device. With driver.mutex held, and the device locked. */
CUresult become_client(struct gpu *gpu);
/* Share of the SMs that a context created now may use: MPS looks at its variable only then. */
double thread_share(const struct gpu *gpu, unsigned sm_count);

/* --- contexts (cuda_context.c) --- */

struct context {
    struct gpu *gpu;
    uint32_t slot;
    uint64_t id;
    unsigned flags;
    unsigned api_version;
    bool is_primary;
    struct stream *legacy;
    struct stream *first_stream; /* list under driver.mutex */
    size_t limits[CU_LIMIT_MAX];
};

CUresult context_create(struct gpu *gpu, unsigned flags, unsigned sm_count, unsigned api_version,
                        struct context **context);
CUresult context_destroy(struct context *context);
/* The sticky error of the context's process on its device. */
CUresult context_error(const struct context *context);

/* --- streams and events (cuda_stream.c, cuda_event.c) --- */

struct stream {
    struct context *context;
    uint32_t slot;
    unsigned flags;
    int priority;
    uint64_t id;
    bool is_legacy;
    bool is_own;             /* a per-thread default stream */
    struct capture *capture; /* under the capture lock, as is: */
    struct node **tips;      /* what its next node comes after */
    size_t tip_count;
    struct stream *next, *previous; /* in its context */
    struct stream *next_own;        /* in its thread */
};

CUresult stream_new(struct context *context, unsigned flags, int priority, struct stream **stream);
void stream_forget(struct stream *stream);
/* The stream of a handle; 0 is the legacy default stream. */
CUresult stream_of(CUstream handle, struct stream **stream);
/* Handle for `_ptsz` calls, for which 0 is the default stream of the thread. */
CUstream own_stream(CUstream handle);

struct event {
    struct gpu *gpu;
    struct context *context;
    uint32_t slot;
    unsigned flags;
    uint64_t slot_id;
    bool is_import;      /* of another process */
    uint64_t capture_id; /* of the capture of its newest record; 0: it was not captured */
    struct node **tips;  /* what was captured before that record */
    size_t tip_count;
};

CUresult event_new(struct context *context, unsigned flags, struct event **event);
CUresult event_record(struct stream *stream, struct event *event);
CUresult event_wait(struct stream *stream, struct event *event);
void events_forget(struct context *context);

/* --- submitting and waiting (cuda_submit.c, cuda_effect.c, cuda_call.c) --- */

enum { HELPER_EFFECTS_NS = 2 * 1000 * 1000 }; /* how long an effect may go unseen without a call */

/* What happens to memory when an operation has ended. */
struct region {
    const char *from;
    char *to;
    size_t from_pitch, from_slice;
    size_t to_pitch, to_slice;
    size_t width, height, depth; /* bytes, rows, slices */
};

enum effect_kind { EFFECT_COPY, EFFECT_FILL, EFFECT_STORE, EFFECT_ADD, EFFECT_FREE };

struct effect {
    enum effect_kind kind;
    struct region region; /* copy, fill */
    unsigned value_bytes; /* fill, store, add */
    uint64_t value;
    CUdeviceptr address; /* store, add, free */
    char *owned;         /* freed with it */
};

struct effect *effect_new(enum effect_kind kind);
void effect_run(const struct effect *effect);

/* Host functions, callbacks, and operations that wait for a word in memory. */
enum call_kind { CALL_FUNCTION, CALL_CALLBACK, CALL_WAIT };

struct call {
    enum call_kind kind;
    CUhostFn function;
    CUstreamCallback callback;
    CUstream stream;
    void *user_data;
    CUdeviceptr address; /* wait */
    unsigned value_bytes;
    unsigned condition; /* 0 >= (cyclic), 1 ==, 2 &, 3 nor, as CU_STREAM_WAIT_VALUE_* */
    uint64_t value;
    uint32_t op;
    uint64_t op_id;
    uint32_t stream_slot;
    uint64_t sequence;
    struct call *next;
};

/* Enters work into a stream, waiting while its context's queue is full. Takes the effect over, and
 * a copy of the call. `sequence` may be NULL. */
CUresult submit(struct stream *stream, struct simgpu_work work, struct effect *effect,
                const struct call *call, uint64_t *sequence);
struct simgpu_work mark_work(void);                        /* takes no time */
struct simgpu_work endless_work(enum simgpu_op_kind kind); /* ends with its call */
/* A write of a word (`write`), or a wait for one (`wait`). */
CUresult word_submit(struct stream *stream, const struct effect *write, const struct call *wait);

/* The helper calls it, or looks for its word, in its turn. The device is locked. */
void add_call(struct gpu *gpu, const struct call *call, uint32_t op);
/* Makes the helper look by `until_ns` at the latest. The device is locked. */
void want_helper(struct gpu *gpu, uint64_t until_ns);

CUresult wait_stream(struct gpu *gpu, uint32_t stream, uint64_t sequence);
CUresult wait_context(struct context *context);
/* CUDA_ERROR_NOT_READY, or success with the effects applied. */
CUresult query_stream(struct gpu *gpu, uint32_t stream, uint64_t sequence);
void apply_effects(struct gpu *gpu);

#endif
