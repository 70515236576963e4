/* The control library: how Python makes simulated devices, watches them and breaks them.
 *
 * Structures have fixed layouts, for ctypes: muxflow_simgpu/control.py has them once more, and
 * simgpu_control_sizes holds the two to one another. Calls that give an int give 0 or -errno. */
#ifndef SIMGPU_CONTROL_H
#define SIMGPU_CONTROL_H

#include "device.h"

struct simgpu_control_kind {
    char name[16];
    char product[48];
    uint64_t memory_bytes;
    uint64_t context_bytes;
    uint32_t sm_count;
    uint32_t base_mhz;
    uint32_t boost_mhz;
    uint32_t limit_w;
    uint32_t bandwidth_gbps;
    uint32_t pcie_gbps;
    uint32_t gpm;
    uint32_t reserved;
};

struct simgpu_control_device {
    uint32_t index;
    uint32_t lost;
    char kind[16];
    uint8_t uuid[16];
    uint64_t memory_bytes;
    uint64_t memory_used_bytes;
    uint64_t throttle_reasons;
    uint32_t sm_clock_mhz;
    uint32_t boost_mhz;
    uint64_t created_ns;
    uint64_t now_ns;
    double busy_ns; /* integrals since created_ns: see struct simgpu_totals */
    double sm_ns;
    double memory_ns;
    uint64_t operations; /* ended so far: number of the newest in the log */
    uint64_t xids;
};

struct simgpu_control_client {
    uint32_t pid;
    uint32_t mps_server_pid; /* 0: no MPS client */
    uint64_t id;
    uint64_t memory_bytes; /* without its contexts */
    uint64_t context_bytes;
    uint64_t since_ns;
    double thread_share;
    double busy_ns;
    int32_t error; /* sticky CUresult; 0: none */
    uint32_t unfinished;
    char tag[SIMGPU_TAG];
};

struct simgpu_control_mps {
    uint32_t state; /* enum simgpu_mps_state */
    uint32_t control_pid;
    uint32_t server_pid; /* 0: none */
    uint32_t uid;
    uint32_t thread_pct;
    uint32_t clients;
    uint64_t faults;
};

struct simgpu_control_operation {
    uint64_t number;
    uint64_t id;
    uint64_t enqueued_ns;
    uint64_t started_ns; /* 0: it never started */
    uint64_t ended_ns;
    uint64_t ran_ns;
    double work_ns;
    uint32_t pid;
    uint32_t context;
    uint32_t stream;
    uint16_t kind; /* enum simgpu_op_kind */
    uint16_t cancelled;
    float sm_share;
    float bandwidth;
    char tag[SIMGPU_TAG];
};

struct simgpu_control_xid {
    uint64_t number;
    uint64_t time_ns;
    uint32_t xid;
    uint32_t pid;
};

#pragma GCC visibility push(default)

/* Sizes of the six structures above, in that order. */
void simgpu_control_sizes(uint32_t sizes[6]);
uint64_t simgpu_control_now(void);

/* -ENOENT: there are not so many. */
int simgpu_control_kind(uint32_t number, struct simgpu_control_kind *kind);

/* `uuid`: 16 bytes. -ENOENT: an unknown kind; -EEXIST: there is such a device. */
int simgpu_control_create(const char *dir, uint32_t index, const char *kind, const uint8_t *uuid,
                          uint32_t log);
int simgpu_control_remove(const char *dir, uint32_t index);

int simgpu_control_open(const char *dir, uint32_t index, struct simgpu **gpu);
void simgpu_control_close(struct simgpu *gpu);

void simgpu_control_device(struct simgpu *gpu, struct simgpu_control_device *device);
/* These fill up to `room` entries and give their number. */
uint32_t simgpu_control_clients(struct simgpu *gpu, struct simgpu_control_client *clients,
                                uint32_t room);
uint32_t simgpu_control_mps(struct simgpu *gpu, struct simgpu_control_mps *records, uint32_t room);
/* The oldest remembered with a number above `after`, in order; what lies further back is lost. */
uint32_t simgpu_control_log(struct simgpu *gpu, uint64_t after,
                            struct simgpu_control_operation *operations, uint32_t room);
uint32_t simgpu_control_xids(struct simgpu *gpu, uint64_t after, struct simgpu_control_xid *xids,
                             uint32_t room);

void simgpu_control_inject_xid(struct simgpu *gpu, uint32_t xid, uint32_t pid);
void simgpu_control_lose(struct simgpu *gpu);
void simgpu_control_restore(struct simgpu *gpu);
/* mhz 0: as fast as it can. */
void simgpu_control_set_clock(struct simgpu *gpu, uint32_t mhz, uint64_t throttle_reasons);

#pragma GCC visibility pop

#endif
