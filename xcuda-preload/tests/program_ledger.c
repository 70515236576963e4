/* Four processes of one job take and give back memory, on a simulated GPU:
 *   program_ledger kills ROUNDS SEED QUOTA_MIB CONTEXT_MIB
 *   program_ledger race MILLISECONDS SEED QUOTA_MIB CONTEXT_MIB
 *
 * kills: again and again some of the four are killed at a moment drawn by lot, while they start,
 * take, give back, fork. Then the others pause, and the job page must say what these hold, no more
 * and no less; another process must get the rest of the quota, and not more than that.
 *
 * race: the quota is enough for some of them. What they have been given at any moment is counted
 * here; the most of it is printed, with how often they were given and refused some.
 *
 * The library in front of the driver is preloaded; only the job page tells of it. */
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cuda_types.h"
#include "muxflow_pages.h"

enum { WORKERS = 4, MOST_BLOCKS = 8, UNIT_BYTES = 1 << 20, DEADLINE_S = 20 };

static struct {
    CUresult (*init)(unsigned);
    CUresult (*retain)(CUcontext *, CUdevice);
    CUresult (*set_current)(CUcontext);
    CUresult (*allocate)(CUdeviceptr *, size_t);
    CUresult (*allocate_managed)(CUdeviceptr *, size_t, unsigned);
    CUresult (*allocate_async)(CUdeviceptr *, size_t, CUstream);
    CUresult (*release)(CUdeviceptr);
    CUresult (*release_async)(CUdeviceptr, CUstream);
    CUresult (*synchronize)(CUstream);
} cuda;

static const struct {
    const char *name;
    void *field;
} calls[] = {
    {"cuInit", &cuda.init},
    {"cuDevicePrimaryCtxRetain", &cuda.retain},
    {"cuCtxSetCurrent", &cuda.set_current},
    {"cuMemAlloc_v2", &cuda.allocate},
    {"cuMemAllocManaged", &cuda.allocate_managed},
    {"cuMemAllocAsync", &cuda.allocate_async},
    {"cuMemFree_v2", &cuda.release},
    {"cuMemFreeAsync", &cuda.release_async},
    {"cuStreamSynchronize", &cuda.synchronize},
};

struct worker {
    _Atomic pid_t pid;           /* 0: none */
    _Atomic unsigned parked;     /* in this pause; 0: none */
    _Atomic uint64_t held_bytes; /* right while it is parked */
};

static struct shared {
    _Atomic unsigned pause; /* its number; 0: none */
    _Atomic bool stop;
    _Atomic unsigned ready;
    struct worker workers[WORKERS];
    _Atomic uint64_t given_bytes, most_bytes, times_given, times_refused;
} *shared;

static const struct mux_job_page *page;
static uint64_t quota_bytes, context_bytes;
static unsigned number; /* of the round */

static _Noreturn void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "round %u: ", number);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    for (int i = 0; i < WORKERS; i++) {
        if (shared->workers[i].pid > 0)
            kill(shared->workers[i].pid, SIGKILL);
    }
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void doze(int64_t duration_ns) {
    nanosleep(&(struct timespec){duration_ns / 1000000000, duration_ns % 1000000000}, NULL);
}

static unsigned lot(unsigned *seed, unsigned below) {
    return (unsigned)rand_r(seed) % below;
}

/* ---- workers -----------------------------------------------------------------------------------
 */

static void begin(void) {
    CUcontext context;
    CUresult result = cuda.init(0);
    if (result == CUDA_SUCCESS)
        result = cuda.retain(&context, 0);
    if (result == CUDA_SUCCESS)
        result = cuda.set_current(context);
    if (result != CUDA_SUCCESS)
        fail("a process got no context: %d", result);
}

struct block {
    CUdeviceptr address; /* 0: none */
    uint64_t bytes;
    bool pooled;
};

static bool take(struct block *block, uint64_t bytes, unsigned way) {
    CUresult result;
    *block = (struct block){.bytes = bytes, .pooled = way == 0};
    if (way == 0)
        result = cuda.allocate_async(&block->address, bytes, NULL);
    else if (way == 1)
        result = cuda.allocate_managed(&block->address, bytes, 1);
    else
        result = cuda.allocate(&block->address, bytes);
    if (result != CUDA_SUCCESS && result != CUDA_ERROR_OUT_OF_MEMORY)
        fail("taking memory gave %d", result);
    if (result != CUDA_SUCCESS)
        block->address = 0;
    return result == CUDA_SUCCESS;
}

static void give(struct block *block) {
    CUresult result =
        block->pooled ? cuda.release_async(block->address, NULL) : cuda.release(block->address);
    if (result == CUDA_SUCCESS && block->pooled)
        result = cuda.synchronize(NULL);
    if (result != CUDA_SUCCESS)
        fail("giving memory back gave %d", result);
    block->address = 0;
}

/* A child has no context, and gets none. It counts for itself: nothing. */
static void fork_once(void) {
    pid_t child = fork();
    if (child == 0) {
        CUdeviceptr address;
        _exit(cuda.allocate(&address, UNIT_BYTES) == CUDA_SUCCESS);
    }
    int status;
    if (child > 0 && waitpid(child, &status, 0) == child && status != 0)
        fail("a child took memory, or died: %d", status);
}

static _Noreturn void work(struct worker *self, unsigned seed) {
    struct block blocks[MOST_BLOCKS] = {{.address = 0}};
    begin();
    for (;;) {
        struct block *block = &blocks[lot(&seed, MOST_BLOCKS)];
        uint64_t held_bytes = atomic_load(&self->held_bytes);
        if (block->address != 0) {
            give(block);
            held_bytes -= block->bytes;
        } else if (take(block, (1 + lot(&seed, 12)) * (uint64_t)UNIT_BYTES, lot(&seed, 3))) {
            held_bytes += block->bytes;
        }
        atomic_store(&self->held_bytes, held_bytes);
        if (lot(&seed, 16) == 0)
            fork_once();
        for (unsigned pause; (pause = atomic_load(&shared->pause)) != 0;) {
            atomic_store(&self->parked, pause);
            doze(200000);
        }
    }
}

static void start(struct worker *worker, unsigned seed) {
    atomic_store(&worker->parked, 0);
    atomic_store(&worker->held_bytes, 0);
    pid_t pid = fork();
    if (pid < 0)
        fail("no more processes");
    if (pid == 0) {
        atomic_store(&worker->pid, getpid());
        work(worker, seed);
    }
    atomic_store(&worker->pid, pid);
}

/* ---- what the job page says --------------------------------------------------------------------
 */

static bool lives(uint64_t owner) {
    return owner != 0 && kill((pid_t)(uint32_t)owner, 0) == 0;
}

static uint64_t charged_to(pid_t pid) {
    for (unsigned i = 0; i < MUX_JOB_SLOTS; i++) {
        const volatile struct mux_process_slot *slot = &page->slots[i];
        if ((pid_t)(uint32_t)slot->owner == pid)
            return slot->memory_bytes;
    }
    return 0;
}

static uint64_t charged_to_all(void) {
    uint64_t bytes = 0;
    for (unsigned i = 0; i < MUX_JOB_SLOTS; i++) {
        const volatile struct mux_process_slot *slot = &page->slots[i];
        if (lives(slot->owner))
            bytes += slot->memory_bytes;
    }
    return bytes;
}

/* Children of those who were killed are this process's now. */
static void reap(void) {
    while (waitpid(-1, NULL, WNOHANG) > 0)
        continue;
}

static bool all_parked(void) {
    for (int i = 0; i < WORKERS; i++) {
        if (shared->workers[i].pid > 0 && atomic_load(&shared->workers[i].parked) != number + 1)
            return false;
    }
    return true;
}

static uint64_t held_by_all(void) {
    uint64_t bytes = 0;
    for (int i = 0; i < WORKERS; i++) {
        struct worker *worker = &shared->workers[i];
        bytes += worker->pid > 0 ? atomic_load(&worker->held_bytes) + context_bytes : 0;
    }
    return bytes;
}

static bool is_right(void) {
    reap();
    for (int i = 0; i < WORKERS; i++) {
        struct worker *worker = &shared->workers[i];
        if (worker->pid > 0 &&
            charged_to(worker->pid) != atomic_load(&worker->held_bytes) + context_bytes)
            return false;
    }
    return charged_to_all() == held_by_all();
}

static void wait_until(bool (*right)(void), const char *what) {
    int64_t until_ns = now_ns() + DEADLINE_S * INT64_C(1000000000);
    while (!right()) {
        if (now_ns() > until_ns)
            fail("%s: the page says %llu, held are %llu", what,
                 (unsigned long long)charged_to_all(), (unsigned long long)held_by_all());
        doze(200000);
    }
}

/* Whether a process can have so much, and then not one unit more. */
static void check_rest(uint64_t rest_bytes) {
    pid_t pid = fork();
    if (pid == 0) {
        struct block rest, more;
        begin();
        bool all = take(&rest, rest_bytes - context_bytes, 2);
        _exit(!all ? 10 : take(&more, UNIT_BYTES, 2) ? 11 : 0);
    }
    int status = 0;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
        fail("of %llu bytes that are left a process could not have all, or had more: %d",
             (unsigned long long)rest_bytes, status);
}

/* ---- kills -------------------------------------------------------------------------------------
 */

static void kill_worker(struct worker *worker) {
    if (worker->pid == 0)
        return;
    kill(worker->pid, SIGKILL);
    if (waitpid(worker->pid, NULL, 0) != worker->pid)
        fail("a process could not be killed");
    atomic_store(&worker->pid, 0);
}

static bool nobody_is_left(void) {
    reap();
    return charged_to_all() == held_by_all();
}

static void run_kills(unsigned rounds, unsigned seed) {
    for (number = 0; number < rounds; number++) {
        for (int i = 0; i < WORKERS; i++) {
            if (shared->workers[i].pid == 0)
                start(&shared->workers[i], seed + number * WORKERS + (unsigned)i);
        }
        doze(lot(&seed, 10) * INT64_C(1000000));
        unsigned victims = 1 + lot(&seed, 15); /* one bit each */
        for (int i = 0; i < WORKERS; i++) {
            if (victims >> i & 1) {
                doze(lot(&seed, 1000) * INT64_C(1000));
                kill_worker(&shared->workers[i]);
            }
        }
        atomic_store(&shared->pause, number + 1);
        wait_until(all_parked, "somebody hangs");
        wait_until(is_right, "after some were killed");
        if (number % 4 == 0)
            check_rest(quota_bytes - held_by_all());
        atomic_store(&shared->pause, 0);
    }
    for (int i = 0; i < WORKERS; i++)
        kill_worker(&shared->workers[i]);
    wait_until(nobody_is_left, "after all were killed");
    check_rest(quota_bytes);
    printf("%u rounds\n", rounds);
}

/* ---- race --------------------------------------------------------------------------------------
 */

static _Noreturn void race(unsigned seed) {
    begin();
    atomic_fetch_add(&shared->ready, 1);
    while (atomic_load(&shared->ready) < WORKERS) /* a context is part of the quota, too */
        doze(200000);
    while (!atomic_load(&shared->stop)) {
        struct block block;
        uint64_t bytes = (40 + lot(&seed, 20)) * (uint64_t)UNIT_BYTES;
        unsigned way = lot(&seed, 3);
        if (!take(&block, bytes, way)) {
            atomic_fetch_add(&shared->times_refused, 1);
            continue;
        }
        uint64_t given_bytes = atomic_fetch_add(&shared->given_bytes, bytes) + bytes;
        uint64_t most_bytes = atomic_load(&shared->most_bytes);
        while (given_bytes > most_bytes &&
               !atomic_compare_exchange_weak(&shared->most_bytes, &most_bytes, given_bytes))
            continue;
        if (given_bytes > quota_bytes - WORKERS * context_bytes)
            fail("%llu bytes were given, the last %llu by way %u; the page says %llu in all",
                 (unsigned long long)given_bytes, (unsigned long long)bytes, way,
                 (unsigned long long)charged_to_all());
        atomic_fetch_add(&shared->times_given, 1);
        doze(lot(&seed, 2000) * INT64_C(1000));
        atomic_fetch_sub(&shared->given_bytes, bytes);
        give(&block);
    }
    _exit(0);
}

static bool all_ready(void) {
    return atomic_load(&shared->ready) == WORKERS;
}

static void run_race(unsigned milliseconds, unsigned seed) {
    pid_t pids[WORKERS];
    for (unsigned i = 0; i < WORKERS; i++) {
        pids[i] = fork();
        if (pids[i] == 0)
            race(seed + i);
    }
    wait_until(all_ready, "somebody does not begin");
    doze(milliseconds * INT64_C(1000000));
    atomic_store(&shared->stop, true);
    for (int i = 0; i < WORKERS; i++) {
        int status;
        if (waitpid(pids[i], &status, 0) != pids[i] || status != 0)
            fail("a process ended with %d", status);
    }
    printf("%llu %llu %llu\n", (unsigned long long)shared->times_given,
           (unsigned long long)shared->times_refused, (unsigned long long)shared->most_bytes);
}

static const struct mux_job_page *open_page(void) {
    char path[4096];
    snprintf(path, sizeof path, "%s/job", getenv("XCUDA_JOB_DIR"));
    int fd = open(path, O_RDONLY);
    void *at = mmap(NULL, sizeof(struct mux_job_page), PROT_READ, MAP_SHARED, fd, 0);
    if (fd < 0 || at == MAP_FAILED)
        fail("no job page at %s", path);
    close(fd);
    return at;
}

int main(int count, char **arguments) {
    if (count != 6)
        return 2;
    unsigned times = (unsigned)atoi(arguments[2]), seed = (unsigned)atoi(arguments[3]);
    quota_bytes = strtoull(arguments[4], NULL, 10) << 20;
    context_bytes = strtoull(arguments[5], NULL, 10) << 20;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    page = open_page();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        void *function = library == NULL ? NULL : dlsym(library, calls[i].name);
        if (function == NULL)
            fail("no %s", calls[i].name);
        memcpy(calls[i].field, &function, sizeof function);
    }
    if (strcmp(arguments[1], "kills") == 0)
        run_kills(times, seed);
    else
        run_race(times, seed);
    return 0;
}
