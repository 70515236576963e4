/* The beacon page of an online process: made, looked after and taken away by it.
 *
 * It is a file of the process's own, that nobody else may write, and the process never opens those
 * of others: what they are cannot harm it. */
#include "pages.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_ONLY 0444

static struct mux_beacon_page *page_of(const struct mux_beacon *beacon) {
    return (void *)beacon->address;
}

/* Exchanges what lies at the address in one step; the first time, finds an address. Other threads
 * count in the old or the new. */
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

/* ---- making it ---------------------------------------------------------------------------------
 */

/* In a PID namespace that has the /proc of another one, our pid is somebody else's there. */
static bool proc_is_ours(void) {
    char self[16] = "";
    return readlink("/proc/self", self, sizeof self - 1) > 0 && atol(self) == (long)getpid();
}

static uint64_t name_us(void) {
    uint64_t owner = proc_is_ours() ? mux_owner_of(getpid()) : 0;
    return owner != 0 ? owner : (uint64_t)getpid();
}

/* No process of this node makes another page in the same nanosecond under the same pid. */
static uint64_t new_number(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec + ((uint64_t)getpid() << 40);
}

/* A write beyond the limit would be answered with a signal. */
static bool may_write(void) {
    struct rlimit limit;
    return getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur >= MUX_BEACON_PAGE_BYTES;
}

/* Written, not only sized: a full file system refuses here, and not at a launch. */
static int fill(int fd, uint64_t owner) {
    struct mux_beacon_page page = {
        .header = {.magic = MUX_PAGE_MAGIC,
                   .kind = MUX_PAGE_BEACON,
                   .version = MUX_PAGE_VERSION,
                   .size_bytes = MUX_BEACON_PAGE_BYTES},
        .slot = {.owner = owner},
    };
    if (flock(fd, LOCK_EX | LOCK_NB) != 0 || fchmod(fd, READ_ONLY) != 0)
        return errno;
    ssize_t done = pwrite(fd, &page, sizeof page, 0);
    return done == sizeof page ? 0 : done < 0 ? errno : ENOSPC;
}

static int enter(struct mux_beacon *beacon, int fd, const char *path, uint64_t owner) {
    struct stat file;
    if (fstat(fd, &file) != 0)
        return errno;
    int error = put(beacon, fd);
    if (error != 0)
        return error;
    if (beacon->owner != 0)
        unlink(beacon->path);
    strcpy(beacon->path, path);
    beacon->slot = &page_of(beacon)->slot;
    beacon->owner = owner;
    beacon->pid = getpid();
    beacon->device = file.st_dev;
    beacon->inode = file.st_ino;
    return 0;
}

static int path_to(char path[PATH_MAX], const char *directory, const char *prefix,
                   uint64_t number) {
    int length = snprintf(path, PATH_MAX, "%s/%s%016" PRIx64, directory, prefix, number);
    return length > 0 && length < PATH_MAX ? 0 : ENAMETOOLONG;
}

static int make(struct mux_beacon *beacon, const char *directory) {
    char path[PATH_MAX], unfinished[PATH_MAX];
    uint64_t number = new_number(), owner = name_us();
    int error = path_to(path, directory, "", number);
    if (error != 0 || (error = path_to(unfinished, directory, ".", number)) != 0)
        return error;
    if (!may_write())
        return EFBIG;
    int fd = open(unfinished, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, READ_ONLY);
    if (fd < 0)
        return errno;
    error = fill(fd, owner);
    if (error == 0 && rename(unfinished, path) != 0)
        error = errno;
    if (error != 0) {
        unlink(unfinished);
    } else if ((error = enter(beacon, fd, path, owner)) != 0) {
        unlink(path);
    }
    close(fd); /* the lock stays with the mapping */
    return error;
}

/* ---- looking after it --------------------------------------------------------------------------
 */

enum standing {
    NONE, /* or one that nobody may store into any more */
    LOST, /* readers do not find it where it was, or may not read it */
    SOUND
};

static enum standing look(const struct mux_beacon *beacon) {
    struct stat file;
    if (beacon->owner == 0 || beacon->pid != getpid())
        return NONE;
    if (stat(beacon->path, &file) != 0 || file.st_dev != beacon->device ||
        file.st_ino != beacon->inode)
        return LOST;
    if (file.st_size < MUX_BEACON_PAGE_BYTES)
        return NONE;
    bool ours = page_of(beacon)->header.magic == MUX_PAGE_MAGIC &&
                mux_load64(&beacon->slot->owner) == beacon->owner;
    return ours && (file.st_mode & 07777) == READ_ONLY ? SOUND : LOST;
}

int mux_beacon_claim(struct mux_beacon *beacon, const char *device_dir) {
    char directory[PATH_MAX];
    enum standing standing = look(beacon);
    if (standing == SOUND)
        return 0;
    if (standing == NONE && beacon->owner != 0) {
        if (beacon->pid == getpid())
            unlink(beacon->path);
        mux_beacon_forget(beacon);
    }
    int error = mux_page_path(directory, device_dir, "beacons");
    if (error == 0)
        error = make(beacon, directory);
    if (beacon->owner != 0) /* a new one; or the old one, which outlives its name */
        return 0;
    strcpy(beacon->path, directory);
    return error;
}

void mux_beacon_end(struct mux_beacon *beacon) {
    if (beacon->owner != 0 && beacon->pid == getpid())
        unlink(beacon->path);
}

/* Whoever still counts there counts in nobody's memory; and with the mapping the lock goes, which
 * is to tell of the parent alone. */
void mux_beacon_forget(struct mux_beacon *beacon) {
    if (beacon->owner != 0)
        put(beacon, -1);
    *beacon = (struct mux_beacon){.address = beacon->address};
}
