#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mps_control.h"
#include "mps_log.h"

enum { WAITING_FRONT_ENDS = 16 };

/* While no server runs, a process that wants one says so on a device, where nobody can poll for it
 * beside sockets; and a server that ends waits for its clients, which may die without a word. So
 * the daemon looks this often then, and never once a server serves. */
enum { LOOK_MS = 10 };

/* A server that could not start would not start a moment later. */
enum { RETRY_NS = 500000000 };

/* Places in the list that is polled. */
enum { AT_LISTENER, AT_SIGNALS, AT_SERVER, AT_FRONT_END, POLLED };

struct service {
    struct mps_daemon daemon;
    int listener;
    int signals;
    int front_end; /* -1: none is connected */
};

/* --- Servers --- */

void mps_daemon_want_server(struct mps_daemon *daemon, uid_t uid) {
    if (daemon->server.pid != 0) {
        if (daemon->server.uid == uid)
            return;
        daemon->server.ending = true;
        daemon->next_wanted = true;
        daemon->next_uid = uid;
        return;
    }
    mps_devices_set_limits(&daemon->devices, &daemon->defaults);
    mps_devices_set_state(&daemon->devices, SIMGPU_MPS_REQUESTED, SIMGPU_MPS_STARTING);
    int result = mps_server_start(&daemon->server, uid, &daemon->defaults, &daemon->devices,
                                  daemon->server_log);
    if (result != 0) {
        mps_log("Failed to start a server for user %u: %s", uid, strerror(-result));
        mps_devices_set_state(&daemon->devices, SIMGPU_MPS_STARTING, SIMGPU_MPS_IDLE);
        return;
    }
    mps_log("Starting new server %d for user %u", daemon->server.pid, uid);
}

static void reap_server(struct mps_daemon *daemon) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid != daemon->server.pid)
            continue;
        if (WIFSIGNALED(status))
            mps_log("Server %d was killed by signal %d", pid, WTERMSIG(status));
        else
            mps_log("Server %d exited with status %d", pid, WEXITSTATUS(status));
        mps_devices_server_gone(&daemon->devices, pid);
        if (!daemon->server.ready) {
            mps_devices_set_state(&daemon->devices, SIMGPU_MPS_STARTING, SIMGPU_MPS_IDLE);
            daemon->retry_ns = simgpu_now() + RETRY_NS;
        }
        mps_server_forget(&daemon->server);
    }
}

/* What time and clients bring about. False: all has ended. */
static bool tend(struct mps_daemon *daemon) {
    struct mps_server *server = &daemon->server;
    if (server->pid != 0 && (server->ending || daemon->quitting)) {
        struct mps_client client;
        bool alone = mps_devices_clients(&daemon->devices, &client, 1) == 0;
        if (alone || simgpu_now() >= daemon->quit_ns)
            mps_server_stop(server);
    }
    if (server->pid == 0 && daemon->quitting)
        return false;
    uid_t uid = daemon->next_uid;
    if (server->pid == 0 && simgpu_now() >= daemon->retry_ns &&
        (daemon->next_wanted || mps_devices_wanted(&daemon->devices, &uid))) {
        daemon->next_wanted = false;
        mps_daemon_want_server(daemon, uid);
    }
    return true;
}

static int patience_ms(const struct mps_daemon *daemon) {
    const struct mps_server *server = &daemon->server;
    bool waits_for_clients = server->pid == 0 || server->ending || daemon->quitting;
    return waits_for_clients && daemon->devices.count > 0 ? LOOK_MS : -1;
}

/* --- Front ends --- */

static bool caller_of(int connection, struct mps_caller *caller) {
    struct ucred credentials;
    socklen_t length = sizeof credentials;
    if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0)
        return false;
    *caller = (struct mps_caller){.uid = credentials.uid, .connection = connection};
    return true;
}

/* One at a time: NVIDIA's daemon drops a second front end, mostly with an error, sometimes without
 * a word. Whoever shares a daemon has to try again. */
static void accept_front_end(struct service *service) {
    int connection = accept4(service->listener, NULL, NULL, SOCK_CLOEXEC);
    if (connection < 0)
        return;
    if (service->front_end >= 0) {
        mps_log("Refused a second UI");
        close(connection);
        return;
    }
    mps_log("NEW UI");
    service->front_end = connection;
}

static void log_lines(const char *text) {
    for (const char *end; (end = strchr(text, '\n')) != NULL; text = end + 1)
        mps_log("%.*s", (int)(end - text), text);
}

/* False: the connection is over. */
static bool serve(struct mps_daemon *daemon, int connection) {
    static char packet[MPS_LINE_MAX + 2];
    static struct mps_text answer;
    struct mps_caller caller;
    ssize_t length = recv(connection, packet, sizeof packet - 1, MSG_DONTWAIT);
    if (length < 1 || packet[0] != MPS_COMMAND || !caller_of(connection, &caller))
        return false;
    packet[length] = '\0';
    answer.length = 1;
    answer.text[0] = MPS_ANSWER;
    answer.text[1] = '\0';
    if (!mps_command(daemon, &caller, packet + 1, &answer))
        return true;
    log_lines(answer.text + 1);
    return send(connection, answer.text, answer.length, MSG_NOSIGNAL | MSG_DONTWAIT) > 0;
}

static void serve_front_end(struct service *service) {
    if (serve(&service->daemon, service->front_end))
        return;
    mps_log("UI closed");
    if (service->daemon.quitter == service->front_end)
        service->daemon.quitter = -1;
    close(service->front_end);
    service->front_end = -1;
}

static void loop(struct service *service) {
    struct mps_daemon *daemon = &service->daemon;
    struct pollfd polled[POLLED];
    while (tend(daemon)) {
        int channel =
            daemon->server.pid != 0 && !daemon->server.ready ? daemon->server.channel : -1;
        polled[AT_LISTENER] = (struct pollfd){.fd = service->listener, .events = POLLIN};
        polled[AT_SIGNALS] = (struct pollfd){.fd = service->signals, .events = POLLIN};
        polled[AT_SERVER] = (struct pollfd){.fd = channel, .events = POLLIN};
        polled[AT_FRONT_END] = (struct pollfd){.fd = service->front_end, .events = POLLIN};
        if (poll(polled, POLLED, patience_ms(daemon)) < 0)
            continue;
        if (polled[AT_SERVER].revents != 0)
            mps_server_listen(&daemon->server);
        if (polled[AT_SIGNALS].revents != 0) {
            struct signalfd_siginfo info;
            if (read(service->signals, &info, sizeof info) > 0)
                reap_server(daemon);
        }
        /* First whoever leaves, then who comes after. */
        if (polled[AT_FRONT_END].revents != 0)
            serve_front_end(service);
        if (polled[AT_LISTENER].revents != 0)
            accept_front_end(service);
    }
}

/* --- Start and end --- */

static int refuse(const char *format, const char *value) {
    printf(format, value);
    printf("\n");
    fflush(stdout);
    return 1;
}

/* One daemon for a pipe directory: who holds this lock. The descriptor stays open. */
static int take_lock(const struct mps_paths *paths) {
    char path[MPS_PATH_MAX];
    if (mps_path_join(path, paths->pipe_dir, "control_lock") != 0)
        return -1;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void write_pid(const struct mps_paths *paths) {
    char path[MPS_PATH_MAX];
    if (mps_path_join(path, paths->pipe_dir, "nvidia-cuda-mps-control.pid") != 0)
        return;
    FILE *file = fopen(path, "we");
    if (file == NULL)
        return;
    fprintf(file, "%d", getpid());
    fclose(file);
}

static int open_log(const struct mps_paths *paths, const char *name) {
    char path[MPS_PATH_MAX];
    if (mps_path_join(path, paths->log_dir, name) != 0)
        return -1;
    return open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

static int listen_for_front_ends(const struct mps_paths *paths) {
    struct sockaddr_un address;
    if (mps_control_address(paths, &address) != 0)
        return -1;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    unlink(address.sun_path); /* left by a daemon that was killed: we hold its lock */
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
        chmod(address.sun_path, 0666) != 0 || listen(fd, WAITING_FRONT_ENDS) != 0)
        return -1;
    return fd;
}

static void remove_files(const struct mps_paths *paths) {
    static const char *const names[] = {"control", "nvidia-cuda-mps-control.pid"};
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[MPS_PATH_MAX];
        if (mps_path_join(path, paths->pipe_dir, names[i]) == 0)
            unlink(path);
    }
}

static struct mps_limits limits_from_environment(void) {
    struct mps_limits limits = {.thread_pct = 100};
    const char *pct = getenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE");
    const char *priority = getenv("CUDA_MPS_CLIENT_PRIORITY");
    double value = pct != NULL ? strtod(pct, NULL) : 0;
    if (value > 0 && value <= 100)
        limits.thread_pct = value;
    limits.priority = priority != NULL && strcmp(priority, "1") == 0;
    return limits;
}

static int child_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void to_background(void) {
    int null = open("/dev/null", O_RDWR);
    setsid();
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        dup2(null, fd);
    if (null > STDERR_FILENO)
        close(null);
}

/* Everything that can fail, with words on standard output. Gives an exit status. */
static int set_up(struct service *service, bool foreground) {
    struct mps_daemon *daemon = &service->daemon;
    struct mps_paths *paths = &daemon->paths;
    *paths = mps_paths_from_environment();
    mkdir(paths->pipe_dir, 0777);
    mkdir(paths->log_dir, 0700);
    if (access(paths->pipe_dir, R_OK | W_OK | X_OK) != 0)
        return refuse("Cannot access CUDA_MPS_PIPE_DIRECTORY=%s", paths->pipe_dir);
    if (take_lock(paths) < 0)
        return refuse("An instance of this daemon is already running%s", "");
    int control_log = foreground ? STDOUT_FILENO : open_log(paths, "control.log");
    daemon->server_log = open_log(paths, "server.log");
    if (control_log < 0 || daemon->server_log < 0)
        printf("Warning: Failed writing log files to directory [%s]. No logs will be available.\n",
               paths->log_dir);
    fflush(stdout);
    if (daemon->server_log < 0)
        daemon->server_log = open("/dev/null", O_WRONLY | O_CLOEXEC);
    mps_log_to(control_log, "Control");
    signal(SIGPIPE, SIG_IGN); /* nobody may read what the foreground logs */
    service->signals = child_signals();
    service->listener = listen_for_front_ends(paths);
    if (service->listener < 0 || service->signals < 0)
        return refuse("Cannot listen in CUDA_MPS_PIPE_DIRECTORY=%s", paths->pipe_dir);
    write_pid(paths);
    service->front_end = daemon->quitter = -1;
    daemon->owner = geteuid();
    daemon->quit_ns = SIMGPU_NEVER;
    daemon->defaults = limits_from_environment();
    mps_log("Starting control daemon using socket %s/control", paths->pipe_dir);
    mps_devices_open(&daemon->devices, paths->pipe_dir);
    mps_devices_set_limits(&daemon->devices, &daemon->defaults);
    mps_log("Serving %u devices", daemon->devices.count);
    return 0;
}

static void wind_up(struct service *service) {
    struct mps_daemon *daemon = &service->daemon;
    char quitted = MPS_QUITTED;
    mps_devices_close(&daemon->devices);
    remove_files(&daemon->paths);
    mps_log("Exit with status 0");
    send(daemon->quitter, &quitted, 1, MSG_NOSIGNAL);
}

int mps_daemon_main(bool foreground) {
    static struct service service; /* zeroed */
    int ready[2] = {-1, -1};
    if (!foreground) {
        if (pipe2(ready, O_CLOEXEC) != 0)
            return 1;
        pid_t pid = fork();
        if (pid != 0) {
            char status = 1; /* what is left when the daemon dies on the way */
            close(ready[1]);
            if (pid < 0 || read(ready[0], &status, 1) < 0)
                status = 1;
            return status;
        }
        close(ready[0]);
    }
    char status = (char)set_up(&service, foreground);
    if (!foreground) {
        to_background();
        if (write(ready[1], &status, 1) != 1)
            status = 1;
        close(ready[1]);
    }
    if (status != 0)
        return status;
    loop(&service);
    wind_up(&service);
    return 0;
}
