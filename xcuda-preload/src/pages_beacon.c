/* The beacon page: slots of online processes.
 *
 * Any process may write this file, so it can be truncated at any instruction. Readers let the
 * kernel read it, as the job page: see there. A writer counts at each launch, and stores into its
 * mapping: it looks now and then whether the file is whole, and has nobody else to fear than a
 * program that truncates pages.
 *
 * A slot is claimed under a lock on its own bytes that is tried and never waited for, as in the job
 * page; from then on its owner alone writes it. */
#include "pages.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define PATIENCE_NS (INT64_C(1000) * MUX_BEACON_PATIENCE_US)

static size_t slot_offset(unsigned slot) {
    return offsetof(struct mux_beacon_page, slots) + slot * sizeof(struct mux_beacon_slot);
}

/* ---- reading -----------------------------------------------------------------------------------
 */

/* Copies the first slots out. False when the page has been truncated under the mapping. */
static bool copy_out(const struct mux_beacon_reader *reader, struct mux_beacon_slot *slots,
                     unsigned count) {
    size_t bytes = count * sizeof *slots;
    struct iovec here = {slots, bytes};
    struct iovec page = {(uint8_t *)reader->page.page + slot_offset(0), bytes};
    int before = errno;
    ssize_t done = process_vm_readv(getpid(), &here, 1, &page, 1, 0);
    errno = before;
    return done == (ssize_t)bytes;
}

int64_t mux_beacon_see(struct mux_beacon_seen *seen, const struct mux_beacon_slot *slot,
                       uint32_t holdoff_us, int64_t now_ns) {
    if (slot->owner == 0)
        return 0;
    if (slot->launches != seen->launches || slot->complete != seen->complete)
        *seen = (struct mux_beacon_seen){slot->launches, slot->complete, now_ns};
    int64_t since_ns = now_ns - seen->changed_ns;
    if (slot->launches != slot->complete && since_ns < PATIENCE_NS)
        return INT64_MAX;
    int64_t left_ns = (int64_t)holdoff_us * 1000 - since_ns;
    return left_ns > 0 ? left_ns : 0;
}

int64_t mux_beacon_wait_ns(struct mux_beacon_reader *reader, uint32_t holdoff_us, int64_t now_ns) {
    struct mux_beacon_slot slots[MUX_BEACON_SLOTS];
    if (holdoff_us == 0 || reader->slots == 0 || !copy_out(reader, slots, reader->slots))
        return 0;
    int64_t wait_ns = 0;
    for (unsigned i = 0; i < reader->slots; i++) {
        int64_t slot_ns = mux_beacon_see(&reader->seen[i], &slots[i], holdoff_us, now_ns);
        if (slot_ns > wait_ns)
            wait_ns = slot_ns;
    }
    return wait_ns;
}

/* A slot that comes into view is not taken as having changed: its process may be long idle. */
void mux_beacon_refresh(struct mux_beacon_reader *reader, int64_t now_ns) {
    struct mux_beacon_slot slots[MUX_BEACON_SLOTS];
    unsigned before = reader->slots;
    reader->slots = 0;
    if (mux_mapping_refresh(&reader->page) != 0 || !copy_out(reader, slots, MUX_BEACON_SLOTS))
        return;
    for (unsigned i = 0; i < MUX_BEACON_SLOTS; i++) {
        if (slots[i].owner == 0)
            continue;
        reader->slots = i + 1;
        if (i >= before)
            reader->seen[i] = (struct mux_beacon_seen){slots[i].launches, slots[i].complete,
                                                       now_ns - PATIENCE_NS};
    }
}

void mux_beacon_open(struct mux_beacon_reader *reader, const char *device_dir, int64_t now_ns) {
    *reader = (struct mux_beacon_reader){.slots = 0};
    mux_mapping_open(&reader->page, device_dir, "beacon", MUX_PAGE_BEACON);
    mux_beacon_refresh(reader, now_ns);
}

void mux_beacon_close(struct mux_beacon_reader *reader) {
    mux_mapping_close(&reader->page);
    reader->slots = 0;
}

/* ---- claiming ----------------------------------------------------------------------------------
 */

static bool lock_slot(int fd, unsigned slot, short type) {
    struct flock lock = {
        .l_type = type,
        .l_whence = SEEK_SET,
        .l_start = (off_t)slot_offset(slot),
        .l_len = sizeof(struct mux_beacon_slot),
    };
    return fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

static uint64_t owner_of(int fd, unsigned slot) {
    uint64_t owner;
    ssize_t got = pread(fd, &owner, sizeof owner, (off_t)slot_offset(slot));
    return got == sizeof owner ? owner : 0;
}

static bool is_free(int fd, unsigned slot, uint64_t claimer) {
    uint64_t owner = owner_of(fd, slot);
    return owner == 0 || owner == claimer || !mux_owner_lives(owner);
}

/* The owner goes last: a reader sees nobody's slot, or a fresh one. */
static bool take(int fd, unsigned slot, uint64_t owner) {
    struct mux_beacon_slot fresh = {.owner = 0};
    off_t at = (off_t)slot_offset(slot);
    return pwrite(fd, &fresh, sizeof fresh, at) == sizeof fresh &&
           pwrite(fd, &owner, sizeof owner, at) == sizeof owner;
}

/* Low slots first, so that readers have few to look at. */
static int claim_any(int fd, uint64_t owner, unsigned *claimed) {
    for (unsigned slot = 0; slot < MUX_BEACON_SLOTS; slot++) {
        if (!is_free(fd, slot, owner) || !lock_slot(fd, slot, F_WRLCK))
            continue;
        bool taken = is_free(fd, slot, owner) && take(fd, slot, owner);
        lock_slot(fd, slot, F_UNLCK);
        if (taken) {
            *claimed = slot;
            return 0;
        }
    }
    return ENOSPC;
}

/* Exchanges what lies at the address in one step; the first time, finds an address. */
static int put(struct mux_beacon *beacon, int fd) {
    int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    if (beacon->address != NULL)
        flags |= MAP_FIXED;
    void *at = mmap(beacon->address, MUX_BEACON_PAGE_BYTES, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (at == MAP_FAILED)
        return errno;
    beacon->address = at;
    return 0;
}

static bool still_ours(const struct mux_beacon *beacon) {
    struct stat file;
    if (beacon->owner == 0)
        return false;
    if (stat(beacon->path, &file) != 0)
        return true; /* what is mapped outlives its name */
    return file.st_dev == beacon->device && file.st_ino == beacon->inode &&
           file.st_size >= MUX_BEACON_PAGE_BYTES &&
           mux_load64(&beacon->slot->owner) == beacon->owner;
}

static int claim_in(struct mux_beacon *beacon, int fd) {
    struct stat file;
    unsigned slot;
    int error = mux_page_check(fd, MUX_PAGE_BEACON);
    if (error != 0)
        return error;
    uint64_t owner = mux_owner_of(getpid());
    if (owner == 0 || fstat(fd, &file) != 0)
        return ESRCH;
    if ((error = claim_any(fd, owner, &slot)) != 0 || (error = put(beacon, fd)) != 0)
        return error;
    beacon->slot = (void *)(beacon->address + slot_offset(slot));
    beacon->device = file.st_dev;
    beacon->inode = file.st_ino;
    beacon->owner = owner;
    return 0;
}

int mux_beacon_claim(struct mux_beacon *beacon, const char *device_dir) {
    if (still_ours(beacon))
        return 0;
    if (beacon->owner != 0) /* whoever still counts there counts in nobody's memory */
        put(beacon, -1);
    beacon->owner = 0;
    int error = mux_page_path(beacon->path, device_dir, "beacon");
    if (error != 0)
        return error;
    int fd = open(beacon->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return errno;
    error = claim_in(beacon, fd);
    close(fd);
    return error;
}
