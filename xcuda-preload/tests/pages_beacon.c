/* Beacon pages: what a reader takes from them, and what becomes of the one that a process makes.
 *
 *   pages_beacon rule          when the online side keeps others off
 *   pages_beacon own DIR       a page is made, looked after, left to others and taken away
 *   pages_beacon refused DIR   what may be in the way of a page
 *   pages_beacon full DIR      the file system of DIR has no room
 *   pages_beacon found DIR     pages come and go under a reader
 *   pages_beacon garbage DIR   what lies beside them, and pages that are cut
 */
#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/resource.h>

#include "pages_testing.h"

enum { HOLDOFF_US = 500 };
#define US INT64_C(1000)
#define MS INT64_C(1000000)

/* ---- the rule ----------------------------------------------------------------------------------
 */

static void keeps_off_while_active_and_for_the_holdoff(void) {
    struct mux_beacon_seen seen = {.launches = 0};
    struct mux_beacon_slot slot = {.owner = 1};
    int64_t at = 1000 * MS;
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, at) == 0, "who never launched is idle");
    slot.launches = 3;
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, at) == INT64_MAX, "a launch is active");
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, at + 19 * MS) == INT64_MAX,
           "and stays so while nothing says that it is complete");
    slot.complete = 3;
    at += 19 * MS;
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, at) == HOLDOFF_US * US, "then others wait");
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, at + 200 * US) == 300 * US, "no longer");
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, at + HOLDOFF_US * US) == 0, "than the rest");
}

static void a_launch_and_its_end_between_two_looks_are_seen(void) {
    struct mux_beacon_seen seen = {.launches = 7, .complete = 7, .changed_ns = 0};
    struct mux_beacon_slot slot = {.owner = 1, .launches = 8, .complete = 8};
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, 50 * MS) == HOLDOFF_US * US,
           "what began and ended since the last look counts as just ended");
}

static void who_stands_still_keeps_nobody_off(void) {
    struct mux_beacon_seen seen = {.launches = 0};
    struct mux_beacon_slot slot = {.owner = 1, .launches = 5};
    int64_t patience_ns = MUX_BEACON_PATIENCE_US * US;
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, MS) == INT64_MAX, "a launch is active");
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, MS + patience_ns) == 0, "within bounds");
    slot.launches++;
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, MS + patience_ns) == INT64_MAX, "again");
    slot.owner = 0;
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, MS + patience_ns) == 0, "nobody is nobody");
}

/* ---- a directory of pages ----------------------------------------------------------------------
 */

static const char *beacons; /* DIR/beacons */

static void make_directory(const char *dir) {
    static char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/beacons", dir);
    beacons = path;
    expect(mkdir(path, 0755) == 0 && chmod(path, 01777) == 0, "a directory can be made");
}

static const char *in_directory(const char *name) {
    static char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", beacons, name);
    return path;
}

static void rename_to(const char *before, const char *after) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", beacons, before);
    expect(rename(path, in_directory(after)) == 0, "a file can have another name");
}

static const char *numbered(unsigned number) {
    static char name[32];
    snprintf(name, sizeof name, "%016x", number);
    return name;
}

/* A page as of a process that lives; `bytes` of it. */
static void make_beacon(unsigned number, uint64_t launches, size_t bytes) {
    struct mux_beacon_page page = {.slot = {mux_owner_of(getpid()), launches, 0, {0}}};
    make_page(beacons, numbered(number), MUX_PAGE_BEACON, &page, sizeof page, bytes);
}

static unsigned names_in_directory(void) {
    DIR *directory = opendir(beacons);
    unsigned names = 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        names += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(directory);
    return names;
}

static bool is_locked(const char *path) {
    int fd = open(path, O_RDONLY);
    bool locked = flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    close(fd);
    return locked;
}

/* A mapping that goes lets go of its file a moment later. */
static bool is_soon_unlocked(const char *path) {
    int64_t until_ns = clock_ns(CLOCK_MONOTONIC) + 10000 * MS;
    while (is_locked(path) && clock_ns(CLOCK_MONOTONIC) < until_ns)
        usleep(1000);
    return access(path, F_OK) == 0 && !is_locked(path);
}

static bool same_name(const struct mux_beacon *beacon, const char *before) {
    return strcmp(beacon->path, before) == 0;
}

/* ---- one's own ---------------------------------------------------------------------------------
 */

static void a_page_is_whole_locked_and_read_only(const char *dir) {
    static struct mux_beacon own;
    umask(077);
    expect(mux_beacon_claim(&own, dir) == 0, "a page can be made");
    struct stat file;
    expect(stat(own.path, &file) == 0 && file.st_size == MUX_BEACON_PAGE_BYTES, "it is whole");
    expect((file.st_mode & 07777) == 0444,
           "for everyone to read, whatever the umask, not to write");
    expect(is_locked(own.path), "its lock stays, without a descriptor");
    own.slot->launches = 4;
    int fd = open(own.path, O_RDONLY);
    struct mux_beacon_page page;
    expect(read(fd, &page, sizeof page) == sizeof page && page.slot.launches == 4,
           "others read it");
    expect(page.slot.owner == mux_owner_of(getpid()), "and whose it is");
    close(fd);
    expect(mux_beacon_claim(&own, dir) == 0 && own.slot->launches == 4, "it stays ours");
    expect(names_in_directory() == 1, "and is the only file");
    mux_beacon_end(&own);
    expect(names_in_directory() == 0, "until its process takes it away");
    own.slot->launches++; /* as another thread may do */
}

static void nobody_cuts_it_who_does_not_mean_to(const char *dir) {
    static struct mux_beacon own;
    expect(mux_beacon_claim(&own, dir) == 0, "a page can be made");
    pid_t child = fork_child();
    if (child == 0) {
        struct mux_beacon theirs = {.owner = 0};
        bool another = geteuid() == 0;
        if (another)
            expect(chmod(dir, 0755) == 0 && setuid(65534) == 0, "root can become somebody else");
        expect(mux_beacon_claim(&theirs, dir) == 0, "another user has a page too");
        expect(open(theirs.path, O_WRONLY | O_TRUNC) < 0 && errno == EACCES, "a redirection fails");
        expect(truncate(theirs.path, 0) != 0 && errno == EACCES, "into one's own");
        if (another) {
            expect(truncate(own.path, 0) != 0 && errno == EACCES, "and into another's");
            expect(unlink(own.path) != 0 && errno == EPERM, "which stays where it is");
        }
        mux_beacon_end(&theirs);
        _exit(0);
    }
    expect_success(child, "nobody else gets at a page");
    mux_beacon_end(&own);
}

static void a_child_has_its_own_and_leaves_its_parents_alone(const char *dir) {
    static struct mux_beacon own;
    char parents[PATH_MAX];
    expect(mux_beacon_claim(&own, dir) == 0, "a page can be made");
    strcpy(parents, own.path);
    for (int told = 0; told < 2; told++) { /* a child of clone() is not told that it is one */
        pid_t child = fork_child();
        if (child == 0) {
            if (told)
                mux_beacon_forget(&own);
            expect(mux_beacon_claim(&own, dir) == 0, "a child makes a page");
            own.slot->launches = 7;
            expect(!same_name(&own, parents) && is_locked(parents), "of its own");
            mux_beacon_end(&own);
            _exit(access(parents, F_OK) != 0);
        }
        expect_success(child, "and leaves its parent's where it is");
    }
    expect(own.slot->launches == 0 && is_locked(parents), "which goes on as it was");
    mux_beacon_end(&own);
}

static void a_lock_goes_with_the_process_and_not_with_its_children(const char *dir) {
    struct mux_beacon *own = shared_memory(sizeof *own);
    pid_t *grandchild = shared_memory(sizeof *grandchild);
    pid_t child = fork_child();
    if (child == 0) {
        expect(mux_beacon_claim(own, dir) == 0, "a page can be made");
        pid_t forked = fork();
        if (forked == 0) {
            struct mux_beacon inherited = *own;
            mux_beacon_forget(&inherited);
            raise(SIGSTOP);
            _exit(0);
        }
        *grandchild = forked;
        expect(waitpid(forked, NULL, WUNTRACED) == forked, "a child stops");
        raise(SIGKILL);
    }
    expect(waitpid(child, NULL, 0) == child, "a process is killed");
    expect(is_soon_unlocked(own->path), "a child keeps no lock of it");
    kill(*grandchild, SIGKILL);
    unlink(own->path);
}

static void exec_leaves_a_page_without_a_lock(const char *dir) {
    struct mux_beacon *own = shared_memory(sizeof *own);
    int until[2], closed[2];
    char byte;
    expect(pipe(until) == 0 && pipe2(closed, O_CLOEXEC) == 0, "there are pipes");
    pid_t child = fork_child();
    if (child == 0) {
        expect(mux_beacon_claim(own, dir) == 0, "a page can be made");
        dup2(until[0], STDIN_FILENO);
        close(until[1]);
        execlp("cat", "cat", NULL);
    }
    close(closed[1]);
    expect(read(closed[0], &byte, 1) == 0, "another program runs");
    expect(is_soon_unlocked(own->path), "it is no online process");
    close(until[1]);
    expect_success(child, "and ends");
    unlink(own->path);
}

static void a_page_that_somebody_spoilt_is_made_anew(const char *dir) {
    static struct mux_beacon own;
    char before[PATH_MAX];
    for (int how = 0; how < 6; how++) {
        expect(mux_beacon_claim(&own, dir) == 0, "a page can be made");
        strcpy(before, own.path);
        chmod(before, 0644);
        int fd = open(before, O_RDWR);
        chmod(before, 0444);
        switch (how) {
        case 0:
            unlink(before);
            break;
        case 1:
            chmod(before, 0);
            break;
        case 2:
            expect(ftruncate(fd, 0) == 0, "who means to can cut it");
            break;
        case 3:
            expect(pwrite(fd, "garbage", 7, 0) == 7, "or write over it");
            break;
        case 4:
            own.slot->owner = 1;
            break;
        default:
            rename(before, in_directory("elsewhere"));
            break;
        }
        close(fd);
        expect(mux_beacon_claim(&own, dir) == 0 && !same_name(&own, before), "another is made");
        own.slot->launches++;
        unlink(in_directory("elsewhere"));
        expect(names_in_directory() == 1 && is_locked(own.path), "and the only one");
    }
    mux_beacon_end(&own);
}

/* ---- in the way --------------------------------------------------------------------------------
 */

static void without_a_directory_there_is_no_page_until_it_comes(const char *dir) {
    static struct mux_beacon own;
    expect(mux_beacon_claim(&own, NULL) == ENOENT, "nobody said where");
    expect(mux_beacon_claim(&own, dir) == ENOENT, "there is no directory");
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/beacons", dir);
    close(open(path, O_CREAT | O_WRONLY, 0644));
    expect(mux_beacon_claim(&own, dir) == ENOTDIR, "a file is none");
    unlink(path);
    make_directory(dir);
    expect(mux_beacon_claim(&own, dir) == 0, "one that comes is used");
    expect(rmdir(beacons) != 0 && unlink(own.path) == 0 && rmdir(beacons) == 0, "it goes");
    own.slot->launches = 3;
    expect(mux_beacon_claim(&own, dir) == 0 && own.slot->launches == 3, "the page outlives it");
    make_directory(dir);
    expect(mux_beacon_claim(&own, dir) == 0 && own.slot->launches == 0, "until it comes again");
    mux_beacon_end(&own);
}

static void limits_of_the_process_are_no_signal(const char *dir) {
    static struct mux_beacon own;
    struct rlimit before, none;
    getrlimit(RLIMIT_FSIZE, &before);
    none = (struct rlimit){100, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &none);
    expect(mux_beacon_claim(&own, dir) == EFBIG, "a process that may not write files");
    setrlimit(RLIMIT_FSIZE, &before);
    getrlimit(RLIMIT_NOFILE, &before);
    none = (struct rlimit){0, before.rlim_max};
    setrlimit(RLIMIT_NOFILE, &none);
    expect(mux_beacon_claim(&own, dir) == EMFILE, "nor open them has no page");
    setrlimit(RLIMIT_NOFILE, &before);
    expect(names_in_directory() == 0 && mux_beacon_claim(&own, dir) == 0, "until it may");
    mux_beacon_end(&own);
}

static void who_may_not_make_files_has_no_page(const char *dir) {
    if (geteuid() != 0)
        return;
    pid_t child = fork_child();
    if (child == 0) {
        struct mux_beacon own = {.owner = 0};
        chmod(dir, 0755);
        chmod(beacons, 0755);
        expect(setuid(65534) == 0, "root can become somebody else");
        _exit(mux_beacon_claim(&own, dir) != EACCES);
    }
    expect_success(child, "who may not make files in the directory has no page");
    chmod(beacons, 01777);
}

static void a_full_file_system_refuses_here_and_not_at_a_launch(const char *dir) {
    static struct mux_beacon own;
    make_directory(dir);
    int fd = open(in_directory("all"), O_CREAT | O_WRONLY, 0644);
    static char block[4096];
    while (write(fd, block, sizeof block) > 0)
        continue;
    expect(mux_beacon_claim(&own, dir) == ENOSPC, "there is no room");
    expect(names_in_directory() == 1, "and nothing is left of the attempt");
    close(fd);
    unlink(in_directory("all"));
    expect(mux_beacon_claim(&own, dir) == 0, "there is room again");
}

/* ---- reading -----------------------------------------------------------------------------------
 */

static struct mux_beacon_reader reader;

static int64_t wait_at(int64_t now_ns) {
    reader.looked_ns = 0; /* each look is one at the directory, too */
    return mux_beacon_wait_ns(&reader, HOLDOFF_US, now_ns);
}

static void the_directory_is_looked_at_ten_times_in_a_millisecond(const char *dir) {
    static struct mux_beacon own;
    int64_t at = 1000 * MS;
    mux_beacon_open(&reader, dir, at);
    expect(mux_beacon_claim(&own, dir) == 0, "a page can be made");
    own.slot->launches = 1;
    expect(mux_beacon_wait_ns(&reader, HOLDOFF_US, at + 99 * US) == 0, "not yet");
    expect(mux_beacon_wait_ns(&reader, HOLDOFF_US, at + 100 * US) == INT64_MAX, "now it is seen");
    mux_beacon_end(&own);
    mux_beacon_close(&reader);
}

static void pages_are_seen_at_the_next_look(const char *dir) {
    int64_t at = 1000 * MS;
    mux_beacon_open(&reader, dir, at);
    expect(reader.pages == 0 && wait_at(at) == 0, "nobody is there");
    static struct mux_beacon own[3];
    for (unsigned i = 0; i < 3; i++) { /* all in one tick of the directory's clock */
        expect(mux_beacon_claim(&own[i], dir) == 0, "a page can be made");
        expect(wait_at(at += MS) == 0 && reader.pages == i + 1, "it is seen at once");
        own[i].slot->launches = 1;
        expect(wait_at(at) == INT64_MAX, "a launch too");
        own[i].slot->complete = 1;
        expect(wait_at(at) == HOLDOFF_US * US, "and its end");
    }
    at += 1000 * MS;
    own[1].slot->launches++;
    expect(wait_at(at) == INT64_MAX, "later ones too");
    mux_beacon_end(&own[1]);
    expect(wait_at(at) == 0 && reader.pages == 3, "a page that has gone is nobody's");
    expect(mux_beacon_claim(&own[1], dir) == 0, "one that has come again");
    own[1].slot->launches = 1;
    expect(wait_at(at) == INT64_MAX && reader.pages == 3, "has its place");
    expect(wait_at(at + 50 * MS) == 0, "and stands still");
    for (unsigned i = 0; i < 3; i++)
        mux_beacon_end(&own[i]);
    expect(wait_at(at + 60 * MS) == 0 && reader.pages == 0, "all have gone");
    expect(mux_beacon_wait_ns(&reader, 0, at) == 0, "no hold-off, no beacon");
    mux_beacon_close(&reader);
}

static void
a_directory_that_comes_later_is_found_and_one_that_goes_changes_nothing(const char *dir) {
    char elsewhere[PATH_MAX];
    snprintf(elsewhere, sizeof elsewhere, "%s/elsewhere", dir);
    rename(beacons, elsewhere);
    int64_t at = 1000 * MS;
    mux_beacon_open(&reader, dir, at);
    expect(wait_at(at) == 0, "there is no directory");
    rename(elsewhere, beacons);
    make_beacon(1, 1, MUX_BEACON_PAGE_BYTES);
    expect(wait_at(at += 50 * US) == INT64_MAX, "it comes");
    rename(beacons, elsewhere);
    mux_beacon_refresh(&reader);
    expect(wait_at(at += 50 * US) == INT64_MAX, "what is known outlives it");
    rename(elsewhere, beacons);
    unlink(in_directory(numbered(1)));
    expect(wait_at(at) == 0 && reader.pages == 0, "it is back");
    mux_beacon_close(&reader);
}

static void the_dead_are_not_looked_at(const char *dir) {
    struct mux_beacon *gone = shared_memory(sizeof *gone);
    pid_t child = fork_child();
    if (child == 0) {
        expect(mux_beacon_claim(gone, dir) == 0, "a page can be made");
        gone->slot->launches = 1;
        for (;;)
            pause();
    }
    int64_t at = 1000 * MS;
    mux_beacon_open(&reader, dir, at);
    while (wait_at(at) != INT64_MAX)
        mux_beacon_refresh(&reader);
    kill_now(child);
    expect(wait_at(at + MUX_BEACON_PATIENCE_US * US) == 0, "the killed keep nobody off for long");
    mux_beacon_close(&reader);
    expect(is_soon_unlocked(gone->path), "their locks go");
    mux_beacon_open(&reader, dir, at);
    expect(reader.pages == 0 && wait_at(at) == 0, "who comes later does not look at them");
    mux_beacon_close(&reader);
    unlink(gone->path);
}

/* An online process that is the first one of a PID namespace, with the /proc of ours. Its parent,
 * who ends when that cannot be had. */
static pid_t in_a_namespace(struct mux_beacon *own, const char *dir) {
    pid_t child = fork_child();
    if (child != 0)
        return child;
    if (unshare(CLONE_NEWPID) != 0)
        _exit(0);
    pid_t first = fork_child();
    if (first == 0) {
        expect(getpid() == 1 && mux_beacon_claim(own, dir) == 0, "a page can be made");
        expect(own->owner == 1, "under the one name that is known");
        own->slot->launches = 1;
        for (;;)
            pause();
    }
    waitpid(first, NULL, 0);
    _exit(1);
}

static void two_of_one_pid_do_not_disturb_each_other(const char *dir) {
    struct mux_beacon *own = shared_memory(2 * sizeof *own);
    int64_t at = 1000 * MS;
    pid_t child[2];
    for (int i = 0; i < 2; i++)
        child[i] = in_a_namespace(&own[i], dir);
    mux_beacon_open(&reader, dir, at);
    while (wait_at(at) == 0 || reader.pages < 2) {
        if (waitpid(child[0], NULL, WNOHANG) != 0) /* only root makes namespaces */
            return;
        usleep(1000);
    }
    expect(strcmp(own[0].path, own[1].path) != 0, "each has a page");
    kill_now(child[0]);
    expect(is_soon_unlocked(own[0].path), "one ends");
    expect(is_locked(own[1].path), "and the other does not");
    mux_beacon_close(&reader);
    mux_beacon_open(&reader, dir, at);
    expect(reader.pages == 1 && wait_at(at) == INT64_MAX, "readers see it alone");
    mux_beacon_close(&reader);
    kill_now(child[1]);
    unlink(own[0].path);
    unlink(own[1].path);
}

static void of_more_than_there_is_room_for_the_rest_waits_for_its_turn(const char *dir) {
    int64_t at = 1000 * MS;
    for (unsigned i = 1; i <= MUX_BEACON_PROCESSES + 5; i++)
        make_beacon(i, 0, MUX_BEACON_PAGE_BYTES);
    mux_beacon_open(&reader, dir, at);
    expect(reader.pages == MUX_BEACON_PROCESSES && wait_at(at) == 0, "so many are looked at");
    for (unsigned i = 1; i <= MUX_BEACON_PROCESSES; i++)
        unlink(in_directory(numbered(i)));
    expect(wait_at(at) == 0 && reader.pages > 0, "and others when those have gone");
    mux_beacon_refresh(&reader);
    unsigned known = 0;
    for (unsigned i = 0; i < reader.pages; i++)
        known += reader.known[i].name > MUX_BEACON_PROCESSES;
    expect(known == 5, "each of them");
    for (unsigned i = 1; i <= 5; i++)
        unlink(in_directory(numbered(MUX_BEACON_PROCESSES + i)));
    mux_beacon_close(&reader);
}

static struct mux_beacon online; /* of another process than the one that reads */

static void *read_without_leader(void *nothing) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)getpid());
    do {
        int fd = open(path, O_RDONLY);
        expect(read(fd, text, sizeof text) > 0, "a process is in /proc");
        close(fd);
    } while (*(strrchr(text, ')') + 2) != 'Z');
    expect(wait_at(2000 * MS) == INT64_MAX && reader.copy_error == 0, "launches are seen");
    _exit(0);
    return nothing;
}

static void threads_see_pages_when_the_first_one_has_ended(const char *dir) {
    expect(mux_beacon_claim(&online, dir) == 0, "a page can be made");
    online.slot->launches = 1;
    pid_t child = fork_child();
    if (child == 0) {
        mux_beacon_open(&reader, dir, 1000 * MS);
        pthread_t thread;
        expect(pthread_create(&thread, NULL, read_without_leader, NULL) == 0, "there is a thread");
        pthread_exit(NULL);
    }
    expect_success(child, "a process without its first thread goes on to its end");
    mux_beacon_end(&online);
    mux_beacon_forget(&online);
}

static void read_in_a_sandbox(const char *dir) {
    int64_t at = 1000 * MS;
    if (!forbid(SYS_process_vm_readv))
        return;
    make_beacon(1, 0, MUX_BEACON_PAGE_BYTES);
    mux_beacon_open(&reader, dir, at);
    expect(wait_at(at) == INT64_MAX && reader.copy_error == EPERM, "a launch is seen");
    online.slot->complete = 1;
    expect(wait_at(at += MS) == HOLDOFF_US * US, "and its end");
    expect(wait_at(at += MS) == 0, "and nothing more");

    struct rlimit none = {0, 0};
    expect(setrlimit(RLIMIT_NOFILE, &none) == 0, "there may be no descriptor left");
    expect(wait_at(at) == INT64_MAX && wait_at(at + 100 * MS) == INT64_MAX,
           "what cannot be read counts as active");
}

static void pages_are_read_where_a_sandbox_forbids_to_copy(const char *dir) {
    expect(mux_beacon_claim(&online, dir) == 0, "a page can be made");
    online.slot->launches = 1;
    pid_t child = fork_child();
    if (child == 0) {
        read_in_a_sandbox(dir);
        _exit(0);
    }
    expect_success(child, "a process in a sandbox goes on to its end");
    unlink(in_directory(numbered(1)));
    mux_beacon_end(&online);
    mux_beacon_forget(&online);
}

/* ---- garbage -----------------------------------------------------------------------------------
 */

static void what_is_no_page_is_nobody(const char *dir) {
    int64_t at = 1000 * MS;
    make_beacon(1, 1, 100);
    make_page(beacons, numbered(2), MUX_PAGE_JOB, (uint8_t[200]){0}, 200, 200);
    make_page(beacons, numbered(3), MUX_PAGE_BEACON, (uint8_t[4096]){0}, 4096, 4096);
    make_page(beacons, numbered(4), MUX_PAGE_BEACON, (uint8_t[192]){0}, 192, 192); /* nobody's */
    close(open(in_directory(numbered(5)), O_CREAT | O_WRONLY, 0444));
    mkdir(in_directory(numbered(6)), 0755);
    mkfifo(in_directory(numbered(7)), 0666);
    make_beacon(8, 1, MUX_BEACON_PAGE_BYTES);
    char elsewhere[PATH_MAX];
    snprintf(elsewhere, sizeof elsewhere, "%s/page", dir);
    rename(in_directory(numbered(8)), elsewhere);
    expect(symlink(elsewhere, in_directory(numbered(9))) == 0, "there is a link to a page");
    expect(symlink("/dev/zero", in_directory(numbered(10))) == 0, "and one to a device");
    make_beacon(11, 1, MUX_BEACON_PAGE_BYTES);
    rename_to(numbered(11), "000000000000001G");
    make_beacon(12, 1, MUX_BEACON_PAGE_BYTES);
    rename_to(numbered(12), "000000000000000b.old");
    mux_beacon_open(&reader, dir, at);
    expect(reader.pages == 0 && wait_at(at) == 0, "nothing of that is a page");
    make_beacon(13, 1, MUX_BEACON_PAGE_BYTES);
    int fd = open(in_directory(numbered(13)), O_RDWR);
    expect(ftruncate(fd, INT64_C(1) << 40) == 0, "a page may be huge");
    expect(wait_at(at) == INT64_MAX && reader.pages == 1, "and is read as far as it is one");
    close(fd);
    mux_beacon_close(&reader);
}

static void thousands_of_files_take_bounded_time_and_hide_nobody_who_is_known(const char *dir) {
    int64_t at = 1000 * MS;
    mux_beacon_open(&reader, dir, at);
    expect(reader.pages == 1, "one is known");
    for (unsigned i = 100; i < 2100; i++)
        close(open(in_directory(numbered(i)), O_CREAT | O_WRONLY, 0444));
    int64_t before_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    for (int i = 0; i < 10; i++)
        mux_beacon_refresh(&reader);
    expect(clock_ns(CLOCK_THREAD_CPUTIME_ID) - before_ns < 1000 * MS, "a listing is short");
    expect(reader.pages == 1, "and who is known stays");
    for (unsigned i = 100; i < 2100; i++)
        unlink(in_directory(numbered(i)));
    mux_beacon_close(&reader);
}

static void pages_that_are_cut_end_no_reader_and_hide_no_other(const char *dir) {
    int64_t at = 1000 * MS;
    for (unsigned i = 14; i < 18; i++)
        make_beacon(i, 0, MUX_BEACON_PAGE_BYTES);
    unlink(in_directory(numbered(13)));
    mux_beacon_open(&reader, dir, at);
    expect(reader.pages == 4 && wait_at(at += 50 * US) == 0, "there are four");
    for (unsigned i = 14; i < 17; i++)
        expect(truncate(in_directory(numbered(i)), 0) == 0, "three of them are cut");
    at += 100 * MS;
    struct mux_beacon_page *page = map_page(beacons, numbered(17), sizeof *page);
    page->slot.launches++;
    expect(wait_at(at) == INT64_MAX, "the fourth is seen");
    unsigned known = 0;
    for (unsigned i = 0; i < reader.pages; i++)
        known += reader.known[i].name != 0;
    expect(known == 1, "the others are dropped");
    mux_beacon_refresh(&reader);
    expect(wait_at(at) == INT64_MAX, "and stay so");
    mux_beacon_close(&reader);
}

int main(int count, char **arguments) {
    const char *what = count > 1 ? arguments[1] : "", *dir = count > 2 ? arguments[2] : "";
    if (strcmp(what, "rule") == 0) {
        keeps_off_while_active_and_for_the_holdoff();
        a_launch_and_its_end_between_two_looks_are_seen();
        who_stands_still_keeps_nobody_off();
    } else if (strcmp(what, "own") == 0) {
        make_directory(dir);
        a_page_is_whole_locked_and_read_only(dir);
        nobody_cuts_it_who_does_not_mean_to(dir);
        a_child_has_its_own_and_leaves_its_parents_alone(dir);
        a_lock_goes_with_the_process_and_not_with_its_children(dir);
        exec_leaves_a_page_without_a_lock(dir);
        a_page_that_somebody_spoilt_is_made_anew(dir);
    } else if (strcmp(what, "refused") == 0) {
        without_a_directory_there_is_no_page_until_it_comes(dir);
        limits_of_the_process_are_no_signal(dir);
        who_may_not_make_files_has_no_page(dir);
    } else if (strcmp(what, "full") == 0) {
        a_full_file_system_refuses_here_and_not_at_a_launch(dir);
    } else if (strcmp(what, "found") == 0) {
        make_directory(dir);
        the_directory_is_looked_at_ten_times_in_a_millisecond(dir);
        pages_are_seen_at_the_next_look(dir);
        a_directory_that_comes_later_is_found_and_one_that_goes_changes_nothing(dir);
        the_dead_are_not_looked_at(dir);
        threads_see_pages_when_the_first_one_has_ended(dir);
        pages_are_read_where_a_sandbox_forbids_to_copy(dir);
        two_of_one_pid_do_not_disturb_each_other(dir);
        of_more_than_there_is_room_for_the_rest_waits_for_its_turn(dir);
    } else if (strcmp(what, "garbage") == 0) {
        make_directory(dir);
        what_is_no_page_is_nobody(dir);
        thousands_of_files_take_bounded_time_and_hide_nobody_who_is_known(dir);
        pages_that_are_cut_end_no_reader_and_hide_no_other(dir);
    } else {
        expect(false, "there is a test of this name");
    }
    return 0;
}
