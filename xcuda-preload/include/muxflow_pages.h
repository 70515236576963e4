/* The pages: small files in shared memory through which the processes of one node meet without a
 * lock or a message.
 *
 *   <run>/devices/<GPU UUID>/device    device page   monitor -> everyone
 *   <run>/devices/<GPU UUID>/beacons/  beacon pages  online processes -> offline gates, monitor
 *   <run>/jobs/<attempt>/control       job control   executor -> xCUDA; read-only to the job
 *   <run>/jobs/<attempt>/job           job page      xCUDA -> executor, monitor; untrusted: read
 * with pread, never mapped
 *
 * Each page has one writer (the job page: one writer per slot). Whoever maps a page directory by
 * directory keeps seeing the same inode. This header is the only description of the layouts; the
 * Python side is checked against it by a test. Everything is little-endian; every field is
 * naturally aligned; unused bytes are zero.
 *
 * The rule for readers: a page that is missing where it must be, too short, of another magic, kind
 * or version, torn after bounded retries, or whose heartbeat has stood still for longer than
 * `stale_after_ms` by the reader's own CLOCK_MONOTONIC, reads as FROZEN. A page full of zeros reads
 * as FROZEN too.
 */
#ifndef MUXFLOW_PAGES_H
#define MUXFLOW_PAGES_H

#include <stdint.h>

#define MUX_PAGE_MAGIC   UINT32_C(0x5846554d) /* "MUFX" */
#define MUX_PAGE_VERSION 1

enum mux_page_kind {
    MUX_PAGE_DEVICE = 1,
    MUX_PAGE_CONTROL = 2,
    MUX_PAGE_JOB = 3,
    MUX_PAGE_BEACON = 4,
};

#define MUX_UUID_BYTES    64  /* "GPU-..." and a NUL */
#define MUX_ATTEMPT_BYTES 320 /* directory name of an attempt and a NUL */

/* First bytes of every page. Written once, `magic` last, before the file gets its final name. */
struct mux_page_header {
    uint32_t magic;
    uint16_t kind;
    uint16_t version;
    uint32_t size_bytes; /* of the whole page; a file that is shorter is truncated */
    uint32_t reserved;
    char uuid[MUX_UUID_BYTES]; /* the GPU's; empty in beacon pages, which lie in its directory */
};

/* The gate: one aligned 64-bit word, stored and loaded atomically, so that it is never torn.
 *
 *   bits  0..7   state
 *   bits  8..17  budget, 0..1000 thousandths: cap on the share of wall time in which at least one
 * offline operation runs bits 18..33  window, 0..65535 us: bound on the estimated device time of
 * what is queued and not complete bits 34..63  epoch: number of the state's change, modulo 2^30
 */
enum mux_gate_state {
    MUX_GATE_FROZEN = 0,  /* nothing is launched */
    MUX_GATE_TRICKLE = 1, /* device: only a job that is told to trickle may launch. job: launch
                             under the small budget */
    MUX_GATE_OPEN = 2,
};

#define MUX_GATE_STATE_SHIFT  0
#define MUX_GATE_STATE_MASK   UINT64_C(0xff)
#define MUX_GATE_BUDGET_SHIFT 8
#define MUX_GATE_BUDGET_MASK  UINT64_C(0x3ff)
#define MUX_GATE_WINDOW_SHIFT 18
#define MUX_GATE_WINDOW_MASK  UINT64_C(0xffff)
#define MUX_GATE_EPOCH_SHIFT  34
#define MUX_GATE_EPOCH_MASK   UINT64_C(0x3fffffff)

/* What holds for a job: the stricter of the device's gate and its own.
 *
 *   device \ job   FROZEN   TRICKLE   OPEN
 *   FROZEN         frozen   frozen    frozen
 *   TRICKLE        frozen   trickle   frozen
 *   OPEN           frozen   trickle   open
 *
 * A device is FROZEN when nothing may go on, not even a checkpoint: hard Overlimit, a lost or
 * faulted GPU. It trickles in Overlimit and when it is disabled: frozen, but for a job that is
 * being evicted and may save its state.
 *
 * Budget: the device's for OPEN, the job's for TRICKLE; in both cases at most the device's times
 * the job's share when the device is OPEN. Window: the smaller. */

/* Device state machine, as `muxflow.contracts.DeviceCondition`. */
enum mux_device_condition {
    MUX_DEVICE_INIT = 0,
    MUX_DEVICE_HEALTHY = 1,
    MUX_DEVICE_UNHEALTHY = 2,
    MUX_DEVICE_OVERLIMIT = 3,
    MUX_DEVICE_DISABLED = 4,
};

/* Readings beside the gate, under the sequence lock. A reading that the GPU cannot give is -1,
 * never 0. */
struct mux_device_readings {
    int64_t time_boottime_ns;  /* when they were taken, by CLOCK_BOOTTIME */
    int64_t since_boottime_ns; /* when the condition was entered */
    uint32_t condition;        /* enum mux_device_condition */
    uint32_t hard;             /* 1: Overlimit of the kind in which nothing trickles */
    uint32_t epoch;            /* as in the gate word */
    int32_t sm_activity_permille;
    int32_t utilization_permille;
    int32_t online_activity_permille;
    int32_t offline_busy_permille;
    int32_t sm_clock_mhz;
    int64_t memory_used_bytes;
    int64_t memory_total_bytes;
    int64_t offline_memory_bytes;
    char cause[160]; /* UTF-8, NUL-terminated: which reading crossed which threshold */
};

#define MUX_DEVICE_PAGE_BYTES 4096

struct mux_device_page {
    struct mux_page_header header;
    uint8_t pad0[128 - sizeof(struct mux_page_header)];
    /* offset 128: a cache line of its own */
    uint64_t gate;      /* _Atomic */
    uint64_t heartbeat; /* _Atomic; advanced by the sampling thread itself, never by a helper */
    uint32_t stale_after_ms;
    uint32_t beacon_holdoff_us; /* no offline launch while an online process is active, nor within
                                   this time of it; 0: the beacon is not obeyed */
    uint8_t pad1[64 - 24];
    /* offset 192 */
    uint32_t sequence; /* _Atomic; odd while `readings` is being written */
    uint32_t pad2;
    struct mux_device_readings readings;
};

/* Phases of a job, from the executor. They say why the gate is as it is. */
enum mux_job_phase {
    MUX_JOB_RUN = 0,
    MUX_JOB_CHECKPOINT = 1, /* asked to save: the gate trickles, host copies are paced */
    MUX_JOB_STOP = 2, /* SIGTERM was sent: launch no more, drain, then let the signal through */
    MUX_JOB_STOP_HARD = 3, /* the same without any trickle */
};

#define MUX_CONTROL_PAGE_BYTES 4096

struct mux_control_page {
    struct mux_page_header header;
    uint8_t pad0[128 - sizeof(struct mux_page_header)];
    /* offset 128 */
    uint64_t gate;  /* _Atomic; budget = trickle's budget in TRICKLE, else the job's share of the
                       device's */
    uint32_t phase; /* _Atomic; enum mux_job_phase */
    uint32_t pad1;
    int64_t deadline_boottime_ns; /* _Atomic; of the phase, by CLOCK_BOOTTIME; 0: none */
    uint64_t
        quota_bytes; /* device memory of all processes of the job, contexts included; 0: no limit */
    uint64_t
        context_bytes; /* what one context is charged until the driver tells; 0: ask the driver */
    uint8_t pad2[192 - 168];
    /* offset 192 */
    char attempt[MUX_ATTEMPT_BYTES];
};

/* One process of a job. `owner` names a process for good: pid in the low 32 bits, low 32 bits of
 * its start time (field 22 of /proc/<pid>/stat, clock ticks since boot, in the initial time
 * namespace) in the high ones; 0: free. A slot whose owner no longer lives is free too. It is
 * claimed under a lock on its bytes of the file (F_OFD_SETLK) that is tried and never waited for;
 * all fields are written by the owner alone, each as one word; sums over slots need no lock, and a
 * process that is killed at any instruction leaves nothing to be repaired. */
struct mux_process_slot {
    uint64_t owner;
    uint64_t launches; /* kernels, graphs, device-side copies and memsets let through */
    uint64_t busy_ns;  /* device time in which at least one operation of this process executed */
    uint64_t throttled_ns;  /* time its threads waited for budget or window */
    uint64_t frozen_ns;     /* time its threads waited at a frozen gate */
    uint64_t memory_bytes;  /* charged to the process, context included */
    uint64_t refused_bytes; /* sum of allocations refused because of the quota */
    uint64_t
        inflight_ns;   /* estimated device time of what is launched and not known to be complete */
    uint32_t inflight; /* operations launched and not known to be complete */
    uint32_t drained;  /* 1: nothing is in flight and nothing more will be launched */
    uint32_t gate_epoch;         /* low bits of the device gate's epoch that was last obeyed */
    uint32_t inflation_permille; /* kernel time against each function's own baseline, 1000: as ever;
                                    0: not known */
    uint32_t last_error;         /* first sticky CUDA error (CUresult); 0: none */
    uint32_t last_error_call;    /* index of the call in the table of hooks */
    int64_t last_error_boottime_ns;
    int64_t updated_boottime_ns; /* when the fields above were last written */
    uint8_t reserved[256 - 104];
};

#define MUX_JOB_SLOTS        64
#define MUX_JOB_HEADER_BYTES 512
#define MUX_JOB_PAGE_BYTES   (MUX_JOB_HEADER_BYTES + MUX_JOB_SLOTS * 256)

struct mux_job_page {
    struct mux_page_header header;
    uint8_t pad[MUX_JOB_HEADER_BYTES - sizeof(struct mux_page_header)];
    struct mux_process_slot slots[MUX_JOB_SLOTS];
};

/* What an online process says. It counts its launches, and stores how many of them are known to be
 * complete: no clock, and no word that a reader could see half of. Whoever reads takes the time: a
 * process is *active* while `complete` is not `launches` and either has changed within
 * MUX_BEACON_PATIENCE_US, by the reader's own clock. So one that never says what is complete, was
 * killed or stands still holds nobody up for longer than that. The difference says nothing: of two
 * streams in flight, none is counted as complete before the other. */
struct mux_beacon_slot {
    uint64_t owner; /* as above, in the process's own PID namespace; without /proc its pid alone */
    uint64_t launches; /* _Atomic; kernels, graphs, copies and memsets given to the driver */
    uint64_t complete; /* _Atomic; all launches up to this number are known to be complete */
    uint8_t reserved[64 - 24];
};

#define MUX_BEACON_PATIENCE_US 20000

/* One page per online process, in a directory in which everybody may make files and nobody those of
 * others (mode 1777, made by the monitor). The process makes it itself, under a name with a dot in
 * front; whole, locked (flock) and read-only for everyone it gets its name: a number, in
 * MUX_BEACON_NAME_DIGITS hexadecimal digits.
 *
 * The lock says that the process lives. It belongs to the process's mapping of the file, which
 * needs no descriptor that stays open, and goes however the process ends, exec included. It means
 * the same in all PID namespaces, can be tried by who may only read, and /proc/locks tells in the
 * reader's own namespace whose it is. (F_OFD_GETLK would ask without trying, but nobody tells whose
 * such a lock is.) On a file system that maps another file than it has opened (overlayfs) it goes
 * at once: there a page without a lock is alive as long as its owner is, for readers in its PID
 * namespace.
 *
 * The process takes its page away when it ends by itself; else the monitor does. */
#define MUX_BEACON_NAME_DIGITS 16
#define MUX_BEACON_PROCESSES   64 /* as many pages at a time as a reader looks at */
#define MUX_BEACON_PAGE_BYTES  192

struct mux_beacon_page {
    struct mux_page_header header;
    uint8_t pad0[128 - sizeof(struct mux_page_header)];
    /* offset 128: a cache line of its own */
    struct mux_beacon_slot slot;
};

_Static_assert(sizeof(struct mux_page_header) == 80, "layout");
_Static_assert(sizeof(struct mux_process_slot) == 256, "layout");
_Static_assert(sizeof(struct mux_job_page) == MUX_JOB_PAGE_BYTES, "layout");
_Static_assert(sizeof(struct mux_beacon_slot) == 64, "layout");
_Static_assert(sizeof(struct mux_beacon_page) == MUX_BEACON_PAGE_BYTES, "layout");
_Static_assert(sizeof(struct mux_device_page) <= MUX_DEVICE_PAGE_BYTES, "layout");
_Static_assert(sizeof(struct mux_control_page) <= MUX_CONTROL_PAGE_BYTES, "layout");

#endif
