/* nvidia-cuda-mps-server: the process that is an MPS server. The devices' model does its work; it
 * is there to be seen, to be killed, and to take its clients along. Started by
 * nvidia-cuda-mps-control with "<index of device>:<record>,...". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "device.h"
#include "mps_log.h"
#include "mps_wire.h"

/* How often it looks whether clients are left, once its daemon is gone. */
enum { LOOK_NS = 50000000 };

struct place {
    struct simgpu gpu;
    uint32_t record;
};

static struct place places[SIMGPU_DEVICES];
static unsigned place_count;

/* Life first: a server that is registered and not alive is buried. */
static int serve_on(const char *dir, unsigned index, uint32_t record) {
    struct place *place = &places[place_count];
    int result = simgpu_open(&place->gpu, dir, index);
    if (result != 0)
        return result;
    int life = simgpu_hold_life(dir, index, SIMGPU_LIFE_MPS_SERVER + record);
    if (life < 0) {
        simgpu_close(&place->gpu);
        return life;
    }
    place->record = record;
    simgpu_lock(&place->gpu);
    simgpu_mps_server_started(place->gpu.device, record, (uint32_t)getpid(), getuid());
    simgpu_unlock(&place->gpu);
    place_count++;
    return 0;
}

static int serve_on_all(const char *records) {
    const char *dir = getenv("MUXFLOW_SIMGPU");
    unsigned index, record;
    int length;
    while (dir != NULL && sscanf(records, "%u:%u%n", &index, &record, &length) == 2) {
        int result = serve_on(dir, index, record);
        if (result != 0)
            return result;
        records += length + (records[length] == ',');
    }
    return 0;
}

static void stop(void) {
    for (unsigned i = 0; i < place_count; i++) {
        struct place *place = &places[i];
        simgpu_lock(&place->gpu);
        /* Unless the daemon's end has already freed the record. */
        if (place->gpu.device->mps[place->record].server_pid == (uint32_t)getpid())
            simgpu_mps_server_stopped(place->gpu.device, place->record);
        simgpu_unlock(&place->gpu);
    }
}

static bool has_clients(void) {
    bool found = false;
    for (unsigned i = 0; i < place_count && !found; i++) {
        struct place *place = &places[i];
        simgpu_lock(&place->gpu);
        const struct simgpu_device *device = place->gpu.device;
        for (unsigned slot = 0; slot < SIMGPU_CLIENTS; slot++)
            found =
                found || (device->clients[slot].state != SIMGPU_CLIENT_FREE &&
                          device->clients[slot].mps == place->record &&
                          device->clients[slot].mps_server == device->mps[place->record].server_id);
        simgpu_unlock(&place->gpu);
    }
    return found;
}

int main(int count, char **arguments) {
    mps_log_to(MPS_SERVER_LOG, "Server");
    if (count != 2 || serve_on_all(arguments[1]) != 0 || place_count == 0) {
        mps_log("Failed to start: no device");
        return 1;
    }
    mps_log("Serving %u devices", place_count);
    char packet = MPS_READY;
    send(MPS_SERVER_CHANNEL, &packet, 1, MSG_NOSIGNAL);
    if (recv(MPS_SERVER_CHANNEL, &packet, 1, 0) != 1) {
        mps_log("The control daemon is gone; serving until the last client leaves");
        while (has_clients())
            usleep(LOOK_NS / 1000);
    }
    stop();
    mps_log("Stopped");
    return 0;
}
