/* Children of a program that uses CUDA: `processes WAY`. */
#include <pthread.h>
#include <spawn.h>
#include <sys/wait.h>

#include "conformance.h"

extern char **environ;
static char *echo[] = {"/bin/echo", "child", NULL};
static _Atomic bool over;

static int end_of(pid_t child) {
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child)
        return 97;
    printf("%d\n", status);
    return 0;
}

static int forked(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        _exit(12);
    return end_of(child);
}

static int forked_and_exits(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        exit(13);
    return end_of(child);
}

static int forked_and_executed(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        execv(echo[0], echo);
    return end_of(child);
}

static int forked_shortly(void) {
    fflush(stdout);
    pid_t child = vfork();
    if (child == 0) {
        execv(echo[0], echo);
        _exit(1);
    }
    return end_of(child);
}

static int spawned(void) {
    pid_t child = -1;
    fflush(stdout);
    posix_spawn(&child, echo[0], NULL, NULL, echo, environ);
    return end_of(child);
}

static int by_the_shell(void) {
    fflush(stdout);
    int status = system("kill -TERM $$");
    printf("%d\n", status);
    FILE *pipe = popen("echo piped; exit 3", "r");
    char line[16] = "";
    printf("%s", fgets(line, sizeof line, pipe));
    printf("%d\n", pclose(pipe));
    return 0;
}

static int killed(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        for (;;)
            pause();
    }
    kill(child, SIGTERM);
    return end_of(child);
}

/* The driver's contexts do not outlive a fork. */
static int forked_and_launches(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        printf("%d %d\n", (int)cuCtxSynchronize(), (int)add(1000, stream));
        fflush(stdout);
        _exit(0);
    }
    return end_of(child);
}

/* Runs in a program of its own: nothing of CUDA has been used in it. */
static int executed_itself(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        execl("/proc/self/exe", "processes", "forked", NULL);
    return end_of(child);
}

static void *work(void *nothing) {
    cuCtxSetCurrent(context);
    while (!over)
        NEED(add(20000, stream));
    return nothing;
}

static int forked_again_and_again(void) {
    pthread_t threads[3];
    int failed = 0;
    fflush(stdout);
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, work, NULL);
    for (int i = 0; i < 40; i++) {
        int status = 0;
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        waitpid(child, &status, 0);
        failed += status != 0;
    }
    over = true;
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    printf("%d\n", failed);
    return 0;
}

static int as_a_daemon(void) {
    int ends[2];
    char byte = '?';
    if (pipe(ends) != 0)
        return 97;
    fflush(stdout);
    if (fork() == 0) {
        setsid();
        if (fork() == 0)
            (void)!write(ends[1], "d", 1);
        _exit(0);
    }
    if (read(ends[0], &byte, 1) != 1)
        return 97;
    printf("%c\n", byte);
    return 0;
}

static const struct way ways[] = {
    {"forked", forked},
    {"forked-exits", forked_and_exits},
    {"forked-executed", forked_and_executed},
    {"vforked", forked_shortly},
    {"spawned", spawned},
    {"shell", by_the_shell},
    {"killed", killed},
    {"forked-launches", forked_and_launches},
    {"itself", executed_itself},
    {"again", forked_again_and_again},
    {"daemon", as_a_daemon},
    {NULL, NULL},
};

int main(int arguments, char **argument) {
    begin();
    NEED(add(1000, stream));
    printf("%u\n", sum());
    return arguments == 2 ? go_the_way(ways, argument[1]) : 98;
}
