/* Pages, as a library that is preloaded into somebody's program sees them.
 *
 * Nothing here may crash, block or surprise that program: no allocation, no file descriptor that
 * stays open, no signal handler, no lock that another process could hold. Functions that are not
 * marked as of the launch path make system calls and may change errno.
 *
 * SIGBUS. A load from a mapping kills the program when the file has been truncated under it, and a
 * program that dies with work in flight takes other MPS clients down with it. So:
 *   - The device page and the job control are loaded at every launch, hence mapped. Who may write
 *     them is not the job; their files are read-only even for their owner while nobody opens them
 *     for writing (muxflow_device.pages), so that no open(O_TRUNC) or truncate() goes astray into
 *     them, and they are whole from the start: no hole that a full tmpfs could refuse to fill.
 *   - The job page is writable by the job, so that it may be truncated at any instruction. It is
 *     read and written by the kernel on our behalf, which gives an error where a load or store of
 *     ours would raise the signal: pages_job.c.
 *   - A beacon page belongs to the online process, whose launches shall cost a few instructions: it
 *     stores into its mapping. It has made the file, whole and read-only for everyone, so that only
 *     who means to, or root, can cut it. Offline ones read it as they read the job page:
 *     pages_beacon.c, pages_beacon_own.c.
 */
#ifndef MUXFLOW_PAGES_READ_H
#define MUXFLOW_PAGES_READ_H

#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "muxflow_pages.h"

/* ---- words (launch path) ----------------------------------------------------------------------
 */

static inline uint32_t mux_load32(const uint32_t *word) {
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline uint64_t mux_load64(const uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline int64_t mux_load64s(const int64_t *word) {
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

/* ---- the gate (launch path) -------------------------------------------------------------------
 */

/* A gate word taken apart. One that makes no sense (unknown state, budget above 1000) is FROZEN. */
struct mux_gate {
    enum mux_gate_state state;
    uint32_t budget_permille;
    uint32_t window_us;
    uint32_t epoch;
};

/* Loads a gate word. Never torn; may be a word that mux_gate_unpack finds senseless. */
static inline uint64_t mux_gate_load(const uint64_t *gate) {
    return mux_load64(gate);
}

struct mux_gate mux_gate_unpack(uint64_t word);

/* Values that do not fit are clipped; the epoch is taken modulo 2^30. */
uint64_t mux_gate_pack(struct mux_gate gate);

/* What holds for a job, from the words of the device and of its job control: the table in
 * muxflow_pages.h. The epoch is the device's. A pure function: a caller may keep the result for as
 * long as both words are the same. */
struct mux_gate mux_gate_combine(uint64_t device, uint64_t job);

/* ---- mapped pages ------------------------------------------------------------------------------
 */

/* One page of a directory, mapped read-only. `page` always points to readable memory: to zeros,
 * which read as FROZEN, as long as the page is missing or wrong. It never changes, and what lies
 * there is exchanged as a whole, so that other threads may load from it at any time. */
struct mux_mapping {
    const void *page;
    int error; /* 0, or why there are zeros: see mux_mapping_open */
    enum mux_page_kind kind;
    size_t bytes;
    dev_t device;
    ino_t inode;
    char path[PATH_MAX];
};

/* Maps `directory`/`name`. Returns 0, or the errno why the page is unusable for now: what the
 * system said (ENOENT, EACCES, ...), ENODATA when the file is too short, EBADMSG when its header is
 * that of no page of this kind, EPROTONOSUPPORT when it is of another version. `directory` may be
 * NULL (ENOENT). */
int mux_mapping_open(struct mux_mapping *mapping, const char *directory, const char *name,
                     enum mux_page_kind kind);

/* Looks at the path again: a page that has come, or was replaced or truncated, is noticed. One that
 * can no longer be found (the program has changed its root or its user, the page was removed) stays
 * mapped; the heartbeat tells whether anybody still writes it. Returns as mux_mapping_open. One
 * thread at a time. */
int mux_mapping_refresh(struct mux_mapping *mapping);

void mux_mapping_close(struct mux_mapping *mapping);

/* What both sides of pages.c and pages_job.c share. Both return 0 or an errno as above. */
int mux_page_path(char path[PATH_MAX], const char *directory, const char *name);
int mux_page_check(int fd, enum mux_page_kind kind);

/* ---- heartbeat ---------------------------------------------------------------------------------
 */

/* What one process knows of the device page's heartbeat. The rule: the monitor is alive if the
 * heartbeat has moved within the last `stale_after_ms` of our own CLOCK_MONOTONIC. A reader that
 * sees a heartbeat for the first time, or after a long time, cannot know whether it still moves:
 * then the time of the readings decides (CLOCK_BOOTTIME; a reader in another time namespace finds
 * no sense in it), else it waits until the heartbeat has moved before its eyes. */
struct mux_pulse {
    _Atomic uint64_t beat;
    _Atomic int64_t noted_monotonic_ns; /* when `beat` was first seen */
    _Atomic bool proven;                /* whether that was proof of life */
};

void mux_pulse_start(struct mux_pulse *pulse, const struct mux_device_page *page,
                     int64_t now_monotonic_ns);

/* Refreshes the mapping of a device page; another page has another pulse. */
int mux_device_refresh(struct mux_mapping *device, struct mux_pulse *pulse,
                       int64_t now_monotonic_ns);

/* Called when the heartbeat has another value than the one that was noted. */
bool mux_pulse_moved(struct mux_pulse *pulse, const struct mux_device_page *page, uint64_t beat,
                     int64_t now_monotonic_ns);

/* Whether the monitor is alive (launch path). Several threads may ask at a time. */
static inline bool mux_pulse_fresh(struct mux_pulse *pulse, const struct mux_device_page *page,
                                   int64_t now_monotonic_ns) {
    uint64_t beat = mux_load64(&page->heartbeat);
    if (beat != atomic_load_explicit(&pulse->beat, memory_order_acquire))
        return mux_pulse_moved(pulse, page, beat, now_monotonic_ns);
    int64_t age_ns =
        now_monotonic_ns - atomic_load_explicit(&pulse->noted_monotonic_ns, memory_order_relaxed);
    return age_ns <= (int64_t)mux_load32(&page->stale_after_ms) * 1000000 &&
           atomic_load_explicit(&pulse->proven, memory_order_relaxed);
}

/* ---- readings ----------------------------------------------------------------------------------
 */

/* Copies the readings out. False when they were being written at each of a bounded number of
 * looks, as after a writer that was killed in the middle; `out` is then without meaning. */
bool mux_readings_read(const struct mux_device_page *page, struct mux_device_readings *out);

/* ---- beacon pages: who reads them --------------------------------------------------------------
 */

/* What one reader has seen of a page. */
struct mux_beacon_seen {
    uint64_t launches, complete;
    int64_t changed_ns; /* when they were seen to be others */
};

/* The pages of a directory, as one reader knows them. One thread at a time. */
struct mux_beacon_reader {
    uint8_t *address; /* room to map each page: for the kernel's eyes only */
    size_t stride;    /* from one to the next */
    struct mux_beacon_directory {
        dev_t device;
        ino_t inode;
        off_t bytes;
        struct timespec changed;
    } directory;
    int64_t changed_ns; /* when the directory was first seen to be so */
    int64_t looked_ns;  /* when it was last looked at */
    unsigned pages;     /* behind so many there are none */
    int copy_error;     /* why the files had to be opened to read them; 0: never so far */
    struct mux_beacon_known {
        uint64_t name; /* 0: none */
        bool listed;
        struct mux_beacon_seen seen;
    } known[MUX_BEACON_PROCESSES];
    char path[PATH_MAX];
};

/* A directory that is missing or wrong is one without online processes. */
void mux_beacon_open(struct mux_beacon_reader *reader, const char *device_dir, int64_t now_ns);

/* Lists the directory, whether it looks like it or not. To be called now and then. */
void mux_beacon_refresh(struct mux_beacon_reader *reader);

void mux_beacon_close(struct mux_beacon_reader *reader);

/* How long the online side keeps others off from now on: 0: not at all; INT64_MAX: until it is no
 * longer active; else what is left of the hold-off. One call to the system for all pages, and at
 * most each 0.1 ms one for the directory. A page that has come counts as launched from just now if
 * there is anything in it. */
int64_t mux_beacon_wait_ns(struct mux_beacon_reader *reader, uint32_t holdoff_us, int64_t now_ns);

/* The rule itself, for one slot whose words have just been read. */
int64_t mux_beacon_see(struct mux_beacon_seen *seen, const struct mux_beacon_slot *slot,
                       uint32_t holdoff_us, int64_t now_ns);

/* ---- beacon pages: who writes one --------------------------------------------------------------
 */

/* This process's page, mapped for storing. */
struct mux_beacon {
    uint8_t *address; /* never changes: what lies there is exchanged as a whole */
    struct mux_beacon_slot *slot;
    uint64_t owner; /* 0: no page */
    pid_t pid;
    dev_t device;
    ino_t inode;
    char path[PATH_MAX]; /* of the page; of the directory while there is none */
};

/* Makes a page, or looks whether it is still at its path and whole, and makes another one if not.
 * Returns 0, or the errno why there is none. One thread at a time. */
int mux_beacon_claim(struct mux_beacon *beacon, const char *device_dir);

/* Takes the page's name away; what is stored from now on nobody finds. */
void mux_beacon_end(struct mux_beacon *beacon);

/* In a child after fork: the page is its parent's. */
void mux_beacon_forget(struct mux_beacon *beacon);

/* ---- one job's view of its gate ----------------------------------------------------------------
 */

struct mux_view {
    struct mux_mapping device;
    struct mux_mapping control;
    struct mux_pulse pulse;
};

/* Maps both pages. Whatever is missing or wrong reads as FROZEN; see `.error` of the mappings. */
void mux_view_open(struct mux_view *view, const char *device_dir, const char *job_dir,
                   int64_t now_monotonic_ns);

/* Looks at the paths again. To be called now and then while work goes on, and while the gate is
 * frozen; one thread at a time. */
void mux_view_refresh(struct mux_view *view, int64_t now_monotonic_ns);

void mux_view_close(struct mux_view *view);

static inline const struct mux_device_page *mux_view_device(const struct mux_view *view) {
    return view->device.page;
}

static inline const struct mux_control_page *mux_view_control(const struct mux_view *view) {
    return view->control.page;
}

/* The device's gate word, 0 (FROZEN) when its monitor is not alive (launch path). */
static inline uint64_t mux_view_device_gate(struct mux_view *view, int64_t now_monotonic_ns) {
    const struct mux_device_page *page = mux_view_device(view);
    uint64_t word = mux_gate_load(&page->gate);
    return mux_pulse_fresh(&view->pulse, page, now_monotonic_ns) ? word : 0;
}

/* The job's own gate word (launch path). */
static inline uint64_t mux_view_job_gate(const struct mux_view *view) {
    return mux_gate_load(&mux_view_control(view)->gate);
}

/* ---- processes ---------------------------------------------------------------------------------
 */

/* A process, named for good: see `owner` in muxflow_pages.h. Start times are those of the initial
 * time namespace, so that processes in different ones agree. */

/* 0 when there is no such process, or /proc does not tell. */
uint64_t mux_owner_of(pid_t pid);

/* False once the process has ended, as a zombie too. True in doubt. */
bool mux_owner_lives(uint64_t owner);

/* ---- the job page ------------------------------------------------------------------------------
 */

/* The job page and this process's slot in it. All calls of one process are to be serialised by the
 * caller. A child after fork has no slot: it calls mux_job_claim again. */
struct mux_job {
    uint8_t *address; /* where the page is mapped: for the kernel's eyes only */
    unsigned slot;
    uint64_t owner; /* 0: no slot */
    int copy_error; /* why the file is opened for each look and change; 0: it is not */
    char path[PATH_MAX];
};

/* Maps the page and claims a slot. Returns 0, an errno as mux_mapping_open, ENOSPC when every slot
 * belongs to a live process, or EPERM or ENOSYS where a sandbox forbids process_vm_writev alone. */
int mux_job_claim(struct mux_job *job, const char *job_dir);

/* Ends what this process said as another program, before exec: the memory of that one is free, and
 * nothing is in flight. To be called before this one claims a slot. */
void mux_job_end_former(const char *job_dir);

/* Writes everything of `counters` but the owner into the slot. Returns 0; ESTALE when the slot is
 * no longer this process's, EFAULT when the page has been truncated or unmapped. */
int mux_job_publish(const struct mux_job *job, const struct mux_process_slot *counters);

/* Charges the process with `memory_bytes` in all instead of `before_bytes`. Returns 0; EDQUOT, with
 * nothing changed, when the live processes of the job would then hold more than `quota_bytes` (0:
 * no limit); else as mux_job_publish. Lock-free: of processes that race for the last bytes at the
 * same time, all may be refused, but never is too much given. */
int mux_job_charge(const struct mux_job *job, uint64_t before_bytes, uint64_t memory_bytes,
                   uint64_t quota_bytes);

/* Copies all slots out. Returns 0, or EFAULT as mux_job_publish. Slots of the dead are included:
 * ask mux_owner_lives. */
int mux_job_read(const struct mux_job *job, struct mux_process_slot slots[MUX_JOB_SLOTS]);

/* Gives the slot back and unmaps the page. */
void mux_job_release(struct mux_job *job);

/* What all processes of a job have spent of its budget, as one of them sees it. */
struct mux_spending {
    uint64_t total_ns; /* device time since the first update, summed over processes; what ended ones
                          spent stays in it */
    bool begun;
    uint64_t owner[MUX_JOB_SLOTS];
    uint64_t busy_ns[MUX_JOB_SLOTS];
};

/* Brings `spending`, which starts as zeros, up to date from slots that were just read. */
void mux_spending_update(struct mux_spending *spending,
                         const struct mux_process_slot slots[MUX_JOB_SLOTS]);

#endif
