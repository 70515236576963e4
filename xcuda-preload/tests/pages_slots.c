/* Slots of a job page among processes that start, fork, race, die and truncate.
 *
 *   pages_slots claim DIR       every process has its own slot, until there are no more
 *   pages_slots owners DIR      who lives and who does not
 *   pages_slots quota DIR       processes race for memory, and are killed with memory in hand
 *   pages_slots truncated DIR   the page is cut and mended under all of them
 *   pages_slots spending        what is spent is counted once, and kept
 */
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

#include "pages_testing.h"

static struct mux_job claimed(const char *dir) {
    struct mux_job job;
    expect(mux_job_claim(&job, dir) == 0, "a slot can be claimed");
    return job;
}

/* ---- claiming -----------------------------------------------------------------------------------
 */

enum { RACES = 6 };

struct meeting {
    _Atomic int there;
    _Atomic int go;
    unsigned slot[MUX_JOB_SLOTS];
};

/* Claims at the same time as all others, and stays until it is killed. */
static void claim_and_stay(struct meeting *meeting, const char *dir, int number) {
    atomic_fetch_add(&meeting->there, 1);
    while (!atomic_load(&meeting->go))
        sched_yield();
    struct mux_job job = claimed(dir);
    meeting->slot[number] = job.slot;
    struct mux_process_slot counters = {.launches = 1000 + (uint64_t)number};
    expect(mux_job_publish(&job, &counters) == 0, "a process publishes into its slot");
    atomic_fetch_add(&meeting->there, 1);
    for (;;)
        pause();
}

static void wait_until(_Atomic int *count, int enough) {
    while (atomic_load(count) < enough) {
        expect(waitpid(-1, NULL, WNOHANG) == 0, "nobody ends before the others are there");
        sched_yield();
    }
}

static void expect_all_different(const unsigned *slot) {
    bool taken[MUX_JOB_SLOTS] = {false};
    for (int i = 0; i < MUX_JOB_SLOTS; i++) {
        expect(slot[i] < MUX_JOB_SLOTS && !taken[slot[i]], "no two processes have one slot");
        taken[slot[i]] = true;
    }
}

/* All slots are claimed at once, by processes that stay. */
static struct meeting *meet(const char *dir, pid_t *child) {
    struct meeting *meeting = shared_memory(sizeof *meeting);
    for (int i = 0; i < MUX_JOB_SLOTS; i++) {
        child[i] = fork_child();
        if (child[i] == 0)
            claim_and_stay(meeting, dir, i);
    }
    wait_until(&meeting->there, MUX_JOB_SLOTS);
    atomic_store(&meeting->go, 1);
    wait_until(&meeting->there, 2 * MUX_JOB_SLOTS);
    expect_all_different(meeting->slot);
    return meeting;
}

static void part(const pid_t *child) {
    for (int i = 0; i < MUX_JOB_SLOTS; i++)
        if (child[i])
            kill_now(child[i]);
}

static void claim(const char *dir) {
    make_job_page(dir);
    pid_t child[MUX_JOB_SLOTS];
    for (int round = 0; round < RACES; round++) {
        meet(dir, child); /* from the second on, in the slots of the dead */
        part(child);
    }
    struct meeting *meeting = meet(dir, child);

    struct mux_job job;
    expect(mux_job_claim(&job, dir) == ENOSPC, "the 65th finds no slot");
    kill_now(child[17]);
    child[17] = 0;
    expect(mux_job_claim(&job, dir) == 0, "a slot of the dead is free");
    expect(job.slot == meeting->slot[17], "it is that of the dead");
    struct mux_process_slot slots[MUX_JOB_SLOTS];
    expect(mux_job_read(&job, slots) == 0, "the slots can be read");
    expect(slots[job.slot].launches == 0, "nothing of the dead is left in it");
    expect(slots[meeting->slot[3]].launches == 1003, "the others' words are there");
    unsigned slot = job.slot;
    mux_job_release(&job);
    expect(mux_job_claim(&job, dir) == 0 && job.slot == slot, "a slot that was given back is free");
    struct mux_job again;
    expect(mux_job_claim(&again, dir) == 0 && again.slot == slot,
           "a process that claims again, as after exec, gets its own slot");
    part(child);
}

/* ---- owners -------------------------------------------------------------------------------------
 */

static void *outlive(void *unused) {
    while (!unused)
        pause();
    return unused;
}

/* The first thread ends; the process lives on in the second. */
static void live_without_leader(void *(*what)(void *)) {
    pthread_t thread;
    expect(pthread_create(&thread, NULL, what, NULL) == 0, "a second thread can be had");
    pthread_exit(NULL);
}

static char state_of(pid_t pid) {
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY);
    expect(fd >= 0 && read(fd, text, sizeof text - 1) > 0, "a child is in /proc");
    close(fd);
    return *(strrchr(text, ')') + 2);
}

static const char *job_directory;

static void *use_without_leader(void *unused) {
    while (state_of(getpid()) != 'Z')
        sched_yield();
    struct mux_job job = claimed(job_directory);
    struct mux_process_slot slots[MUX_JOB_SLOTS], counters = {.launches = 7};
    expect(mux_job_publish(&job, &counters) == 0 && mux_job_read(&job, slots) == 0 &&
               slots[job.slot].launches == 7,
           "its slot goes on to be its own");
    mux_job_release(&job);
    _exit(0);
    return unused;
}

static void a_process_keeps_its_slot_when_its_first_thread_has_ended(const char *dir) {
    make_job_page(dir);
    job_directory = dir;
    pid_t child = fork_child();
    if (child == 0)
        live_without_leader(use_without_leader);
    expect_success(child, "a process without its first thread goes on to its end");
}

static void use_in_a_sandbox(const char *dir) {
    if (!forbid(SYS_process_vm_readv) || !forbid(SYS_process_vm_writev))
        return;
    struct mux_job job = claimed(dir);
    struct mux_process_slot slots[MUX_JOB_SLOTS], counters = {.launches = 7};
    expect(job.copy_error == EPERM && mux_job_publish(&job, &counters) == 0 &&
               mux_job_read(&job, slots) == 0 && slots[job.slot].launches == 7,
           "a slot is written and read by its file");
    struct rlimit none = {0, 0};
    expect(setrlimit(RLIMIT_FSIZE, &none) == 0 && mux_job_publish(&job, &counters) == EFBIG,
           "a limit to what may be written is no signal");
    expect(truncate(job.path, 0) == 0 && mux_job_publish(&job, &counters) == EFAULT,
           "nor is a page that is cut");
}

static void slots_are_used_where_a_sandbox_forbids_to_copy(const char *dir) {
    make_job_page(dir);
    pid_t child = fork_child();
    if (child == 0) {
        use_in_a_sandbox(dir);
        _exit(0);
    }
    expect_success(child, "a process in a sandbox goes on to its end");
}

static void owners(void) {
    uint64_t self = mux_owner_of(getpid());
    expect(self != 0 && (uint32_t)self == (uint32_t)getpid(), "an owner holds its pid");
    expect(mux_owner_lives(self), "this process lives");
    expect(!mux_owner_lives(self + (UINT64_C(5) << 32)), "a later process of one pid is another");
    expect(!mux_owner_lives(self - (UINT64_C(5) << 32)), "so is an earlier one");
    expect(!mux_owner_lives(0) && !mux_owner_lives(UINT64_MAX) && mux_owner_of(0) == 0 &&
               mux_owner_of(-1) == 0,
           "nobody has no pid");
    expect(mux_owner_lives(mux_owner_of(1)), "somebody else's process lives as well");

    pid_t child = fork_child();
    if (child == 0)
        live_without_leader(outlive);
    uint64_t owner = mux_owner_of(child);
    while (state_of(child) != 'Z')
        sched_yield();
    expect(mux_owner_lives(owner), "a process lives whose first thread has ended");
    kill(child, SIGKILL);
    siginfo_t info;
    expect(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT) == 0, "it ends");
    expect(!mux_owner_lives(owner), "a zombie does not live");
    waitpid(child, NULL, 0);
    expect(!mux_owner_lives(owner) && mux_owner_of(child) == 0, "nor does what was reaped");
}

/* ---- quota --------------------------------------------------------------------------------------
 */

enum { HOLDERS = 6, ROUNDS = 1500, QUOTA = 1000, KILLED = 40 };

/* Bytes that were granted and are not given back yet: never more than the quota. */
static void hold_and_give_back(const struct mux_job *job, _Atomic int64_t *granted,
                               unsigned *seed) {
    uint64_t wanted = (uint64_t)rand_r(seed) % 600 + 1;
    int error = mux_job_charge(job, 0, wanted, QUOTA);
    expect(error == 0 || error == EDQUOT, "memory is granted or refused");
    if (error)
        return;
    int64_t all = atomic_fetch_add(granted, (int64_t)wanted) + (int64_t)wanted;
    expect(all <= QUOTA, "never is more granted than the quota");
    for (unsigned turn = 0; turn < wanted % 8; turn++) /* so that others ask while we hold it */
        sched_yield();
    atomic_fetch_sub(granted, (int64_t)wanted);
    expect(mux_job_charge(job, wanted, 0, QUOTA) == 0, "memory can be given back");
}

static void quota(const char *dir) {
    make_job_page(dir);
    _Atomic int64_t *granted = shared_memory(sizeof *granted);
    pid_t child[HOLDERS];
    for (int i = 0; i < HOLDERS; i++) {
        child[i] = fork_child();
        if (child[i] == 0) {
            struct mux_job job = claimed(dir);
            unsigned seed = (unsigned)i;
            for (int round = 0; round < ROUNDS; round++)
                hold_and_give_back(&job, granted, &seed);
            _exit(0);
        }
    }
    for (int i = 0; i < HOLDERS; i++)
        expect_success(child[i], "a process that holds memory goes on to its end");

    struct mux_job job = claimed(dir);
    expect(mux_job_charge(&job, 0, QUOTA + 1, QUOTA) == EDQUOT, "more than all is refused");
    expect(mux_job_charge(&job, 0, UINT64_MAX, QUOTA) == EDQUOT, "so is what would overflow");
    expect(mux_job_charge(&job, 0, UINT64_MAX, 0) == 0, "without a quota nothing is");
    expect(mux_job_charge(&job, UINT64_MAX, 0, QUOTA) == 0, "and all can be given back");
    for (int round = 0; round < KILLED; round++) {
        pid_t holder = fork_child();
        if (holder == 0) {
            struct mux_job own = claimed(dir);
            unsigned seed = (unsigned)round;
            _Atomic int64_t unchecked = 0;
            for (;;)
                hold_and_give_back(&own, &unchecked, &seed);
        }
        usleep((unsigned)round * 50); /* anywhere, and mostly with memory in hand */
        kill_now(holder);
        expect(mux_job_charge(&job, 0, QUOTA, QUOTA) == 0, "the dead are charged with nothing");
        expect(mux_job_charge(&job, QUOTA, 0, QUOTA) == 0, "and all can be given back");
    }
}

/* ---- truncation ---------------------------------------------------------------------------------
 */

static bool sensible(int error) {
    return error == 0 || error == EFAULT || error == ESTALE || error == EDQUOT;
}

/* Everything a process does with its page, again and again, whatever becomes of the page. */
static void live_on(const char *dir, const _Atomic int *stop) {
    struct mux_process_slot counters = {.launches = 1}, slots[MUX_JOB_SLOTS];
    struct mux_job job;
    mux_job_claim(&job, dir);
    while (!atomic_load(stop)) {
        int published = mux_job_publish(&job, &counters);
        expect(sensible(published), "what is wrong with the page is said");
        expect(sensible(mux_job_charge(&job, 0, 10, 100)), "and when memory is charged");
        expect(sensible(mux_job_charge(&job, 10, 0, 100)), "or given back");
        expect(sensible(mux_job_read(&job, slots)), "or slots are read");
        if (published) {
            mux_job_release(&job);
            mux_job_claim(&job, dir);
        }
    }
    _exit(0);
}

static void truncated(const char *dir) {
    make_job_page(dir);
    struct mux_job_page whole = {.header = {.magic = 0}};
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/job", dir);
    int fd = open(path, O_RDWR);
    expect(pread(fd, &whole, sizeof whole, 0) == (ssize_t)sizeof whole, "the page can be kept");
    _Atomic int *stop = shared_memory(sizeof *stop);
    pid_t child[4];
    for (int i = 0; i < 4; i++) {
        child[i] = fork_child();
        if (child[i] == 0)
            live_on(dir, stop);
    }
    for (int round = 0; round < 100; round++) {
        expect(ftruncate(fd, round % 3 ? 0 : 4096) == 0, "the page can be cut");
        sched_yield();
        expect(pwrite(fd, &whole, sizeof whole, 0) == (ssize_t)sizeof whole, "and mended");
        sched_yield();
    }
    atomic_store(stop, 1);
    for (int i = 0; i < 4; i++)
        expect_success(child[i], "nobody dies of a truncated page");

    struct mux_job job = claimed(dir);
    struct mux_process_slot counters = {.launches = 1};
    expect(ftruncate(fd, 0) == 0, "the page can be cut for good");
    expect(mux_job_publish(&job, &counters) == EFAULT, "which its processes learn");
    expect(mux_job_charge(&job, 0, 1, 100) == EFAULT, "at each call");
    mux_job_release(&job);
    expect(mux_job_claim(&job, dir) == ENODATA, "no slot is to be had");
    expect(pwrite(fd, &whole, sizeof whole, 0) == (ssize_t)sizeof whole, "the page is mended");
    job = claimed(dir);
    munmap(job.address, MUX_JOB_PAGE_BYTES);
    expect(mux_job_publish(&job, &counters) == EFAULT, "nor of one that the program unmapped");
}

/* ---- budget -------------------------------------------------------------------------------------
 */

static void spending(void) {
    struct mux_process_slot slots[MUX_JOB_SLOTS] = {{.owner = 1, .busy_ns = 500}};
    struct mux_spending spending = {0};
    mux_spending_update(&spending, slots);
    expect(spending.total_ns == 0, "what was spent before does not count");
    slots[0].busy_ns = 700;
    slots[9] = (struct mux_process_slot){.owner = 2, .busy_ns = 30};
    mux_spending_update(&spending, slots);
    mux_spending_update(&spending, slots);
    expect(spending.total_ns == 230, "growth counts once, a newcomer's all");
    slots[9] = (struct mux_process_slot){.owner = 3, .busy_ns = 5};
    mux_spending_update(&spending, slots);
    expect(spending.total_ns == 235, "another process in a slot begins anew");
    slots[0].busy_ns = 100;
    slots[9].owner = 0;
    mux_spending_update(&spending, slots);
    expect(spending.total_ns == 235, "nothing is ever taken back");
}

int main(int argc, char **argv) {
    expect(argc == 3, "usage: pages_slots claim|owners|quota|truncated|spending DIR");
    if (strcmp(argv[1], "claim") == 0)
        claim(argv[2]);
    else if (strcmp(argv[1], "owners") == 0) {
        owners();
        a_process_keeps_its_slot_when_its_first_thread_has_ended(argv[2]);
        slots_are_used_where_a_sandbox_forbids_to_copy(argv[2]);
    } else if (strcmp(argv[1], "quota") == 0)
        quota(argv[2]);
    else if (strcmp(argv[1], "truncated") == 0)
        truncated(argv[2]);
    else
        spending();
    return 0;
}
