/* Commands, one line each, and their answers, word for word those of NVIDIA's control daemon 550
 * wherever that could be observed without a GPU. What it does not say (a wrong percentage, a limit
 * that is not set) is in the log alone, as there. */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "mps_control.h"
#include "mps_log.h"

struct call {
    struct mps_daemon *daemon;
    const struct mps_caller *caller;
    const char *arguments; /* what follows the command's name */
    struct mps_text *answer;
};

__attribute__((format(printf, 2, 3))) static void say(struct call *call, const char *format, ...) {
    struct mps_text *answer = call->answer;
    size_t room = sizeof answer->text - answer->length;
    va_list values;
    va_start(values, format);
    int length = vsnprintf(answer->text + answer->length, room, format, values);
    va_end(values);
    if (length > 0)
        answer->length += (size_t)length < room ? (size_t)length : room - 1;
}

/* A first argument that is not there, or no number, is 0. */
static int first_number(const struct call *call) {
    int number = 0;
    return sscanf(call->arguments, "%d", &number) == 1 ? number : 0;
}

/* The server of this pid; says that there is none. */
static struct mps_server *server_of(struct call *call, int pid) {
    struct mps_server *server = &call->daemon->server;
    if (pid != 0 && server->pid == pid)
        return server;
    say(call, "Server %d not found\n", pid);
    return NULL;
}

/* Settings are the owner's and root's. */
static bool may_set(struct call *call) {
    uid_t uid = call->caller->uid;
    if (uid == 0 || uid == call->daemon->owner)
        return true;
    say(call, "Insufficient privileges for UID %u. This daemon belongs to UID %u.\n", uid,
        call->daemon->owner);
    return false;
}

static bool is_percentage(double value) {
    return value > 0 && value <= 100;
}

/* --- Servers --- */

static bool get_server_list(struct call *call) {
    if (call->daemon->server.pid != 0)
        say(call, "%d\n", call->daemon->server.pid);
    return true;
}

static bool get_server_status(struct call *call) {
    int pid = first_number(call);
    if (pid == 0) {
        say(call, "A server PID is required\n");
        return true;
    }
    const struct mps_server *server = server_of(call, pid);
    if (server != NULL)
        say(call, "%s\n",
            !server->ready                                ? "INITIALIZING"
            : mps_devices_faulted(&call->daemon->devices) ? "FAULT"
                                                          : "ACTIVE");
    return true;
}

static bool start_server(struct call *call) {
    int uid;
    if (sscanf(call->arguments, " -uid %d", &uid) != 1) {
        say(call, "A user id (UID) is required to start a new server\n");
        return true;
    }
    if (call->caller->uid != 0 && call->caller->uid != (uid_t)uid)
        say(call, "Insufficient privileges for UID %u.\n", call->caller->uid);
    else if (call->daemon->quitting)
        say(call, "The MPS control daemon is shutting down\n");
    else
        mps_daemon_want_server(call->daemon, (uid_t)uid);
    return true;
}

static bool shutdown_server(struct call *call) {
    int pid = 0;
    char force[3] = "";
    sscanf(call->arguments, "%d %2s", &pid, force);
    struct mps_server *server = server_of(call, pid);
    if (server == NULL || !may_set(call))
        return true;
    if (strcmp(force, "-f") == 0)
        mps_server_stop(server);
    else
        server->ending = true;
    return true;
}

static bool quit(struct call *call) {
    struct mps_daemon *daemon = call->daemon;
    unsigned timeout_s;
    if (call->caller->uid != 0 && call->caller->uid != daemon->owner) {
        say(call, "Not enough privilege to execute quit command\n");
        return true;
    }
    daemon->quit_ns = sscanf(call->arguments, " -t %u", &timeout_s) == 1
                          ? simgpu_now() + timeout_s * 1000000000ULL
                          : SIMGPU_NEVER;
    daemon->quitting = true;
    daemon->quitter = call->caller->connection;
    /* Who is there may finish; nobody comes in. */
    mps_devices_set_state(&daemon->devices, SIMGPU_MPS_READY, SIMGPU_MPS_CLOSING);
    return false;
}

/* --- Clients --- */

/* Of the server that serves; none while it starts. */
static unsigned clients_now(struct call *call, struct mps_client *clients) {
    if (!call->daemon->server.ready)
        return 0;
    return mps_devices_clients(&call->daemon->devices, clients, MPS_CLIENTS_MAX);
}

static bool is_listed(const struct mps_client *clients, unsigned before, pid_t pid) {
    for (unsigned i = 0; i < before; i++)
        if (clients[i].pid == pid)
            return true;
    return false;
}

static bool get_client_list(struct call *call) {
    struct mps_client clients[MPS_CLIENTS_MAX];
    if (server_of(call, first_number(call)) == NULL)
        return true;
    unsigned count = clients_now(call, clients);
    for (unsigned i = 0; i < count; i++)
        if (!is_listed(clients, i, clients[i].pid))
            say(call, "%d\n", clients[i].pid);
    return true;
}

/* The one answer whose form could not be observed: a line for the device, then its clients. */
static bool get_device_client_list(struct call *call) {
    struct mps_client clients[MPS_CLIENTS_MAX];
    int pid;
    if (sscanf(call->arguments, "%d", &pid) == 1 && server_of(call, pid) == NULL)
        return true;
    unsigned count = clients_now(call, clients);
    for (unsigned device = 0; device < call->daemon->devices.count; device++) {
        if (!call->daemon->server.ready)
            return true;
        char uuid[41];
        mps_device_uuid(&call->daemon->devices.list[device], uuid);
        say(call, "%s\n", uuid);
        for (unsigned i = 0; i < count; i++)
            if (clients[i].device == device)
                say(call, "%d\n", clients[i].pid);
    }
    return true;
}

/* Number of the process's pid namespace; 0: it is gone. */
static unsigned long pid_namespace(pid_t pid) {
    char path[64], target[64];
    snprintf(path, sizeof path, "/proc/%d/ns/pid", pid);
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length < 0)
        return 0;
    target[length] = '\0';
    const char *number = strchr(target, '[');
    return number != NULL ? strtoul(number + 1, NULL, 10) : 0;
}

static void command_of(pid_t pid, char *command, size_t room) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
    command[0] = '\0';
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t length = read(fd, command, room - 1); /* ends at the first word's NUL */
    command[length > 0 ? length : 0] = '\0';
    close(fd);
}

static bool ps(struct call *call) {
    struct mps_client clients[MPS_CLIENTS_MAX];
    char option = 0;
    int pid = 0;
    const struct mps_server *server = &call->daemon->server;
    if (sscanf(call->arguments, " -%c %d", &option, &pid) >= 1 && option == 'p' &&
        server_of(call, pid) == NULL) {
        say(call, "Server %d not found\n\n", pid);
        return true;
    }
    if (!server->ready) {
        say(call, "Server not found\n");
        return true;
    }
    const int device_width = 45;
    say(call, "%-10s%-10s%-15s%-*s%-15s%-15s\n", "PID", "ID", "SERVER", device_width, "DEVICE",
        "NAMESPACE", "COMMAND");
    unsigned count = clients_now(call, clients);
    for (unsigned i = 0; i < count; i++) {
        char uuid[41], namespace_id[32], command[256];
        mps_device_uuid(&call->daemon->devices.list[clients[i].device], uuid);
        snprintf(namespace_id, sizeof namespace_id, "%lu", pid_namespace(clients[i].pid));
        command_of(clients[i].pid, command, sizeof command);
        say(call, "%-10d%-10u%-15d%-*s%-15s%-15s\n", clients[i].pid, i, server->pid, device_width,
            uuid, namespace_id, command);
    }
    return true;
}

/* The last line is its result: 0, or 1 when nothing was terminated. */
static bool terminate_client(struct call *call) {
    int server = 0, client = 0;
    sscanf(call->arguments, "%d %d", &server, &client);
    if (server_of(call, server) == NULL) {
        say(call, "Server %d not found!\n1\n", server);
    } else if (!call->daemon->server.ready) {
        say(call, "Server %d not found!\n1\n", server);
    } else if (may_set(call)) {
        bool done = mps_devices_terminate(&call->daemon->devices, client) == 0;
        if (!done)
            say(call, "Invalid process %d!\n", client);
        say(call, "%d\n", done ? 0 : 1);
    }
    return true;
}

/* --- Limits --- */

static bool get_default_thread_pct(struct call *call) {
    say(call, "%.1f\n", call->daemon->defaults.thread_pct);
    return true;
}

static bool set_default_thread_pct(struct call *call) {
    double value = 0;
    if (!may_set(call))
        return true;
    if (sscanf(call->arguments, "%lf", &value) == 1 && is_percentage(value))
        call->daemon->defaults.thread_pct = value;
    else
        mps_log("A percentage is above 0 and at most 100");
    return get_default_thread_pct(call);
}

static bool get_thread_pct(struct call *call) {
    const struct mps_server *server = server_of(call, first_number(call));
    if (server != NULL && server->ready)
        say(call, "%.1f\n", server->limits.thread_pct);
    return true;
}

static bool set_thread_pct(struct call *call) {
    int pid = 0;
    double value = 0;
    int read = sscanf(call->arguments, "%d %lf", &pid, &value);
    struct mps_server *server = server_of(call, pid);
    if (server == NULL || !server->ready || !may_set(call))
        return true;
    if (read == 2 && is_percentage(value)) {
        server->limits.thread_pct = value;
        mps_devices_set_limits(&call->daemon->devices, &server->limits);
    } else {
        mps_log("A percentage is above 0 and at most 100");
    }
    return get_thread_pct(call);
}

/* Whole GiB or MiB, as it is asked for; anything else is none. */
static uint64_t parse_memory(const char *text) {
    char *end;
    unsigned long long number = strtoull(text, &end, 10);
    if (end == text)
        return 0;
    return number << (*end == 'G' || *end == 'g' ? 30 : 20);
}

static void say_memory(struct call *call, uint64_t bytes) {
    if (bytes >= 1ULL << 30)
        say(call, "%lluG\n", (unsigned long long)(bytes >> 30));
    else if (bytes > 0)
        say(call, "%lluM\n", (unsigned long long)(bytes >> 20));
    else
        mps_log("There is no limit");
}

static bool is_ordinal(int device) {
    if (device >= 0 && device < SIMGPU_DEVICES)
        return true;
    mps_log("There is no such device");
    return false;
}

static bool get_default_memory(struct call *call) {
    int device = first_number(call);
    if (is_ordinal(device))
        say_memory(call, call->daemon->defaults.memory_bytes[device]);
    return true;
}

static bool set_default_memory(struct call *call) {
    int device = 0;
    char value[32] = "";
    if (!may_set(call))
        return true;
    if (sscanf(call->arguments, "%d %31s", &device, value) == 2 && is_ordinal(device))
        call->daemon->defaults.memory_bytes[device] = parse_memory(value);
    return true;
}

static bool get_memory(struct call *call) {
    int pid = 0, device = 0;
    sscanf(call->arguments, "%d %d", &pid, &device);
    const struct mps_server *server = server_of(call, pid);
    if (server != NULL && server->ready && is_ordinal(device))
        say_memory(call, server->limits.memory_bytes[device]);
    return true;
}

static bool set_memory(struct call *call) {
    int pid = 0, device = 0;
    char value[32] = "";
    int read = sscanf(call->arguments, "%d %d %31s", &pid, &device, value);
    struct mps_server *server = server_of(call, pid);
    if (server == NULL || !server->ready || !may_set(call) || read != 3 || !is_ordinal(device))
        return true;
    server->limits.memory_bytes[device] = parse_memory(value);
    mps_devices_set_limits(&call->daemon->devices, &server->limits);
    return true;
}

static bool get_default_priority(struct call *call) {
    say(call, "%d\n", call->daemon->defaults.priority);
    return true;
}

/* Of new clients, of the server that runs too. */
static bool set_default_priority(struct call *call) {
    int value = first_number(call);
    if (!may_set(call))
        return true;
    if (value != 0 && value != 1) {
        say(call, "Invalid priority value - must be 0 or 1!\n");
        return true;
    }
    call->daemon->defaults.priority = value;
    call->daemon->server.limits.priority = value;
    if (call->daemon->server.ready)
        mps_devices_set_limits(&call->daemon->devices, &call->daemon->server.limits);
    return true;
}

/* --- */

static const struct {
    const char *name;
    bool (*run)(struct call *call);
} commands[] = {
    {"get_server_list", get_server_list},
    {"get_server_status", get_server_status},
    {"start_server", start_server},
    {"shutdown_server", shutdown_server},
    {"quit", quit},
    {"get_client_list", get_client_list},
    {"get_device_client_list", get_device_client_list},
    {"ps", ps},
    {"terminate_client", terminate_client},
    {"get_default_active_thread_percentage", get_default_thread_pct},
    {"set_default_active_thread_percentage", set_default_thread_pct},
    {"get_active_thread_percentage", get_thread_pct},
    {"set_active_thread_percentage", set_thread_pct},
    {"get_default_device_pinned_mem_limit", get_default_memory},
    {"set_default_device_pinned_mem_limit", set_default_memory},
    {"get_device_pinned_mem_limit", get_memory},
    {"set_device_pinned_mem_limit", set_memory},
    {"get_default_client_priority", get_default_priority},
    {"set_default_client_priority", set_default_priority},
};

bool mps_command(struct mps_daemon *daemon, const struct mps_caller *caller, const char *line,
                 struct mps_text *answer) {
    char name[MPS_LINE_MAX + 1] = "";
    int length = 0;
    sscanf(line, "%4096s%n", name, &length);
    mps_log("Cmd:%s", line);
    struct call call = {daemon, caller, line + length, answer};
    for (unsigned i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(commands[i].name, name) == 0)
            return commands[i].run(&call);
    say(&call, "Unknown command \"%s\"\n", name);
    return true;
}
