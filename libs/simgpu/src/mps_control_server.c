#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "mps_control.h"
#include "mps_log.h"

static const char server_name[] = "nvidia-cuda-mps-server";

/* The server of this build lies beside this program. */
static int server_path(char path[PATH_MAX]) {
    ssize_t length = readlink("/proc/self/exe", path, PATH_MAX - 1);
    if (length < 0)
        return -errno;
    path[length] = '\0';
    char *name = strrchr(path, '/') + 1;
    if ((size_t)(path + PATH_MAX - name) < sizeof server_name)
        return -ENAMETOOLONG;
    memcpy(name, server_name, sizeof server_name);
    return access(path, X_OK) == 0 ? 0 : -errno;
}

/* "<index>:<record>,...": where the server finds its records. */
static void records_text(const struct mps_devices *devices, char *text, size_t room) {
    size_t length = 0;
    text[0] = '\0';
    for (unsigned i = 0; i < devices->count && length < room; i++)
        length += (size_t)snprintf(text + length, room - length, "%s%u:%u", i > 0 ? "," : "",
                                   devices->list[i].index, devices->list[i].record);
}

/* In the child: never returns. */
static void become_server(const char *path, const char *records, uid_t uid, int channel,
                          int log_fd) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    /* Both to safe numbers first: one may stand where the other has to go. */
    int safe_channel = fcntl(channel, F_DUPFD_CLOEXEC, 10);
    int safe_log = fcntl(log_fd, F_DUPFD_CLOEXEC, 10);
    if (dup2(safe_channel, MPS_SERVER_CHANNEL) < 0 || dup2(safe_log, MPS_SERVER_LOG) < 0)
        _exit(1);
    if (uid != geteuid() && (setgroups(0, NULL) != 0 || setuid(uid) != 0))
        _exit(1);
    execl(path, server_name, records, (char *)NULL);
    _exit(1);
}

int mps_server_start(struct mps_server *server, uid_t uid, const struct mps_limits *limits,
                     const struct mps_devices *devices, int log_fd) {
    char path[PATH_MAX], records[SIMGPU_DEVICES * 8];
    int channel[2];
    int result = server_path(path);
    if (result != 0)
        return result;
    records_text(devices, records, sizeof records);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel) != 0)
        return -errno;
    pid_t pid = fork();
    if (pid == 0)
        become_server(path, records, uid, channel[1], log_fd);
    close(channel[1]);
    if (pid < 0) {
        result = -errno;
        close(channel[0]);
        return result;
    }
    *server = (struct mps_server){.pid = pid, .uid = uid, .channel = channel[0], .limits = *limits};
    return 0;
}

void mps_server_stop(struct mps_server *server) {
    char packet = MPS_STOP;
    if (server->stopping)
        return;
    server->stopping = true;
    if (send(server->channel, &packet, 1, MSG_NOSIGNAL) != 1)
        kill(server->pid, SIGKILL); /* it does not listen any more */
}

void mps_server_listen(struct mps_server *server) {
    char packet;
    if (recv(server->channel, &packet, 1, MSG_DONTWAIT) == 1 && packet == MPS_READY) {
        server->ready = true;
        mps_log("Server %d of user %d is ready", server->pid, server->uid);
    }
}

void mps_server_forget(struct mps_server *server) {
    close(server->channel);
    *server = (struct mps_server){.pid = 0};
}
