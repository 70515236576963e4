/* The parts of nvidia-cuda-mps-control: a daemon that starts a server for the first client, and a
 * front end that brings it commands. */
#ifndef SIMGPU_MPS_CONTROL_H
#define SIMGPU_MPS_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "device.h"
#include "mps_paths.h"
#include "mps_wire.h"

/* What an MPS server gives its clients. */
struct mps_limits {
    double thread_pct;                     /* above 0, to 100 */
    int priority;                          /* 0 normal, 1 below normal */
    uint64_t memory_bytes[SIMGPU_DEVICES]; /* by CUDA ordinal; 0: no limit */
};

/* --- mps_control_devices.c: the devices that this daemon serves --- */

struct mps_device {
    struct simgpu gpu;
    unsigned index;  /* of its file */
    uint32_t record; /* ours on it */
    int life_fd;     /* holds SIMGPU_LIFE_MPS_CONTROL + record */
};

struct mps_devices {
    unsigned count;
    struct mps_device list[SIMGPU_DEVICES]; /* by the ordinals of our clients */
};

struct mps_client {
    pid_t pid;
    unsigned device; /* place in the list */
};

enum { MPS_CLIENTS_MAX = SIMGPU_DEVICES * SIMGPU_CLIENTS };

/* Opens what CUDA_VISIBLE_DEVICES leaves of $MUXFLOW_SIMGPU, and registers there. To have none is
 * no error: a control daemon starts without a GPU, too. */
void mps_devices_open(struct mps_devices *devices, const char *pipe_dir);
void mps_devices_close(struct mps_devices *devices);

/* Whether a process waits for a server, and for which user's. Takes no lock. */
bool mps_devices_wanted(const struct mps_devices *devices, uid_t *uid);
/* On each device whose record is in the state `from`. */
void mps_devices_set_state(struct mps_devices *devices, enum simgpu_mps_state from,
                           enum simgpu_mps_state to);
/* Of clients that come from now on. */
void mps_devices_set_limits(struct mps_devices *devices, const struct mps_limits *limits);
/* The process is dead; its clients, if it left any, fail. */
void mps_devices_server_gone(struct mps_devices *devices, pid_t server);
bool mps_devices_faulted(const struct mps_devices *devices);

/* Clients of the server, one entry for each device that they are on. */
unsigned mps_devices_clients(struct mps_devices *devices, struct mps_client *clients,
                             unsigned room);
/* -ESRCH: the server has no such client. */
int mps_devices_terminate(struct mps_devices *devices, pid_t client);
void mps_device_uuid(const struct mps_device *device, char text[41]);

/* --- mps_control_server.c: the server's process; there is one at a time --- */

struct mps_server {
    pid_t pid; /* 0: none */
    uid_t uid;
    int channel; /* to it */
    bool ready;
    bool ending;   /* stops when it has no clients */
    bool stopping; /* has been told to */
    struct mps_limits limits;
};

/* 0 or -errno. */
int mps_server_start(struct mps_server *server, uid_t uid, const struct mps_limits *limits,
                     const struct mps_devices *devices, int log_fd);
/* Now, whoever is connected. */
void mps_server_stop(struct mps_server *server);
/* Its packets; sets `ready`. */
void mps_server_listen(struct mps_server *server);
void mps_server_forget(struct mps_server *server);

/* --- mps_control_daemon.c --- */

struct mps_daemon {
    struct mps_paths paths;
    struct mps_devices devices;
    struct mps_server server;
    struct mps_limits defaults; /* of servers to come */
    bool next_wanted;           /* a server for `next_uid` follows the one that ends */
    uid_t next_uid;
    uint64_t retry_ns; /* a server failed to start: no other one before */
    uid_t owner;
    int server_log;
    bool quitting;
    int quitter;      /* connection that asked for it; -1: it is gone */
    uint64_t quit_ns; /* then the server is stopped with its clients; or SIMGPU_NEVER */
};

/* Runs until it is told to quit; gives the exit status. In the background the caller's process
 * comes back at once when the daemon listens. */
int mps_daemon_main(bool foreground);

/* A server for this user: at once, or when the other user's has no clients left. */
void mps_daemon_want_server(struct mps_daemon *daemon, uid_t uid);

/* --- mps_control_commands.c --- */

struct mps_caller {
    uid_t uid;
    int connection;
};

struct mps_text {
    size_t length;
    char text[MPS_PACKET_MAX];
};

/* Carries out a line and adds to the answer. False: the answer comes when all has ended. */
bool mps_command(struct mps_daemon *daemon, const struct mps_caller *caller, const char *line,
                 struct mps_text *answer);

/* --- mps_control_front.c --- */

/* Brings the lines of standard input to the daemon and prints its answers; gives the exit
 * status. */
int mps_front_end(void);

#endif
