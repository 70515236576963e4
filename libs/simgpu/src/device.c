/* Files of devices, their lock, lives, and sleeping. */
#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "model.h"

uint64_t simgpu_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* --- files --- */

static int path_of(char path[PATH_MAX], const char *dir, const char *what, unsigned index) {
    int length = snprintf(path, PATH_MAX, "%s/%s-%u", dir, what, index);
    return length < PATH_MAX ? 0 : -ENAMETOOLONG;
}

static int open_lives(const char *dir, unsigned index, int flags) {
    char path[PATH_MAX];
    int error = path_of(path, dir, "lives", index);
    if (error)
        return error;
    int fd = open(path, O_RDWR | O_CLOEXEC | flags, 0600);
    return fd < 0 ? -errno : fd;
}

static void random_uuid(uint8_t uuid[16]) {
    if (getrandom(uuid, 16, 0) != 16)
        memset(uuid, 0, 16);
    uuid[6] = (uuid[6] & 0x0f) | 0x40; /* version 4 */
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
}

static int fill(int fd, unsigned index, const struct simgpu_kind *kind,
                const struct simgpu_options *options) {
    if (ftruncate(fd, sizeof(struct simgpu_device)) != 0)
        return -errno;
    struct simgpu_device *device =
        mmap(NULL, sizeof *device, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (device == MAP_FAILED)
        return -errno;
    uint8_t uuid[16];
    if (options->uuid)
        memcpy(uuid, options->uuid, sizeof uuid);
    else
        random_uuid(uuid);
    simgpu_initialise(device, index, kind, uuid, options->log, simgpu_now());
    munmap(device, sizeof *device);
    return 0;
}

int simgpu_create(const char *dir, unsigned index, const struct simgpu_kind *kind,
                  const struct simgpu_options *options) {
    char path[PATH_MAX];
    char unfinished[PATH_MAX];
    if (index >= SIMGPU_DEVICES)
        return -EINVAL;
    if (path_of(path, dir, "device", index) ||
        path_of(unfinished, dir, ".device", (unsigned)getpid()))
        return -ENAMETOOLONG;
    int lives = open_lives(dir, index, O_CREAT);
    if (lives < 0)
        return lives;
    close(lives);
    int fd = open(unfinished, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    int error = fill(fd, index, kind, options);
    close(fd);
    if (!error && link(unfinished, path) != 0)
        error = -errno;
    unlink(unfinished);
    return error;
}

int simgpu_open(struct simgpu *gpu, const char *dir, unsigned index) {
    char path[PATH_MAX];
    int error = path_of(path, dir, "device", index);
    if (error)
        return error;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (lseek(fd, 0, SEEK_END) != sizeof(struct simgpu_device)) {
        close(fd);
        return -EPROTO;
    }
    struct simgpu_device *device =
        mmap(NULL, sizeof *device, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (device == MAP_FAILED)
        return -errno;
    gpu->device = device;
    gpu->lives_fd = open_lives(dir, index, 0);
    if (gpu->lives_fd < 0 || !simgpu_is_valid(device)) {
        error = gpu->lives_fd < 0 ? gpu->lives_fd : -EPROTO;
        simgpu_close(gpu);
    }
    return error;
}

void simgpu_close(struct simgpu *gpu) {
    munmap(gpu->device, sizeof *gpu->device);
    if (gpu->lives_fd >= 0)
        close(gpu->lives_fd);
    gpu->device = NULL;
    gpu->lives_fd = -1;
}

int simgpu_remove(const char *dir, unsigned index) {
    char path[PATH_MAX];
    if (path_of(path, dir, "device", index))
        return -ENAMETOOLONG;
    if (unlink(path) != 0)
        return -errno;
    if (path_of(path, dir, "lives", index) == 0)
        unlink(path);
    return 0;
}

/* --- lives: locks of open file descriptions, which the kernel drops with their last holder --- */

int simgpu_hold_life(const char *dir, unsigned index, unsigned life) {
    int fd = open_lives(dir, index, 0);
    if (fd < 0)
        return fd;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = life, .l_len = 1};
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return fd;
    int error = errno == EACCES ? -EAGAIN : -errno;
    close(fd);
    return error;
}

bool simgpu_life_is_held(const struct simgpu *gpu, unsigned life) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = life, .l_len = 1};
    if (fcntl(gpu->lives_fd, F_OFD_GETLK, &lock) != 0)
        return true; /* not knowing is no reason to bury anybody */
    return lock.l_type != F_UNLCK;
}

static void bury_the_dead(struct simgpu *gpu) {
    struct simgpu_device *device = gpu->device;
    for (uint32_t i = 0; i < device->clients_touched; i++)
        if (device->clients[i].state == SIMGPU_CLIENT_USED && !simgpu_life_is_held(gpu, i))
            simgpu_client_bury(device, i);
    for (uint32_t i = 0; i < SIMGPU_MPS_RECORDS; i++) {
        struct simgpu_mps *mps = &device->mps[i];
        if (mps->state == SIMGPU_MPS_FREE)
            continue;
        bool serves = mps->server_pid && simgpu_life_is_held(gpu, SIMGPU_LIFE_MPS_SERVER + i);
        if (mps->server_pid && !serves)
            simgpu_mps_server_stopped(device, i);
        if (simgpu_life_is_held(gpu, SIMGPU_LIFE_MPS_CONTROL + i))
            continue;
        if (serves)
            mps->pipe_hash = 0; /* goes on for the clients that it has */
        else
            simgpu_mps_unregister(device, i);
    }
}

/* --- the lock --- */

static int lock_patiently(pthread_mutex_t *lock) {
    /* Most holders are through in less time than it takes to go to sleep. */
    for (int i = 0; i < 50; i++) {
        int error = pthread_mutex_trylock(lock);
        if (error != EBUSY)
            return error;
        __asm__ volatile("" ::: "memory");
    }
    /* Who is killed after having been woken, while a third one takes the lock, takes the wake-up
     * along: then nobody wakes the others. So they look for themselves. */
    int error = ETIMEDOUT;
    while (error == ETIMEDOUT) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 10000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        error = pthread_mutex_timedlock(lock, &until);
    }
    return error;
}

uint64_t simgpu_lock(struct simgpu *gpu) {
    struct simgpu_device *device = gpu->device;
    if (lock_patiently(&device->lock) == EOWNERDEAD) {
        simgpu_recover(device);
        pthread_mutex_consistent(&device->lock);
        device->lives_checked_ns = 0;
    }
    uint64_t now_ns = simgpu_now();
    /* The dead are looked for before time goes on: what they had not ended when the device was
     * last seen was in flight. */
    if (now_ns >= device->lives_checked_ns + SIMGPU_LIVES_CHECK_NS) {
        bury_the_dead(gpu);
        device->lives_checked_ns = now_ns;
    }
    simgpu_advance(device, now_ns);
    return device->now_ns;
}

void simgpu_unlock(struct simgpu *gpu) {
    pthread_mutex_unlock(&gpu->device->lock);
}

/* --- sleeping --- */

static long futex(_Atomic uint32_t *word, int operation, uint32_t value,
                  const struct timespec *until) {
    return syscall(SYS_futex, word, operation, value, until, NULL, FUTEX_BITSET_MATCH_ANY);
}

void simgpu_signal(struct simgpu_device *device) {
    atomic_fetch_add_explicit(&device->signal, 1, memory_order_release);
    futex(&device->signal, FUTEX_WAKE, INT_MAX, NULL);
}

void simgpu_wait(struct simgpu_device *device, uint32_t seen, uint64_t until_ns) {
    if (until_ns == SIMGPU_NEVER) {
        futex(&device->signal, FUTEX_WAIT_BITSET, seen, NULL);
        return;
    }
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000),
                             .tv_nsec = (long)(until_ns % 1000000000)};
    /* Timers may be late by the thread's slack, 50 us unless told otherwise: as long as a kernel.
     */
    int slack_ns = prctl(PR_GET_TIMERSLACK);
    prctl(PR_SET_TIMERSLACK, 1);
    futex(&device->signal, FUTEX_WAIT_BITSET, seen, &until);
    if (slack_ns > 0)
        prctl(PR_SET_TIMERSLACK, slack_ns);
}
