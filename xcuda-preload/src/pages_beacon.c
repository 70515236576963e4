/* Beacon pages, for who reads them: which there are, and what they say.
 *
 * Others write these files, so that one can be cut at any instruction. They are mapped, but only
 * the kernel reads them, as the job page: see there. One call copies from all.
 *
 * A page that has come shall be seen within 0.1 ms, without listing the directory each time. Its
 * time of change tells; no descriptor that stays open, as inotify would need, and no file of ours
 * that everybody writes. That time has the grain of the kernel's tick, at most 10 ms: what comes in
 * the same tick as a change that has been seen does not show. So the directory is listed again and
 * again until it has looked the same for longer than that, by our own clock. A page is there before
 * its process has a context, so that the first launch finds it known. */
#include "pages.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PATIENCE_NS (INT64_C(1000) * MUX_BEACON_PATIENCE_US)
#define SETTLED_NS  INT64_C(20000000)
#define STAT_NS     INT64_C(100000) /* between two looks at the directory */

/* Bounds of one listing, for a directory that is full of other things. */
enum { PARTS = 32, PART_BYTES = 2048, TRIES = 256 };

/* ---- which there are ---------------------------------------------------------------------------
 */

static uint8_t *room_of(const struct mux_beacon_reader *reader, unsigned page) {
    return reader->address + page * reader->stride;
}

static void drop(struct mux_beacon_reader *reader, unsigned page) {
    reader->known[page].name = 0;
    mmap(room_of(reader, page), reader->stride, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS,
         -1, 0);
    while (reader->pages > 0 && reader->known[reader->pages - 1].name == 0)
        reader->pages--;
}

/* 0: not the name of a page. */
static uint64_t number_of(const char *name) {
    static const char digits[] = "0123456789abcdef";
    uint64_t number = 0;
    for (unsigned i = 0; i < MUX_BEACON_NAME_DIGITS; i++) {
        const char *digit = name[i] == '\0' ? NULL : strchr(digits, name[i]);
        if (digit == NULL)
            return 0;
        number = number << 4 | (uint64_t)(digit - digits);
    }
    return name[MUX_BEACON_NAME_DIGITS] == '\0' ? number : 0;
}

/* True in doubt. */
static bool lives(int fd) {
    uint64_t owner;
    if (flock(fd, LOCK_SH | LOCK_NB) != 0)
        return true;
    ssize_t got = pread(fd, &owner, sizeof owner, offsetof(struct mux_beacon_page, slot.owner));
    return got == sizeof owner && mux_owner_lives(owner);
}

static bool map(const struct mux_beacon_reader *reader, unsigned page, int fd) {
    return mux_page_check(fd, MUX_PAGE_BEACON) == 0 && lives(fd) &&
           mmap(room_of(reader, page), MUX_BEACON_PAGE_BYTES, PROT_READ, MAP_FIXED | MAP_SHARED, fd,
                0) != MAP_FAILED;
}

static unsigned place_for(const struct mux_beacon_reader *reader) {
    unsigned page = 0;
    while (page < reader->pages && reader->known[page].name != 0)
        page++;
    return page;
}

/* O_NONBLOCK: whatever lies there, a FIFO too, must not hold the program up. */
static void meet(struct mux_beacon_reader *reader, int directory, const char *name) {
    unsigned page = place_for(reader);
    if (page == MUX_BEACON_PROCESSES)
        return;
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return;
    if (map(reader, page, fd)) {
        reader->known[page] = (struct mux_beacon_known){.name = number_of(name), .listed = true};
        if (page == reader->pages)
            reader->pages++;
    }
    close(fd);
}

static bool is_known(struct mux_beacon_reader *reader, uint64_t number) {
    for (unsigned i = 0; i < reader->pages; i++) {
        if (reader->known[i].name == number)
            return reader->known[i].listed = true;
    }
    return false;
}

/* Goes through the names, and returns whether it came to their end. */
static bool meet_all(struct mux_beacon_reader *reader, int directory) {
    unsigned tries = TRIES;
    for (unsigned part = 0; part < PARTS; part++) {
        _Alignas(struct dirent64) char names[PART_BYTES];
        long got = syscall(SYS_getdents64, directory, names, sizeof names);
        if (got <= 0)
            return got == 0;
        const struct dirent64 *entry;
        for (long at = 0; at < got; at += entry->d_reclen) {
            entry = (const void *)&names[at];
            uint64_t number = number_of(entry->d_name);
            if (number == 0 || is_known(reader, number) || tries == 0)
                continue;
            tries--;
            meet(reader, directory, entry->d_name);
        }
    }
    return false;
}

/* A directory that cannot be listed (the program has changed its root or its user, or has no
 * descriptor left) leaves what is known as it is: who has ended stands still. */
static void list(struct mux_beacon_reader *reader) {
    int directory = open(reader->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (directory < 0)
        return;
    for (unsigned i = 0; i < reader->pages; i++)
        reader->known[i].listed = false;
    bool whole = meet_all(reader, directory);
    close(directory);
    for (unsigned i = reader->pages; whole && i-- > 0;) {
        if (reader->known[i].name != 0 && !reader->known[i].listed)
            drop(reader, i);
    }
}

static bool same(const struct mux_beacon_directory *one, const struct mux_beacon_directory *other) {
    return one->device == other->device && one->inode == other->inode &&
           one->bytes == other->bytes && one->changed.tv_sec == other->changed.tv_sec &&
           one->changed.tv_nsec == other->changed.tv_nsec;
}

static void list_if_changed(struct mux_beacon_reader *reader, int64_t now_ns) {
    struct stat found;
    if (now_ns - reader->looked_ns < STAT_NS)
        return;
    reader->looked_ns = now_ns;
    if (stat(reader->path, &found) != 0)
        return;
    struct mux_beacon_directory now = {found.st_dev, found.st_ino, found.st_size, found.st_mtim};
    if (!same(&now, &reader->directory)) {
        reader->directory = now;
        reader->changed_ns = now_ns;
    }
    if (now_ns - reader->changed_ns < SETTLED_NS)
        list(reader);
}

/* ---- what they say -----------------------------------------------------------------------------
 */

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

static bool path_to(char path[PATH_MAX], const char *directory, uint64_t name) {
    int length = snprintf(path, PATH_MAX, "%s/%016" PRIx64, directory, name);
    return length > 0 && length < PATH_MAX;
}

static struct mux_beacon_slot read_file(int fd) {
    struct mux_beacon_slot slot = {.owner = 0};
    ssize_t got = pread(fd, &slot, sizeof slot, offsetof(struct mux_beacon_page, slot));
    return got == sizeof slot ? slot : (struct mux_beacon_slot){.owner = 0};
}

/* Where the system does not let us copy, as in some sandboxes. A page whose file has gone is
 * nobody's; one whose file cannot be opened counts as active: what is not known is for the online
 * side. */
static unsigned read_files(struct mux_beacon_reader *reader, struct mux_beacon_slot *slots) {
    char path[PATH_MAX];
    for (unsigned i = 0; i < reader->pages; i++) {
        struct mux_beacon_known *known = &reader->known[i];
        slots[i] = (struct mux_beacon_slot){.owner = 0};
        if (known->name == 0 || !path_to(path, reader->path, known->name))
            continue;
        int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
        if (fd >= 0) {
            slots[i] = read_file(fd);
            close(fd);
        } else if (errno != ENOENT) {
            slots[i].owner = UINT64_MAX;
            slots[i].launches = known->seen.launches + 1; /* another one at each look */
        }
    }
    return reader->pages;
}

/* Copies from all pages, and returns from how many. Where there is none there are zeros: nobody's.
 * One that has been cut is dropped, and the others are read again. By the number of this thread:
 * that of the process means its first thread, which may have ended. */
static unsigned copy_out(struct mux_beacon_reader *reader, struct mux_beacon_slot *slots) {
    struct iovec there[MUX_BEACON_PROCESSES];
    pid_t self = (pid_t)syscall(SYS_gettid);
    for (unsigned look = 0; reader->pages > 0 && look <= MUX_BEACON_PROCESSES; look++) {
        struct iovec here = {slots, reader->pages * sizeof *slots};
        for (unsigned i = 0; i < reader->pages; i++)
            there[i] = (struct iovec){room_of(reader, i) + offsetof(struct mux_beacon_page, slot),
                                      sizeof *slots};
        ssize_t done = process_vm_readv(self, &here, 1, there, reader->pages, 0);
        if (done == (ssize_t)here.iov_len)
            return reader->pages;
        if (done < 0 && errno != EFAULT) {
            reader->copy_error = errno;
            return read_files(reader, slots);
        }
        drop(reader, done < 0 ? 0 : (unsigned)((size_t)done / sizeof *slots));
    }
    return 0;
}

int64_t mux_beacon_wait_ns(struct mux_beacon_reader *reader, uint32_t holdoff_us, int64_t now_ns) {
    struct mux_beacon_slot slots[MUX_BEACON_PROCESSES];
    if (holdoff_us == 0 || reader->address == NULL)
        return 0;
    int before = errno;
    list_if_changed(reader, now_ns);
    unsigned count = copy_out(reader, slots);
    int64_t wait_ns = 0;
    for (unsigned i = 0; i < count; i++) {
        int64_t slot_ns = mux_beacon_see(&reader->known[i].seen, &slots[i], holdoff_us, now_ns);
        if (slot_ns > wait_ns)
            wait_ns = slot_ns;
    }
    errno = before;
    return wait_ns;
}

/* ---- life --------------------------------------------------------------------------------------
 */

void mux_beacon_refresh(struct mux_beacon_reader *reader) {
    if (reader->address != NULL)
        list(reader);
}

void mux_beacon_open(struct mux_beacon_reader *reader, const char *device_dir, int64_t now_ns) {
    *reader = (struct mux_beacon_reader){.stride = (size_t)sysconf(_SC_PAGESIZE)};
    if (mux_page_path(reader->path, device_dir, "beacons") != 0)
        return;
    void *at = mmap(NULL, MUX_BEACON_PROCESSES * reader->stride, PROT_READ,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return;
    reader->address = at;
    list_if_changed(reader, now_ns);
}

void mux_beacon_close(struct mux_beacon_reader *reader) {
    if (reader->address != NULL)
        munmap(reader->address, MUX_BEACON_PROCESSES * reader->stride);
    *reader = (struct mux_beacon_reader){.address = NULL};
}
