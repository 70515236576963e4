/* Leads a process that works on a device from instruction to instruction (by ptrace), and at nearly
 * each of them takes the device as it is: so it would be left if the process were killed there.
 * Repairs it as the next holder of its lock would, and compares what becomes of it with what became
 * of a device on which the work was done, or was not done.
 *
 * `model_kills` runs one kind of work by name; without a name it prints the names. */
#include <math.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "model.h"

#define US 1000ULL
#define MS 1000000ULL

enum { KILLS = 250, OPS = 256, USED_EVENTS = 16, NOBODY = 1000 };

static const uint64_t start_ns = 1000 * MS;

static void fail(const char *what, const char *work, long instruction) {
    fprintf(stderr, "%s, killed at instruction %ld: %s\n", work, instruction, what);
    exit(1);
}

/* --- a device with all sorts of work on it --- */

static uint32_t streams[6];

static struct simgpu_work kernel(double work_ns, double sm_share) {
    return (struct simgpu_work){.kind = SIMGPU_KERNEL,
                                .work_ns = work_ns,
                                .sm_share = sm_share,
                                .bandwidth = 0.3,
                                .occupancy = sm_share,
                                .wait_stream = SIMGPU_NONE,
                                .event = SIMGPU_NONE};
}

static void put(struct simgpu_device *gpu, uint32_t stream, struct simgpu_work work) {
    if (simgpu_enqueue(gpu, stream, &work) < 0)
        abort();
}

static void add_process(struct simgpu_device *gpu, uint32_t slot, bool mps) {
    simgpu_client_create(gpu, slot, 100 + slot, 1, 0, "kills");
    if (mps) {
        gpu->clients[slot].mps = 0;
        gpu->clients[slot].mps_server = gpu->mps[0].server_id;
    }
    uint32_t context = (uint32_t)simgpu_context_create(gpu, slot, 1, 1 << 20);
    streams[2 * slot] = (uint32_t)simgpu_stream_create(gpu, context, 0, 0);
    streams[2 * slot + 1] =
        (uint32_t)simgpu_stream_create(gpu, context, SIMGPU_STREAM_NON_BLOCKING, -1);
}

static struct simgpu_device *new_shared(void) {
    struct simgpu_device *gpu =
        mmap(NULL, sizeof *gpu, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (gpu == MAP_FAILED)
        abort();
    return gpu;
}

static struct simgpu_device *new_device(void) {
    static const uint8_t uuid[16];
    struct simgpu_device *gpu = new_shared();
    simgpu_initialise(gpu, 0, simgpu_kind_find("T4"), uuid, true, start_ns);
    gpu->mps[0].state = SIMGPU_MPS_IDLE;
    simgpu_mps_server_started(gpu, 0, 4242, 0);
    add_process(gpu, 0, true);
    add_process(gpu, 1, true);
    add_process(gpu, 2, false);
    for (uint32_t i = 0; i < 24; i++) {
        uint32_t stream = streams[i % 6];
        struct simgpu_work work = kernel((double)(100 + 70 * i) * US, 0.2 + 0.03 * i);
        work.effect = i % 5 == 0;
        work.token = i;
        if (i % 7 == 3)
            work = simgpu_transfer(gpu, SIMGPU_COPY_H2D, 100000 * (i + 1));
        put(gpu, stream, work);
        if (i % 4 != 1)
            continue;
        struct simgpu_work wait = kernel(10 * US, 0.1);
        wait.wait_stream = streams[(i + 1) % 6];
        wait.wait_sequence = gpu->streams[wait.wait_stream].enqueued;
        put(gpu, stream, wait);
    }
    simgpu_advance(gpu, start_ns + 300 * US);
    return gpu;
}

/* --- kinds of work, all at one time of the device --- */

static void advance(struct simgpu_device *gpu) {
    simgpu_advance(gpu, start_ns + 2 * MS);
}

static void enqueue(struct simgpu_device *gpu) {
    put(gpu, streams[1], kernel(500 * US, 0.9));
}

static void begin_to_run(struct simgpu_device *gpu) {
    uint32_t stream = (uint32_t)simgpu_stream_create(gpu, 1, SIMGPU_STREAM_NON_BLOCKING, 0);
    put(gpu, stream, kernel(500 * US, 0.9));
}

static void collect(struct simgpu_device *gpu) {
    uint64_t token;
    simgpu_advance(gpu, start_ns + 1 * MS);
    while (simgpu_collect(gpu, 0, &token)) {
    }
}

static void fault(struct simgpu_device *gpu) {
    simgpu_inject_xid(gpu, 31, 100);
}

static void lose(struct simgpu_device *gpu) {
    simgpu_inject_xid(gpu, 79, 0);
}

static void terminate_client(struct simgpu_device *gpu) {
    simgpu_mps_terminate_client(gpu, 0, 101);
}

static void bury(struct simgpu_device *gpu) {
    simgpu_client_bury(gpu, 2);
}

static void bury_mps_client(struct simgpu_device *gpu) {
    simgpu_client_bury(gpu, 0);
}

static void take_memory(struct simgpu_device *gpu) {
    simgpu_memory_take(gpu, 1, 1 << 20);
    simgpu_memory_give(gpu, 1, 1 << 19);
}

static void slow_down(struct simgpu_device *gpu) {
    simgpu_set_clock(gpu, gpu->kind.boost_mhz / 2, 0);
}

static const struct kind_of_work {
    const char *name;
    void (*run)(struct simgpu_device *gpu);
    /* The client that it buries: the next holder does so too, if it finds it still there. */
    uint32_t buries;
} works[] = {
    {"advance", advance, NOBODY},
    {"enqueue", enqueue, NOBODY},
    {"begin_to_run", begin_to_run, NOBODY},
    {"collect", collect, NOBODY},
    {"fault", fault, NOBODY},
    {"lose", lose, NOBODY},
    {"terminate_client", terminate_client, NOBODY},
    {"bury", bury, 2},
    {"bury_mps_client", bury_mps_client, 0},
    {"take_memory", take_memory, NOBODY},
    {"slow_down", slow_down, NOBODY},
};

/* --- what became of a device --- */

struct outcome {
    uint64_t ended_ns[OPS]; /* by id of the operation; 0: not logged */
    uint64_t started_ns[OPS];
    uint64_t ran_ns[OPS];
    uint32_t cancelled[OPS];
    double busy_ns;
    double sm_ns;
    int32_t errors[3];
    uint32_t server;
};

static struct outcome outcome_of(struct simgpu_device *gpu) {
    struct outcome outcome;
    memset(&outcome, 0, sizeof outcome);
    simgpu_advance(gpu, start_ns + 500 * MS);
    for (uint64_t i = 0; i < gpu->log_count; i++) {
        const struct simgpu_log_entry *entry = &gpu->log[i];
        if (entry->id >= OPS)
            continue;
        outcome.ended_ns[entry->id] = entry->ended_ns;
        outcome.started_ns[entry->id] = entry->started_ns;
        outcome.ran_ns[entry->id] = entry->ran_ns;
        outcome.cancelled[entry->id] = entry->cancelled;
    }
    outcome.busy_ns = simgpu_device_totals(gpu).busy_ns;
    outcome.sm_ns = simgpu_device_totals(gpu).sm_ns;
    for (int i = 0; i < 3; i++)
        outcome.errors[i] = gpu->clients[i].error;
    outcome.server = gpu->mps[0].state;
    return outcome;
}

/* Where two schedules differ, or NULL. Entries of a cancellation that was cut short may be missing.
 */
static const char *difference(const struct outcome *is, const struct outcome *expected) {
    for (int i = 0; i < OPS; i++) {
        if (!is->ended_ns[i] && (!expected->ended_ns[i] || expected->cancelled[i]))
            continue;
        if (is->ended_ns[i] != expected->ended_ns[i])
            return "an operation ended at another time";
        /* What is cancelled in two goes may start in between, and is ended at the same time. */
        bool only_began = is->cancelled[i] && is->started_ns[i] == is->ended_ns[i];
        if (is->started_ns[i] != expected->started_ns[i] && !only_began)
            return "an operation started at another time";
        if (is->ran_ns[i] != expected->ran_ns[i])
            return "an operation ran for another time";
        if (is->cancelled[i] != expected->cancelled[i])
            return "an operation was cancelled, or was not";
    }
    if (fabs(is->busy_ns - expected->busy_ns) > 10 || fabs(is->sm_ns - expected->sm_ns) > 10)
        return "the meters say something else";
    if (memcmp(is->errors, expected->errors, sizeof is->errors) != 0)
        return "clients have other errors";
    return is->server == expected->server ? NULL : "the MPS server is in another state";
}

static const char *disorder(const struct simgpu_device *gpu) {
    uint32_t unfinished = 0;
    uint32_t queued = 0;
    uint64_t memory = 0;
    for (uint32_t i = 0; i < gpu->lane_count; i++) {
        const struct simgpu_lane *lane = &gpu->lanes[i];
        const struct simgpu_stream *stream = &gpu->streams[lane->stream];
        uint64_t sequence = stream->completed;
        if (stream->state != SIMGPU_USED || stream->lane != i)
            return "a lane is not that of its stream";
        for (uint32_t op = lane->op; op != SIMGPU_NONE; op = gpu->ops[op].next, queued++)
            if (gpu->ops[op].sequence != ++sequence || gpu->ops[op].stream != lane->stream)
                return "a stream is out of order";
        if (sequence != stream->enqueued)
            return "a stream has lost operations";
    }
    for (uint32_t i = 0; i < SIMGPU_CLIENTS; i++) {
        unfinished += gpu->clients[i].unfinished;
        if (gpu->clients[i].state == SIMGPU_CLIENT_USED)
            memory += gpu->clients[i].memory_bytes + gpu->clients[i].context_bytes;
    }
    if (unfinished != queued)
        return "clients count other operations than there are";
    if (memory != gpu->memory_used_bytes)
        return "memory does not add up";
    uint32_t spare = 0;
    for (uint32_t op = gpu->ops_free; op != SIMGPU_NONE; op = gpu->ops[op].next, spare++)
        if (gpu->ops[op].state != SIMGPU_OP_FREE || spare > gpu->ops_touched)
            return "an operation in use is in the free list";
    for (uint32_t i = 0; i < gpu->ops_touched; i++)
        queued += gpu->ops[i].state == SIMGPU_OP_ENDED;
    return queued + spare == gpu->ops_touched ? NULL : "operations are lost";
}

/* --- stopping --- */

/* What the device holds at this moment: what it would hold had the process been killed now. */
static struct simgpu_device *copy_of(const struct simgpu_device *gpu) {
    struct simgpu_device *copy = new_shared();
    memcpy(copy, gpu, offsetof(struct simgpu_device, events));
    memcpy(copy->events, gpu->events, USED_EVENTS * sizeof gpu->events[0]);
    memcpy(copy->ops, gpu->ops, OPS * sizeof gpu->ops[0]);
    memcpy(copy->log, gpu->log, OPS * sizeof gpu->log[0]);
    return copy;
}

static struct outcome undisturbed(const struct kind_of_work *work, bool done) {
    struct simgpu_device *gpu = new_device();
    if (done)
        work->run(gpu);
    struct outcome outcome = outcome_of(gpu);
    munmap(gpu, sizeof *gpu);
    return outcome;
}

/* Starts a process that stops before the work, and again after it (by another signal). */
static pid_t start(struct simgpu_device *gpu, const struct kind_of_work *work) {
    int status;
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        work->run(gpu);
        raise(SIGUSR1);
        _exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) {
        fprintf(stderr, "no process to lead\n");
        exit(1);
    }
    return child;
}

/* Goes on by one instruction. False: the work is done. */
static bool step(pid_t child) {
    int status;
    if (ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) != 0 || waitpid(child, &status, 0) != child ||
        !WIFSTOPPED(status)) {
        fprintf(stderr, "the process cannot be led\n");
        exit(1);
    }
    return WSTOPSIG(status) != SIGUSR1;
}

static void end(pid_t child) {
    int status;
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
}

static long count_instructions(const struct kind_of_work *work) {
    struct simgpu_device *gpu = new_device();
    pid_t child = start(gpu, work);
    long count = 0;
    while (step(child))
        count++;
    end(child);
    munmap(gpu, sizeof *gpu);
    return count;
}

static void check_repair(struct simgpu_device *gpu, const struct kind_of_work *work, long at,
                         const struct outcome *done, const struct outcome *not_done) {
    simgpu_recover(gpu);
    const char *wrong = disorder(gpu);
    if (wrong)
        fail(wrong, work->name, at);
    if (work->buries != NOBODY && gpu->clients[work->buries].state == SIMGPU_CLIENT_USED)
        work->run(gpu);
    struct outcome outcome = outcome_of(gpu);
    wrong = disorder(gpu);
    if (!wrong && difference(&outcome, not_done))
        wrong = difference(&outcome, done);
    if (wrong)
        fail(wrong, work->name, at);
}

static void run(const struct kind_of_work *work) {
    struct outcome not_done = undisturbed(work, false);
    struct outcome done = undisturbed(work, true);
    long instructions = count_instructions(work);
    long every = instructions / KILLS + 1;
    struct simgpu_device *gpu = new_device();
    pid_t child = start(gpu, work);
    long kills = 0;
    for (long at = 1; step(child); at++) {
        if (at % every)
            continue;
        struct simgpu_device *copy = copy_of(gpu);
        check_repair(copy, work, at, &done, &not_done);
        munmap(copy, sizeof *copy);
        kills++;
    }
    end(child);
    if (kills < 20)
        fail("hardly anything was led", work->name, instructions);
}

int main(int argc, char **argv) {
    for (size_t i = 0; i < sizeof works / sizeof works[0]; i++) {
        if (argc < 2) {
            puts(works[i].name);
        } else if (strcmp(argv[1], works[i].name) == 0) {
            run(&works[i]);
            return 0;
        }
    }
    return argc < 2 ? 0 : 2;
}
