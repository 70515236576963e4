/* What the tests of the pages share: a failure ends the program with a sentence on stderr. */
#ifndef MUXFLOW_PAGES_TESTING_H
#define MUXFLOW_PAGES_TESTING_H

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "pages_python.h"

static inline void expect(bool true_, const char *sentence) {
    if (true_)
        return;
    fprintf(stderr, "not so: %s (errno %d)\n", sentence, errno);
    _exit(1);
}

static inline int64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* A page of its kind as its creator makes it; `bytes` of it, which may be too few. */
static inline void make_page(const char *directory, const char *name, enum mux_page_kind kind,
                             const void *content, size_t page_bytes, size_t bytes) {
    char path[PATH_MAX], unfinished[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    snprintf(unfinished, sizeof unfinished, "%s/.%s.new", directory, name);
    uint8_t *raw = calloc(1, page_bytes);
    memcpy(raw, content, page_bytes);
    struct mux_page_header header = {
        .magic = MUX_PAGE_MAGIC,
        .kind = kind,
        .version = MUX_PAGE_VERSION,
        .size_bytes = page_bytes,
        .uuid = "GPU-test",
    };
    memcpy(raw, &header, sizeof header);
    int fd = open(unfinished, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    expect(fd >= 0 && write(fd, raw, bytes) == (ssize_t)bytes, "a page can be written");
    close(fd);
    expect(rename(unfinished, path) == 0, "a page gets its name");
    free(raw);
}

static inline void make_device_page(const char *directory, struct mux_device_page content) {
    uint8_t page[MUX_DEVICE_PAGE_BYTES] = {0};
    memcpy(page, &content, sizeof content);
    make_page(directory, "device", MUX_PAGE_DEVICE, page, sizeof page, sizeof page);
}

static inline void make_job_page(const char *directory) {
    static const struct mux_job_page empty;
    make_page(directory, "job", MUX_PAGE_JOB, &empty, sizeof empty, sizeof empty);
}

/* A page for its writer. */
static inline void *map_page(const char *directory, const char *name, size_t bytes) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_RDWR);
    void *page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    expect(fd >= 0 && page != MAP_FAILED, "a page can be mapped");
    close(fd);
    return page;
}

/* Memory that children share with their parent. */
static inline void *shared_memory(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    expect(memory != MAP_FAILED, "there is memory to share");
    return memory;
}

/* A child that ends with its parent, however that ends. */
static inline pid_t fork_child(void) {
    pid_t child = fork();
    expect(child >= 0, "a process can be forked");
    if (child == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    return child;
}

static inline void expect_success(pid_t child, const char *sentence) {
    int status;
    expect(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0,
           sentence);
}

static inline void kill_now(pid_t child) {
    int status;
    kill(child, SIGKILL);
    expect(waitpid(child, &status, 0) == child && WIFSIGNALED(status), "a child was killed");
}

/* The system answers a call with EPERM from now on, as in a sandbox. Not everywhere, as under an
 * emulator. */
static inline bool forbid(unsigned call) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

#endif
