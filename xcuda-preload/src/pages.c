/* The mapped pages: gate, heartbeat, readings. */
#include "pages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- the gate ----------------------------------------------------------------------------------
 */

static uint32_t field(uint64_t word, unsigned shift, uint64_t mask) {
    return (uint32_t)(word >> shift & mask);
}

static uint64_t clipped(uint32_t value, uint64_t most) {
    return value < most ? value : most;
}

struct mux_gate mux_gate_unpack(uint64_t word) {
    struct mux_gate gate = {
        .state = field(word, MUX_GATE_STATE_SHIFT, MUX_GATE_STATE_MASK),
        .budget_permille = field(word, MUX_GATE_BUDGET_SHIFT, MUX_GATE_BUDGET_MASK),
        .window_us = field(word, MUX_GATE_WINDOW_SHIFT, MUX_GATE_WINDOW_MASK),
        .epoch = field(word, MUX_GATE_EPOCH_SHIFT, MUX_GATE_EPOCH_MASK),
    };
    if (gate.state > MUX_GATE_OPEN || gate.budget_permille > 1000) {
        gate.state = MUX_GATE_FROZEN;
        gate.budget_permille = 0;
    }
    return gate;
}

uint64_t mux_gate_pack(struct mux_gate gate) {
    return clipped(gate.state, MUX_GATE_OPEN) << MUX_GATE_STATE_SHIFT |
           clipped(gate.budget_permille, 1000) << MUX_GATE_BUDGET_SHIFT |
           clipped(gate.window_us, MUX_GATE_WINDOW_MASK) << MUX_GATE_WINDOW_SHIFT |
           (gate.epoch & MUX_GATE_EPOCH_MASK) << MUX_GATE_EPOCH_SHIFT;
}

static uint32_t smaller(uint32_t one, uint32_t other) {
    return one < other ? one : other;
}

static enum mux_gate_state stricter(enum mux_gate_state device, enum mux_gate_state job) {
    switch (device) {
    case MUX_GATE_OPEN:
        return job;
    case MUX_GATE_TRICKLE:
        return job == MUX_GATE_TRICKLE ? MUX_GATE_TRICKLE : MUX_GATE_FROZEN;
    default:
        return MUX_GATE_FROZEN;
    }
}

static uint32_t budget(struct mux_gate device, struct mux_gate job, enum mux_gate_state state) {
    if (state == MUX_GATE_OPEN) /* the job's is a share of the device's */
        return device.budget_permille * job.budget_permille / 1000;
    /* The job's is the trickle's own; the device's means something only while it is open. */
    return device.state == MUX_GATE_OPEN ? smaller(device.budget_permille, job.budget_permille)
                                         : job.budget_permille;
}

struct mux_gate mux_gate_combine(uint64_t device_word, uint64_t job_word) {
    struct mux_gate device = mux_gate_unpack(device_word);
    struct mux_gate job = mux_gate_unpack(job_word);
    enum mux_gate_state state = stricter(device.state, job.state);
    if (state == MUX_GATE_FROZEN)
        return (struct mux_gate){.state = state, .epoch = device.epoch};
    return (struct mux_gate){
        .state = state,
        .budget_permille = budget(device, job, state),
        .window_us = smaller(device.window_us, job.window_us),
        .epoch = device.epoch,
    };
}

/* ---- mapped pages ------------------------------------------------------------------------------
 */

static size_t bytes_of(enum mux_page_kind kind) {
    switch (kind) {
    case MUX_PAGE_DEVICE:
        return MUX_DEVICE_PAGE_BYTES;
    case MUX_PAGE_CONTROL:
        return MUX_CONTROL_PAGE_BYTES;
    case MUX_PAGE_JOB:
        return MUX_JOB_PAGE_BYTES;
    case MUX_PAGE_BEACON:
        return MUX_BEACON_PAGE_BYTES;
    }
    return 0;
}

int mux_page_check(int fd, enum mux_page_kind kind) {
    struct stat file;
    if (fstat(fd, &file) != 0)
        return errno;
    if (!S_ISREG(file.st_mode))
        return EBADMSG;
    if (file.st_size < (off_t)bytes_of(kind))
        return ENODATA;
    struct mux_page_header header;
    if (pread(fd, &header, sizeof header, 0) != (ssize_t)sizeof header)
        return ENODATA;
    if (header.magic != MUX_PAGE_MAGIC || header.kind != kind)
        return EBADMSG;
    if (header.version != MUX_PAGE_VERSION || header.size_bytes != bytes_of(kind))
        return EPROTONOSUPPORT;
    return 0;
}

int mux_page_path(char path[PATH_MAX], const char *directory, const char *name) {
    int length = directory ? snprintf(path, PATH_MAX, "%s/%s", directory, name) : 0;
    if (length > 0 && length < PATH_MAX)
        return 0;
    path[0] = '\0';
    return length ? ENAMETOOLONG : ENOENT;
}

/* Exchanges what lies at `page` in one step: other threads see the old or the new, never nothing.
 * Returns 0 or errno; then the old is still there. */
static int put(struct mux_mapping *mapping, int fd) {
    int flags = MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
    void *at = mmap((void *)mapping->page, mapping->bytes, PROT_READ, flags, fd, 0);
    return at == MAP_FAILED ? errno : 0;
}

/* Zeros read as FROZEN. */
static int unusable(struct mux_mapping *mapping, int error) {
    if (!mapping->error)
        put(mapping, -1);
    mapping->error = error;
    return error;
}

int mux_mapping_refresh(struct mux_mapping *mapping) {
    if (!mapping->bytes)
        return mapping->error;
    struct stat file;
    if (stat(mapping->path, &file) != 0)
        return mapping->error ? mapping->error = errno : 0; /* what is mapped outlives its name */
    bool same = file.st_dev == mapping->device && file.st_ino == mapping->inode;
    if (!mapping->error && same && file.st_size >= (off_t)mapping->bytes)
        return 0;
    /* O_NONBLOCK: whatever lies there, a FIFO too, must not hold the program up. */
    int fd = open(mapping->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return unusable(mapping, errno);
    int error = mux_page_check(fd, mapping->kind);
    if (!error && fstat(fd, &file) == 0)
        error = put(mapping, fd);
    close(fd);
    if (error)
        return unusable(mapping, error);
    mapping->device = file.st_dev;
    mapping->inode = file.st_ino;
    return mapping->error = 0;
}

int mux_mapping_open(struct mux_mapping *mapping, const char *directory, const char *name,
                     enum mux_page_kind kind) {
    static const uint8_t zeros[MUX_JOB_PAGE_BYTES] __attribute__((aligned(8)));
    *mapping = (struct mux_mapping){.page = zeros, .kind = kind};
    int error = mux_page_path(mapping->path, directory, name);
    if (error)
        return mapping->error = error;
    size_t bytes = bytes_of(kind);
    void *at = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return mapping->error = errno;
    mapping->page = at;
    mapping->bytes = bytes;
    mapping->error = ENOENT;
    return mux_mapping_refresh(mapping);
}

void mux_mapping_close(struct mux_mapping *mapping) {
    if (mapping->bytes)
        munmap((void *)mapping->page, mapping->bytes);
    *mapping = (struct mux_mapping){.page = NULL, .error = ENOENT};
}

/* ---- heartbeat ---------------------------------------------------------------------------------
 */

static int64_t stale_after_ns(const struct mux_device_page *page) {
    return (int64_t)mux_load32(&page->stale_after_ms) * 1000000;
}

/* Whether the readings were taken a moment ago, by the clock that all processes share unless a time
 * namespace keeps them apart. */
static bool just_read(const struct mux_device_page *page) {
    struct mux_device_readings readings;
    struct timespec now;
    if (clock_gettime(CLOCK_BOOTTIME, &now) != 0 || !mux_readings_read(page, &readings))
        return false;
    int64_t now_ns = now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
    int64_t taken_ns = readings.time_boottime_ns;
    return taken_ns > 0 && taken_ns <= now_ns && now_ns - taken_ns <= stale_after_ns(page);
}

/* `beat` goes last: who sees it sees what belongs to it. */
static bool note(struct mux_pulse *pulse, uint64_t beat, int64_t now_ns, bool proven) {
    atomic_store_explicit(&pulse->noted_monotonic_ns, now_ns, memory_order_relaxed);
    atomic_store_explicit(&pulse->proven, proven, memory_order_relaxed);
    atomic_store_explicit(&pulse->beat, beat, memory_order_release);
    return proven;
}

void mux_pulse_start(struct mux_pulse *pulse, const struct mux_device_page *page,
                     int64_t now_monotonic_ns) {
    note(pulse, mux_load64(&page->heartbeat), now_monotonic_ns, just_read(page));
}

int mux_device_refresh(struct mux_mapping *device, struct mux_pulse *pulse,
                       int64_t now_monotonic_ns) {
    ino_t inode = device->inode;
    int before = device->error;
    int error = mux_mapping_refresh(device);
    if (device->inode != inode || error != before)
        mux_pulse_start(pulse, device->page, now_monotonic_ns);
    return error;
}

bool mux_pulse_moved(struct mux_pulse *pulse, const struct mux_device_page *page, uint64_t beat,
                     int64_t now_monotonic_ns) {
    int64_t age_ns =
        now_monotonic_ns - atomic_load_explicit(&pulse->noted_monotonic_ns, memory_order_relaxed);
    /* It moved between two looks of ours that lie close together, or else somewhen. */
    bool proven = age_ns <= stale_after_ns(page) || just_read(page);
    return note(pulse, beat, now_monotonic_ns, proven);
}

/* ---- readings ----------------------------------------------------------------------------------
 */

/* Loads that acquire (and, on the writer's side, stores that release) need no fence between them
 * and the sequence number: see mux_readings_write. */
bool mux_readings_read(const struct mux_device_page *page, struct mux_device_readings *out) {
    enum { LOOKS = 64, WORDS = sizeof *out / sizeof(uint64_t) };
    _Static_assert(sizeof *out % sizeof(uint64_t) == 0, "readings are whole words");
    const uint64_t *words = (const void *)&page->readings;
    uint64_t copy[WORDS];
    for (int look = 0; look < LOOKS; look++) {
        uint32_t before = mux_load32(&page->sequence);
        if (before & 1)
            continue;
        for (int i = 0; i < WORDS; i++)
            copy[i] = mux_load64(&words[i]);
        if (mux_load32(&page->sequence) != before)
            continue;
        memcpy(out, copy, sizeof *out);
        out->cause[sizeof out->cause - 1] = '\0';
        return true;
    }
    return false;
}

/* ---- one job's view of its gate ----------------------------------------------------------------
 */

void mux_view_open(struct mux_view *view, const char *device_dir, const char *job_dir,
                   int64_t now_monotonic_ns) {
    mux_mapping_open(&view->device, device_dir, "device", MUX_PAGE_DEVICE);
    mux_mapping_open(&view->control, job_dir, "control", MUX_PAGE_CONTROL);
    mux_pulse_start(&view->pulse, mux_view_device(view), now_monotonic_ns);
}

void mux_view_refresh(struct mux_view *view, int64_t now_monotonic_ns) {
    mux_device_refresh(&view->device, &view->pulse, now_monotonic_ns);
    mux_mapping_refresh(&view->control);
}

void mux_view_close(struct mux_view *view) {
    mux_mapping_close(&view->device);
    mux_mapping_close(&view->control);
}
