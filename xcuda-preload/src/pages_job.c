/* The job page: slots of a job's processes.
 *
 * The job can write this file, so it can truncate it, and a load or store beyond the end of a file
 * raises SIGBUS. Looking at the size first would leave a moment in between; a handler for SIGBUS
 * would be seen by the program, and would fight with the one it may have (JVM, faulthandler). So
 * the page is mapped, but only the kernel touches it, on our behalf: process_vm_readv and _writev
 * on ourselves give EFAULT where we would be killed. Neither needs a descriptor, which a program
 * that closes all it has would close, and use the number for a file of its own. They cost about a
 * microsecond, and nothing of this is done per launch.
 *
 * That leaves no compare-and-swap. A slot is claimed under a lock on its own bytes, which is only
 * ever tried, never waited for, and which the kernel takes away from a process that dies: whoever
 * stops or dies in the middle costs others at most this slot. From then on its owner alone writes
 * the slot. */
#include "pages.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define OWNER_BYTES sizeof(uint64_t)

static size_t slot_offset(unsigned slot) {
    return offsetof(struct mux_job_page, slots) + slot * sizeof(struct mux_process_slot);
}

typedef ssize_t transfer(pid_t, const struct iovec *, unsigned long, const struct iovec *,
                         unsigned long, unsigned long);

static ssize_t copy_self(transfer *call, const struct mux_job *job, size_t offset, void *own,
                         size_t bytes) {
    struct iovec here = {own, bytes};
    struct iovec page = {job->address + offset, bytes};
    pid_t self = (pid_t)syscall(SYS_gettid); /* the first thread may have ended */
    return call(self, &here, 1, &page, 1, 0);
}

/* A write beyond the limit would be answered with a signal. */
static bool may_write(void) {
    struct rlimit limit;
    return getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur >= MUX_JOB_PAGE_BYTES;
}

/* Where a sandbox forbids to copy. */
static ssize_t copy_by_file(transfer *call, const struct mux_job *job, size_t offset, void *own,
                            size_t bytes) {
    bool out = call == process_vm_readv;
    if (!out && !may_write()) {
        errno = EFBIG;
        return -1;
    }
    int flags = O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY;
    int fd = open(job->path, flags | (out ? O_RDONLY : O_RDWR));
    if (fd < 0)
        return -1;
    ssize_t done =
        out ? pread(fd, own, bytes, (off_t)offset) : pwrite(fd, own, bytes, (off_t)offset);
    int error = errno;
    close(fd);
    errno = error;
    return done;
}

static int copy(transfer *call, const struct mux_job *job, size_t offset, void *own, size_t bytes) {
    int before = errno;
    ssize_t done = job->copy_error == 0 ? copy_self(call, job, offset, own, bytes)
                                        : copy_by_file(call, job, offset, own, bytes);
    int error = done == (ssize_t)bytes ? 0 : done >= 0 ? EFAULT : errno;
    errno = before;
    return error;
}

static int copy_out(const struct mux_job *job, size_t offset, void *own, size_t bytes) {
    return copy(process_vm_readv, job, offset, own, bytes);
}

static int copy_in(const struct mux_job *job, size_t offset, const void *own, size_t bytes) {
    return copy(process_vm_writev, job, offset, (void *)own, bytes);
}

/* Why the page has to be read and written by its file; 0: it has not. */
static int try_to_copy(const struct mux_job *job) {
    uint64_t owner;
    if (copy_self(process_vm_readv, job, slot_offset(0), &owner, OWNER_BYTES) >= 0)
        return 0;
    return errno == EPERM || errno == ENOSYS ? errno : 0;
}

/* ---- claiming ----------------------------------------------------------------------------------
 */

/* Tries to lock the slot's bytes, by an open file description of this call alone: other threads and
 * processes exclude each other, and closing it ends the lock. */
static bool lock_slot(int fd, unsigned slot, short type) {
    struct flock lock = {
        .l_type = type,
        .l_whence = SEEK_SET,
        .l_start = (off_t)slot_offset(slot),
        .l_len = sizeof(struct mux_process_slot),
    };
    return fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

static int take(struct mux_job *job, unsigned slot) {
    uint64_t owner;
    int error = copy_out(job, slot_offset(slot), &owner, OWNER_BYTES);
    if (error)
        return error;
    if (owner && owner != job->owner && mux_owner_lives(owner))
        return EAGAIN;
    struct mux_process_slot fresh = {.owner = job->owner};
    job->slot = slot;
    return copy_in(job, slot_offset(slot), &fresh, sizeof fresh);
}

/* Who finds a slot locked goes on to the next: somebody else is about to take it, or sees that it
 * is not to be had. */
static int claim_slot(struct mux_job *job, int fd, unsigned slot) {
    if (!lock_slot(fd, slot, F_WRLCK))
        return EAGAIN;
    int error = take(job, slot);
    lock_slot(fd, slot, F_UNLCK);
    return error;
}

/* Those of the process itself come first, then those that are free by the look of it: asking /proc
 * about each owner is slow. */
static int claim_any(struct mux_job *job, int fd) {
    struct mux_process_slot slots[MUX_JOB_SLOTS];
    int error = mux_job_read(job, slots);
    for (int pass = 0; !error && pass < 3; pass++) {
        for (unsigned slot = 0; slot < MUX_JOB_SLOTS; slot++) {
            int turn = slots[slot].owner == job->owner ? 0 : slots[slot].owner == 0 ? 1 : 2;
            if (turn != pass)
                continue;
            int outcome = claim_slot(job, fd, slot);
            if (outcome != EAGAIN)
                return outcome;
        }
    }
    return error ? error : ENOSPC;
}

int mux_job_claim(struct mux_job *job, const char *job_dir) {
    *job = (struct mux_job){.slot = MUX_JOB_SLOTS};
    int error = mux_page_path(job->path, job_dir, "job");
    if (error)
        return error;
    int fd = open(job->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return errno;
    error = mux_page_check(fd, MUX_PAGE_JOB);
    if (!error) {
        void *at = mmap(NULL, MUX_JOB_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        error = at == MAP_FAILED ? errno : 0;
        job->address = error ? NULL : at;
    }
    if (!error) {
        job->copy_error = try_to_copy(job);
        job->owner = mux_owner_of(getpid());
        error = job->owner ? claim_any(job, fd) : ESRCH;
    }
    close(fd);
    if (error) {
        job->owner = 0;
        mux_job_release(job);
    }
    return error;
}

void mux_job_release(struct mux_job *job) {
    if (job->owner) {
        static const struct mux_process_slot nobody;
        uint64_t owner;
        if (copy_out(job, slot_offset(job->slot), &owner, OWNER_BYTES) == 0 && owner == job->owner)
            copy_in(job, slot_offset(job->slot), &nobody, sizeof nobody);
    }
    if (job->address)
        munmap(job->address, MUX_JOB_PAGE_BYTES);
    job->address = NULL;
    job->owner = 0;
    job->slot = MUX_JOB_SLOTS;
}

/* ---- exec --------------------------------------------------------------------------------------
 */

/* All that a program which is no more could still have said. */
static void end(int fd, unsigned slot, struct mux_process_slot *said) {
    size_t from = offsetof(struct mux_process_slot, memory_bytes);
    size_t bytes = offsetof(struct mux_process_slot, gate_epoch) - from;
    if (said->memory_bytes == 0 && said->inflight == 0 && said->drained)
        return;
    said->memory_bytes = said->inflight_ns = 0;
    said->inflight = 0;
    said->drained = 1;
    ssize_t done =
        pwrite(fd, (const uint8_t *)said + from, bytes, (off_t)(slot_offset(slot) + from));
    (void)done; /* a full file system does not matter to a page that is there */
}

void mux_job_end_former(const char *job_dir) {
    struct mux_process_slot slots[MUX_JOB_SLOTS];
    char path[PATH_MAX];
    if (mux_page_path(path, job_dir, "job") != 0)
        return;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return;
    bool whole = mux_page_check(fd, MUX_PAGE_JOB) == 0 &&
                 pread(fd, slots, sizeof slots, (off_t)slot_offset(0)) == (ssize_t)sizeof slots;
    uint64_t own = 0; /* looked up only if there may be something */
    for (unsigned i = 0; whole && i < MUX_JOB_SLOTS; i++) {
        if ((pid_t)(uint32_t)slots[i].owner != getpid())
            continue;
        own = own != 0 ? own : mux_owner_of(getpid());
        if (slots[i].owner == own)
            end(fd, i, &slots[i]);
    }
    close(fd);
}

/* ---- publishing --------------------------------------------------------------------------------
 */

/* A page that was truncated and has grown again is all zeros: the slot is not ours any more. */
static int check_ours(const struct mux_job *job) {
    uint64_t owner;
    if (!job->owner)
        return ESTALE;
    int error = copy_out(job, slot_offset(job->slot), &owner, OWNER_BYTES);
    return error ? error : owner == job->owner ? 0 : ESTALE;
}

int mux_job_publish(const struct mux_job *job, const struct mux_process_slot *counters) {
    int error = check_ours(job);
    if (error)
        return error;
    return copy_in(job, slot_offset(job->slot) + OWNER_BYTES,
                   (const uint8_t *)counters + OWNER_BYTES, sizeof *counters - OWNER_BYTES);
}

int mux_job_read(const struct mux_job *job, struct mux_process_slot slots[MUX_JOB_SLOTS]) {
    if (!job->address)
        return EFAULT;
    return copy_out(job, slot_offset(0), slots, MUX_JOB_SLOTS * sizeof *slots);
}

/* ---- memory ------------------------------------------------------------------------------------
 */

static int write_memory(const struct mux_job *job, uint64_t memory_bytes) {
    size_t offset = slot_offset(job->slot) + offsetof(struct mux_process_slot, memory_bytes);
    return copy_in(job, offset, &memory_bytes, sizeof memory_bytes);
}

/* Whether all processes but this one leave room for `own_bytes`. The dead are looked for only if it
 * matters. Nothing overflows: what does not fit is counted down from the quota. */
static bool fits(const struct mux_job *job, const struct mux_process_slot *slots,
                 uint64_t own_bytes, uint64_t quota_bytes, bool living_only) {
    if (own_bytes > quota_bytes)
        return false;
    uint64_t left = quota_bytes - own_bytes;
    for (unsigned i = 0; i < MUX_JOB_SLOTS; i++) {
        if (i == job->slot || !slots[i].owner || !slots[i].memory_bytes)
            continue;
        if (living_only && !mux_owner_lives(slots[i].owner))
            continue;
        if (slots[i].memory_bytes > left)
            return false;
        left -= slots[i].memory_bytes;
    }
    return true;
}

int mux_job_charge(const struct mux_job *job, uint64_t before_bytes, uint64_t memory_bytes,
                   uint64_t quota_bytes) {
    int error = check_ours(job);
    if (error)
        return error;
    error = write_memory(job, memory_bytes);
    if (error || !quota_bytes || memory_bytes <= before_bytes)
        return error;
    /* First everybody says what he wants, then he looks: of two who race, one sees the other. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    struct mux_process_slot slots[MUX_JOB_SLOTS];
    error = mux_job_read(job, slots);
    if (!error && !fits(job, slots, memory_bytes, quota_bytes, false) &&
        !fits(job, slots, memory_bytes, quota_bytes, true))
        error = EDQUOT;
    if (error)
        write_memory(job, before_bytes);
    return error;
}

/* ---- budget ------------------------------------------------------------------------------------
 */

void mux_spending_update(struct mux_spending *spending,
                         const struct mux_process_slot slots[MUX_JOB_SLOTS]) {
    for (unsigned i = 0; i < MUX_JOB_SLOTS; i++) {
        bool known = slots[i].owner == spending->owner[i];
        uint64_t since = known ? spending->busy_ns[i] : 0;
        if (slots[i].owner && spending->begun && slots[i].busy_ns > since)
            spending->total_ns += slots[i].busy_ns - since;
        spending->owner[i] = slots[i].owner;
        spending->busy_ns[i] = slots[i].busy_ns;
    }
    spending->begun = true;
}
