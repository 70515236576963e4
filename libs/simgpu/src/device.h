/* The device model in shared memory: layout, and the calls by which everybody reaches it.
 *
 * One file `device-<index>` per device in the directory $MUXFLOW_SIMGPU (a tmpfs), and beside it
 * `lives-<index>`, whose bytes are locked by the processes that live on the device.
 *
 * No server keeps the time. Whoever touches the device locks it (simgpu_lock), which brings the
 * model to CLOCK_MONOTONIC now, does its operation, and unlocks. All times are nanoseconds of
 * CLOCK_MONOTONIC (`_ns`); a share is a double between 0 and 1.
 *
 * Who holds the lock may be killed at any instruction. So each thing in a slot is published by ONE
 * store (its `state`, a stream's `completed`, the `which` of a pair of copies), written after the
 * fields that it publishes. Everything marked "derived" is rebuilt from the rest when the lock's
 * owner has died (recovery.c).
 */
#ifndef SIMGPU_DEVICE_H
#define SIMGPU_DEVICE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "kinds.h"

enum {
    SIMGPU_LAYOUT = 1,
    SIMGPU_DEVICES = 32,  /* devices in one directory */
    SIMGPU_CLIENTS = 128, /* processes on a device */
    SIMGPU_CONTEXTS = 256,
    SIMGPU_STREAMS = 4096,
    SIMGPU_EVENTS = 32768,
    SIMGPU_OPS = 65536,         /* operations queued or running, all processes together */
    SIMGPU_LOG = 65536,         /* operations remembered after their end */
    SIMGPU_HISTORY = 2048,      /* device totals, each SIMGPU_HISTORY_NS */
    SIMGPU_CLIENT_HISTORY = 64, /* totals of one client, each SIMGPU_CLIENT_HISTORY_NS */
    SIMGPU_XIDS = 256,
    SIMGPU_MPS_RECORDS = 8, /* MPS control daemons on a device */
    SIMGPU_TAG = 16,        /* bytes of a client's tag, NUL included */
    SIMGPU_HISTORY_NS = 10 * 1000 * 1000,
    SIMGPU_CLIENT_HISTORY_NS = 100 * 1000 * 1000,
    SIMGPU_SLICE_NS = 2 * 1000 * 1000,   /* time slice of processes that do not share by MPS */
    SIMGPU_LIVES_CHECK_NS = 1000 * 1000, /* the dead are looked for at most this often */
    SIMGPU_QUEUE_DEPTH = 1024,           /* operations a context may have queued */
};

/* CUresults with which the model lets clients fail. */
enum simgpu_error {
    SIMGPU_ERROR_DEVICE_UNAVAILABLE = 46,
    SIMGPU_ERROR_ECC_UNCORRECTABLE = 214,
    SIMGPU_ERROR_CONTAINED = 226,
    SIMGPU_ERROR_ILLEGAL_ADDRESS = 700,
    SIMGPU_ERROR_LAUNCH_FAILED = 719,
    SIMGPU_ERROR_MPS_RPC_FAILURE = 806,
    SIMGPU_ERROR_MPS_CLIENT_TERMINATED = 810,
};

#define SIMGPU_NONE  UINT32_MAX /* no slot */
#define SIMGPU_NEVER UINT64_MAX /* a time that does not come */

enum simgpu_slot_state { SIMGPU_FREE = 0, SIMGPU_USED = 1 };

enum simgpu_op_kind {
    SIMGPU_KERNEL = 1,
    SIMGPU_COPY_H2D,
    SIMGPU_COPY_D2H,
    SIMGPU_COPY_D2D,
    SIMGPU_MEMSET,
    SIMGPU_HOST_FUNCTION, /* ends when the process says so (simgpu_complete) */
    SIMGPU_WORD_WAIT,     /* a kernel that spins until a word is set; ends like a host function */
    SIMGPU_MARK,          /* takes no time: event records, waits, empty graph nodes */
};

enum simgpu_op_state {
    SIMGPU_OP_FREE = 0,
    SIMGPU_OP_QUEUED,  /* in its stream, not started */
    SIMGPU_OP_RUNNING, /* started; a kernel outside its time slice stays in this state */
    SIMGPU_OP_ENDED,   /* ended, but its process has not yet collected its effect */
};

/* Progress of a running operation: `left_ns` of work at `since_ns`, done at `rate` (1 = alone at
 * boost clock) from then on. */
struct simgpu_progress {
    double left_ns;
    double rate;
    uint64_t since_ns;
    uint64_t ran_ns; /* time on the device until since_ns: without waits for its time slice */
};

struct simgpu_op {
    _Atomic uint32_t state; /* enum simgpu_op_state */
    uint32_t kind;          /* enum simgpu_op_kind */
    uint32_t stream;
    uint32_t context;
    uint32_t client;
    uint32_t reserved;
    uint64_t id;          /* counts all operations of the device; order of enqueueing */
    uint64_t sequence;    /* place in its stream, from 1 */
    double work_ns;       /* time alone on the whole device at boost clock */
    float sm_share;       /* share of the SMs that it can use */
    float bandwidth;      /* share of memory bandwidth that it uses at full speed */
    float occupancy;      /* share of the warps of the device that it fills */
    uint32_t xid;         /* the fault that it ends with; 0: none */
    uint64_t bytes;       /* of a copy */
    int32_t priority;     /* of its stream: smaller is more urgent */
    uint32_t wait_stream; /* starts only after wait_sequence of this stream; or SIMGPU_NONE */
    uint64_t wait_sequence;
    uint32_t event;    /* whose time it writes when it ends; or SIMGPU_NONE */
    uint32_t effect;   /* its process has something to do when it has ended: not 0 */
    uint64_t event_id; /* id of that event */
    uint64_t token;    /* meaning known to its process alone */
    uint64_t enqueued_ns;
    uint64_t started_ns;
    uint64_t ended_ns;
    double before_ns;  /* least time of its stream's work before it, since the stream was made */
    double backlog_ns; /* ... and with it */
    uint32_t next;     /* derived: next of its stream, of the free list or of the ended list */
    _Atomic uint32_t which;
    struct simgpu_progress progress[2]; /* [which] is valid */
};

/* Integrals since the device (the client) was made. */
struct simgpu_totals {
    uint64_t time_ns;    /* the integrals reach to here */
    double busy_ns;      /* any kernel running */
    double sm_ns;        /* share of SMs that run kernels */
    double occupancy_ns; /* share of warps resident */
    double memory_ns;    /* share of memory bandwidth in use */
    double copy_ns;      /* any copy running */
    double h2d_bytes;
    double d2h_bytes;
};

/* What the integrals gain per ns from time_ns on. */
struct simgpu_flow {
    double busy, sm, occupancy, memory, copy, h2d_bytes, d2h_bytes;
};

struct simgpu_meter {
    _Atomic uint32_t which;
    uint32_t reserved;
    struct {
        struct simgpu_totals totals;
        struct simgpu_flow flow;
    } copy[2]; /* copy[which] is valid */
};

enum simgpu_client_state {
    SIMGPU_CLIENT_FREE = 0,
    SIMGPU_CLIENT_USED = 1,
};

/* One process on the device. Its life is the lock on byte <slot> of `lives-<index>`. */
struct simgpu_client {
    _Atomic uint32_t state; /* enum simgpu_client_state */
    uint32_t pid;
    uint64_t start_ticks; /* field 22 of /proc/<pid>/stat */
    uint64_t id;          /* never reused */
    uint32_t uid;
    uint32_t mps;          /* record of its MPS control daemon, or SIMGPU_NONE: no MPS client */
    uint64_t mps_server;   /* `server_id` of the server it is connected to */
    int32_t mps_priority;  /* 0 normal, 1 below normal */
    _Atomic int32_t error; /* sticky CUresult of every later call; 0: none */
    uint32_t unfinished;   /* derived: operations queued or running */
    _Atomic uint64_t memory_bytes;  /* allocated, without contexts */
    _Atomic uint64_t context_bytes; /* taken by its contexts */
    uint64_t memory_limit_bytes;    /* of memory_bytes; 0: none */
    double thread_share;            /* of its newest context: 1 without a limit */
    char tag[SIMGPU_TAG];           /* $MUXFLOW_SIMGPU_TAG of the process */
    uint64_t since_ns;              /* on the device since */
    uint32_t ended_first;           /* derived: ended operations whose effect is not collected */
    uint32_t ended_last;
    struct simgpu_meter meter;
    _Atomic uint64_t history_count; /* entry n lies in history[n % SIMGPU_CLIENT_HISTORY] */
    struct simgpu_totals history[SIMGPU_CLIENT_HISTORY];
};

struct simgpu_context {
    _Atomic uint32_t state; /* enum simgpu_slot_state */
    uint32_t client;
    uint64_t id;
    double thread_share; /* MPS active thread percentage / 100 */
    uint64_t bytes;
    uint32_t legacy; /* its legacy default stream */
    uint32_t queued; /* derived: operations queued or running */
};

enum simgpu_stream_flags {
    SIMGPU_STREAM_LEGACY = 1,       /* waits for all blocking streams, which wait for it */
    SIMGPU_STREAM_NON_BLOCKING = 2, /* takes no part in that */
};

struct simgpu_stream {
    _Atomic uint32_t state; /* enum simgpu_slot_state */
    uint32_t context;
    uint32_t flags; /* enum simgpu_stream_flags */
    int32_t priority;
    uint64_t context_id;
    /* Both only grow, also when the slot is used again: a sequence is ended for good. */
    _Atomic uint64_t enqueued;  /* derived: sequence of the newest operation */
    _Atomic uint64_t completed; /* sequence of the newest that ended */
    double backlog_ns;          /* derived: least time of all its work since it was made */
    uint32_t last;              /* derived: its newest operation, where it has a lane */
    uint32_t lane;              /* derived: its lane, or SIMGPU_NONE: no work */
    _Atomic uint32_t closing;   /* destroyed by its owner: freed when it is empty */
};

/* A stream with work, as the schedule sees it. */
struct simgpu_lane {
    uint32_t stream;
    uint32_t op; /* the oldest that has not ended; SIMGPU_NONE only in predictions */
    uint32_t client;
    uint32_t context;
    uint32_t group;   /* who shares the device in time slices: see `turn` */
    uint32_t running; /* the op has started */
    uint64_t completed;
    struct simgpu_progress progress; /* of the op, while it runs */
};

struct simgpu_event {
    _Atomic uint32_t state; /* enum simgpu_slot_state */
    uint32_t client;
    uint64_t id; /* never reused */
    uint64_t client_id;
    uint64_t context_id; /* of the context in which it was made */
    uint32_t stream;     /* the newest record lies in this stream at this sequence; NONE: never */
    uint32_t next;       /* derived: of the free list */
    uint64_t sequence;
    _Atomic uint64_t time_ns; /* when the newest record that has ended did so; 0: none yet */
};

struct simgpu_log_entry {
    uint64_t number; /* from 1: entry n lies in log[(n - 1) % SIMGPU_LOG] */
    uint64_t id;
    uint64_t sequence;
    uint64_t enqueued_ns;
    uint64_t started_ns; /* 0: cancelled before it started */
    uint64_t ended_ns;
    uint64_t ran_ns; /* on the device: without waits for its time slice */
    double work_ns;
    uint32_t pid;
    uint32_t context;
    uint32_t stream;
    uint16_t kind;      /* enum simgpu_op_kind */
    uint16_t cancelled; /* 1: ended by a fault, a death or a termination */
    float sm_share;
    float bandwidth;
    char tag[SIMGPU_TAG];
};

struct simgpu_xid {
    uint64_t number; /* from 1: xid n lies in xids[(n - 1) % SIMGPU_XIDS] */
    uint64_t time_ns;
    uint32_t xid;
    uint32_t pid; /* of the process that caused it; 0: none */
};

/* An MPS control daemon that serves this device. It locks byte SIMGPU_LIFE_MPS_CONTROL + slot of
 * `lives-<index>`, its server byte SIMGPU_LIFE_MPS_SERVER + slot: see simgpu_hold_life.
 *
 * IDLE: no server runs. A process that wants to become a client sets `wanted_uid`, then REQUESTED,
 * and signals (simgpu_signal); the daemon starts a server, which sets READY. A daemon that starts
 * its server on its own may register as READY at once. */
enum simgpu_mps_state {
    SIMGPU_MPS_FREE = 0,
    SIMGPU_MPS_IDLE,
    SIMGPU_MPS_REQUESTED,
    SIMGPU_MPS_STARTING,
    SIMGPU_MPS_READY,
    SIMGPU_MPS_FAULTED,  /* back to READY when all clients that were hit are gone */
    SIMGPU_MPS_STOPPING, /* its clients are being failed: to be completed if the lock's owner dies
                          */
    SIMGPU_MPS_CLOSING,  /* serves whom it has, and takes nobody new */
};

struct simgpu_mps {
    _Atomic uint32_t state; /* enum simgpu_mps_state */
    uint32_t control_pid;
    uint32_t server_pid; /* 0: none */
    uint32_t uid;        /* of the server */
    uint32_t wanted_uid;
    uint32_t wanted_pid;
    uint64_t pipe_hash;                  /* simgpu_path_hash of its CUDA_MPS_PIPE_DIRECTORY */
    uint64_t server_id;                  /* counts servers; changes with each start */
    _Atomic uint32_t thread_pct;         /* default active thread percentage, 1..100 */
    _Atomic int32_t priority;            /* default client priority: 0 normal, 1 below normal */
    _Atomic uint64_t memory_limit_bytes; /* default limit of a client; 0: none */
    _Atomic int32_t fault_error;         /* what its clients fail with while FAULTED */
    uint32_t reserved;
    _Atomic uint64_t faults; /* fatal faults so far */
    uint64_t registered_ns;
    uint64_t server_started_ns;
};

enum { SIMGPU_LIFE_MPS_CONTROL = 1000, SIMGPU_LIFE_MPS_SERVER = 2000 };

struct simgpu_device {
    uint64_t magic;
    uint32_t layout; /* SIMGPU_LAYOUT */
    uint32_t index;
    uint64_t bytes;
    struct simgpu_kind kind;
    uint8_t uuid[16];
    uint32_t logging; /* 0: operations are not logged */
    uint32_t reserved;

    pthread_mutex_t lock; /* robust, process-shared */
    /* Futex word; grows whenever a prediction of somebody who sleeps may be too late. */
    _Atomic uint32_t signal;
    _Atomic uint32_t lost; /* 1: the GPU has fallen off the bus */

    _Atomic uint64_t now_ns; /* the model has reached this time */
    uint64_t created_ns;
    uint64_t lives_checked_ns;
    _Atomic uint64_t next_id;      /* of operations, clients, contexts, events */
    _Atomic uint32_t sm_clock_mhz; /* now; kind.boost_mhz unless set */
    _Atomic uint32_t memory_clock_mhz;
    _Atomic uint64_t throttle_reasons; /* bits of nvmlClocksEventReasons, as injected */

    /* Slots below these marks have been in use: raised before a slot is used. */
    _Atomic uint32_t ops_touched, streams_touched, events_touched, clients_touched;
    uint32_t ops_free, events_free; /* derived: heads of the free lists */

    uint32_t lane_count;                /* derived */
    _Atomic uint64_t next_event_ns;     /* derived: when a rate or a queue changes by itself */
    _Atomic uint64_t memory_used_bytes; /* derived: sum over clients, contexts included */
    _Atomic uint64_t kernels_ended;
    uint8_t flowing[SIMGPU_CLIENTS]; /* derived: 1: the client's flow is not zero */

    /* Time slices between contexts that do not share by MPS. `turn` names who has the device: a
     * group is an MPS record (SIMGPU_CONTEXTS + record) or a context. */
    _Atomic uint32_t turn;
    _Atomic uint64_t slice_ends_ns;

    struct simgpu_meter meter;
    _Atomic uint64_t history_count; /* entry n lies in history[n % SIMGPU_HISTORY] */
    _Atomic uint64_t xid_count;
    _Atomic uint64_t log_count;

    struct simgpu_lane lanes[SIMGPU_STREAMS];     /* derived: streams with work, in no order */
    struct simgpu_totals history[SIMGPU_HISTORY]; /* at multiples of SIMGPU_HISTORY_NS */
    struct simgpu_xid xids[SIMGPU_XIDS];
    struct simgpu_mps mps[SIMGPU_MPS_RECORDS];
    struct simgpu_client clients[SIMGPU_CLIENTS];
    struct simgpu_context contexts[SIMGPU_CONTEXTS];
    struct simgpu_stream streams[SIMGPU_STREAMS];
    struct simgpu_event events[SIMGPU_EVENTS];
    struct simgpu_op ops[SIMGPU_OPS];
    struct simgpu_log_entry log[SIMGPU_LOG];
};

/* One process's view of a device. */
struct simgpu {
    struct simgpu_device *device;
    int lives_fd; /* to ask who lives; a life itself is held by a descriptor of its own */
};

struct simgpu_options {
    const uint8_t *uuid; /* 16 bytes; NULL: random */
    bool log;            /* keep the log of operations */
};

/* --- Files and the lock (device.c). Calls give 0 or -errno. --- */

/* Makes device `index` in the directory, complete or not at all: -EEXIST, -EINVAL (index), ... */
int simgpu_create(const char *dir, unsigned index, const struct simgpu_kind *kind,
                  const struct simgpu_options *options);
/* -ENOENT: no such device; -EPROTO: made by another version. */
int simgpu_open(struct simgpu *gpu, const char *dir, unsigned index);
void simgpu_close(struct simgpu *gpu);
/* Removes the files; processes that have them open go on alone. */
int simgpu_remove(const char *dir, unsigned index);

uint64_t simgpu_now(void); /* CLOCK_MONOTONIC */

/* Locks the device, repairs it when its last holder died, brings it to now, and buries the dead
 * (at most each SIMGPU_LIVES_CHECK_NS). Returns that now. No two devices are locked at once. */
uint64_t simgpu_lock(struct simgpu *gpu);
void simgpu_unlock(struct simgpu *gpu);

/* Says that whoever sleeps for this device should look again. With or without the lock. */
void simgpu_signal(struct simgpu_device *device);
/* Sleeps while the word is `seen` and until `until_ns` (SIMGPU_NEVER: no limit), without the lock:
 * read the word under the lock, unlock, wait. */
void simgpu_wait(struct simgpu_device *device, uint32_t seen, uint64_t until_ns);

/* Holds byte `life` of the lives file for as long as this process lives and the returned
 * descriptor is open; close it to let go. -EAGAIN: somebody else holds it. */
int simgpu_hold_life(const char *dir, unsigned index, unsigned life);
bool simgpu_life_is_held(const struct simgpu *gpu, unsigned life);

/* --- Reading (meters.c), under the lock unless said otherwise --- */

/* Totals brought to the device's now. */
struct simgpu_totals simgpu_device_totals(const struct simgpu_device *device);
struct simgpu_totals simgpu_client_totals(const struct simgpu_device *device, uint32_t client);
/* Totals at an earlier time, interpolated from the history; the oldest known where it is earlier
 * than that. */
struct simgpu_totals simgpu_device_totals_at(const struct simgpu_device *device, uint64_t time_ns);
struct simgpu_totals simgpu_client_totals_at(const struct simgpu_device *device, uint32_t client,
                                             uint64_t time_ns);
uint32_t simgpu_power_mw(const struct simgpu_device *device, uint64_t window_ns);
/* Since the device was made, at boost clock. */
uint64_t simgpu_energy_mj(const struct simgpu_device *device);
uint32_t simgpu_temperature_c(const struct simgpu_device *device);

/* --- Injection (fault.c), under the lock --- */

/* Records the XID and lets it take effect. `pid` names the culprit of 13, 31, 43, 94 (0: every
 * client). 13, 31, 43: the culprit's contexts fail for good, and with MPS those of every client of
 * its server. 48, 95: all clients fail. 94: the culprit alone. 79: the GPU is lost. Others are
 * recorded only. */
void simgpu_inject_xid(struct simgpu_device *device, uint32_t xid, uint32_t pid);
void simgpu_lose(struct simgpu_device *device);    /* without an XID */
void simgpu_restore(struct simgpu_device *device); /* a lost device is back, empty */
void simgpu_set_clock(struct simgpu_device *device, uint32_t sm_mhz, uint64_t throttle_reasons);

/* --- MPS (sharing.c), under the lock --- */

uint64_t simgpu_path_hash(const char *path); /* of the resolved path, where it exists */
/* Slot of a new record in state IDLE, thread_pct 100; -ENOSPC, or -EEXIST: the directory has a
 * record of a daemon that lives. The caller then holds SIMGPU_LIFE_MPS_CONTROL + slot. */
int simgpu_mps_register(struct simgpu *gpu, const char *pipe_directory);
void simgpu_mps_unregister(struct simgpu_device *device, uint32_t mps);
/* IDLE, REQUESTED or STARTING → READY, under a new server_id. */
void simgpu_mps_server_started(struct simgpu_device *device, uint32_t mps, uint32_t server_pid,
                               uint32_t uid);
/* The server is gone, orderly or not: clients that it still has fail for good; state IDLE. */
void simgpu_mps_server_stopped(struct simgpu_device *device, uint32_t mps);
/* A fatal fault: all clients fail with `error` (a CUresult), new ones are refused until they are
 * gone. */
void simgpu_mps_fault(struct simgpu_device *device, uint32_t mps, int32_t error);
/* Ends a client's work cleanly: it fails with CUDA_ERROR_MPS_CLIENT_TERMINATED, nobody else does.
 * -ESRCH: the server has no such client. */
int simgpu_mps_terminate_client(struct simgpu_device *device, uint32_t mps, uint32_t pid);

#endif
