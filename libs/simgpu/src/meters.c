/* Integrals of what runs: of the device and of each client, with their history. */
#include <string.h>

#include "model.h"

static struct simgpu_totals totals_at(const struct simgpu_totals *from,
                                      const struct simgpu_flow *flow, uint64_t time_ns) {
    double passed = (double)(time_ns - from->time_ns);
    return (struct simgpu_totals){
        .time_ns = time_ns,
        .busy_ns = from->busy_ns + flow->busy * passed,
        .sm_ns = from->sm_ns + flow->sm * passed,
        .occupancy_ns = from->occupancy_ns + flow->occupancy * passed,
        .memory_ns = from->memory_ns + flow->memory * passed,
        .copy_ns = from->copy_ns + flow->copy * passed,
        .h2d_bytes = from->h2d_bytes + flow->h2d_bytes * passed,
        .d2h_bytes = from->d2h_bytes + flow->d2h_bytes * passed,
    };
}

/* Where the history has got to, in steps since the epoch of the clock. */
struct history {
    struct simgpu_totals *entries;
    _Atomic uint64_t *count;
    uint64_t length;
    uint64_t step_ns;
};

static void remember(const struct history *history, const struct simgpu_totals *from,
                     const struct simgpu_flow *flow, uint64_t until_ns) {
    uint64_t next_ns = (from->time_ns / history->step_ns + 1) * history->step_ns;
    uint64_t span_ns = history->length * history->step_ns;
    if (until_ns > span_ns && next_ns <= until_ns - span_ns) /* nobody will see older ones */
        next_ns = (until_ns - span_ns) / history->step_ns * history->step_ns + history->step_ns;
    for (; next_ns <= until_ns; next_ns += history->step_ns) {
        uint64_t count = *history->count;
        if (count && history->entries[(count - 1) % history->length].time_ns >= next_ns)
            continue; /* noted by a holder of the lock that died then */
        history->entries[count % history->length] = totals_at(from, flow, next_ns);
        atomic_store_explicit(history->count, count + 1, memory_order_release);
    }
}

static void move(struct simgpu_meter *meter, const struct history *history, uint64_t now_ns,
                 const struct simgpu_flow *flow) {
    uint32_t which = meter->which;
    const struct simgpu_totals *totals = &meter->copy[which].totals;
    const struct simgpu_flow *was = &meter->copy[which].flow;
    if (memcmp(was, flow, sizeof *flow) == 0)
        return;
    remember(history, totals, was, now_ns);
    meter->copy[1 - which].totals = totals_at(totals, was, now_ns);
    meter->copy[1 - which].flow = *flow;
    atomic_store_explicit(&meter->which, 1 - which, memory_order_release);
}

static struct history of_device(struct simgpu_device *device) {
    return (struct history){device->history, &device->history_count, SIMGPU_HISTORY,
                            SIMGPU_HISTORY_NS};
}

static struct history of_client(struct simgpu_client *client) {
    return (struct history){client->history, &client->history_count, SIMGPU_CLIENT_HISTORY,
                            SIMGPU_CLIENT_HISTORY_NS};
}

static void add(struct simgpu_flow *flow, const struct simgpu_op *op,
                const struct simgpu_running *running) {
    flow->memory += running->memory;
    if (simgpu_is_kernel(op)) {
        flow->busy = 1;
        flow->sm += running->sm;
        flow->occupancy += running->occupancy;
        return;
    }
    flow->copy = 1;
    double bytes = op->bytes / op->work_ns * running->rate;
    flow->h2d_bytes += op->kind == SIMGPU_COPY_H2D ? bytes : 0;
    flow->d2h_bytes += op->kind == SIMGPU_COPY_D2H ? bytes : 0;
}

void simgpu_meters(struct simgpu_device *device, const struct simgpu_running *running,
                   uint32_t count) {
    static const struct simgpu_flow none;
    struct simgpu_flow all = none;
    struct simgpu_flow flows[SIMGPU_RUNNING]; /* of the clients that run something */
    uint32_t clients[SIMGPU_RUNNING];
    uint32_t client_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct simgpu_lane *lane = &device->lanes[running[i].lane];
        uint32_t at = 0;
        while (at < client_count && clients[at] != lane->client)
            at++;
        if (at == client_count) {
            clients[client_count] = lane->client;
            flows[client_count++] = none;
        }
        add(&flows[at], &device->ops[lane->op], &running[i]);
        add(&all, &device->ops[lane->op], &running[i]);
    }
    struct history history = of_device(device);
    move(&device->meter, &history, device->now_ns, &all);
    for (uint32_t i = 0; i < device->clients_touched; i++)
        if (device->flowing[i])
            device->flowing[i] = 2; /* unless it runs something still */
    for (uint32_t i = 0; i < client_count; i++) {
        struct simgpu_client *client = &device->clients[clients[i]];
        history = of_client(client);
        move(&client->meter, &history, device->now_ns, &flows[i]);
        device->flowing[clients[i]] = 1;
    }
    for (uint32_t i = 0; i < device->clients_touched; i++) {
        if (device->flowing[i] != 2)
            continue;
        history = of_client(&device->clients[i]);
        move(&device->clients[i].meter, &history, device->now_ns, &none);
        device->flowing[i] = 0;
    }
}

/* --- reading --- */

static struct simgpu_totals meter_at(const struct simgpu_meter *meter, uint64_t time_ns) {
    return totals_at(&meter->copy[meter->which].totals, &meter->copy[meter->which].flow, time_ns);
}

static double between(double a, double b, double part) {
    return a + (b - a) * part;
}

/* Between the newest entry before that time and what follows it. */
static struct simgpu_totals history_at(const struct history *history,
                                       const struct simgpu_meter *meter, uint64_t time_ns) {
    struct simgpu_totals after = meter->copy[meter->which].totals;
    if (time_ns >= after.time_ns)
        return meter_at(meter, time_ns);
    uint64_t count = *history->count;
    for (uint64_t age = 0; age < history->length && age < count; age++) {
        struct simgpu_totals before = history->entries[(count - 1 - age) % history->length];
        if (before.time_ns > time_ns) {
            after = before;
            continue;
        }
        if (after.time_ns == before.time_ns)
            return before;
        double part = (double)(time_ns - before.time_ns) / (double)(after.time_ns - before.time_ns);
        return (struct simgpu_totals){
            .time_ns = time_ns,
            .busy_ns = between(before.busy_ns, after.busy_ns, part),
            .sm_ns = between(before.sm_ns, after.sm_ns, part),
            .occupancy_ns = between(before.occupancy_ns, after.occupancy_ns, part),
            .memory_ns = between(before.memory_ns, after.memory_ns, part),
            .copy_ns = between(before.copy_ns, after.copy_ns, part),
            .h2d_bytes = between(before.h2d_bytes, after.h2d_bytes, part),
            .d2h_bytes = between(before.d2h_bytes, after.d2h_bytes, part),
        };
    }
    return after;
}

struct simgpu_totals simgpu_device_totals(const struct simgpu_device *device) {
    return meter_at(&device->meter, device->now_ns);
}

struct simgpu_totals simgpu_client_totals(const struct simgpu_device *device, uint32_t client) {
    return meter_at(&device->clients[client].meter, device->now_ns);
}

struct simgpu_totals simgpu_device_totals_at(const struct simgpu_device *device, uint64_t time_ns) {
    struct history history = of_device((struct simgpu_device *)device);
    return history_at(&history, &device->meter, time_ns);
}

struct simgpu_totals simgpu_client_totals_at(const struct simgpu_device *device, uint32_t client,
                                             uint64_t time_ns) {
    struct history history = of_client((struct simgpu_client *)&device->clients[client]);
    return history_at(&history, &device->clients[client].meter, time_ns);
}

/* Part of the way from idle to limit, in integral: a fifth for running at all, the rest by what is
 * in use. */
static double load_ns(const struct simgpu_totals *totals) {
    return 0.2 * totals->busy_ns + 0.5 * totals->sm_ns + 0.3 * totals->memory_ns;
}

static double load_over(const struct simgpu_device *device, uint64_t window_ns) {
    uint64_t since_ns = device->now_ns > window_ns ? device->now_ns - window_ns : 0;
    if (since_ns < device->created_ns)
        since_ns = device->created_ns;
    struct simgpu_totals from = simgpu_device_totals_at(device, since_ns);
    struct simgpu_totals to = simgpu_device_totals(device);
    double passed_ns = (double)(to.time_ns - from.time_ns);
    return passed_ns > 0 ? (load_ns(&to) - load_ns(&from)) / passed_ns : 0;
}

uint32_t simgpu_power_mw(const struct simgpu_device *device, uint64_t window_ns) {
    double clock = (double)device->sm_clock_mhz / device->kind.boost_mhz;
    double range_w = device->kind.limit_w - device->kind.idle_w;
    return (uint32_t)(1000 *
                      (device->kind.idle_w + range_w * clock * load_over(device, window_ns)));
}

uint64_t simgpu_energy_mj(const struct simgpu_device *device) {
    struct simgpu_totals now = simgpu_device_totals(device);
    double age_ns = (double)(now.time_ns - device->created_ns);
    double range_w = device->kind.limit_w - device->kind.idle_w;
    return (uint64_t)((device->kind.idle_w * age_ns + range_w * load_ns(&now)) / 1e6);
}

uint32_t simgpu_temperature_c(const struct simgpu_device *device) {
    enum { IDLE_C = 33, RISE_C = 42 };
    return IDLE_C + (uint32_t)(RISE_C * load_over(device, 10ULL * 1000 * 1000 * 1000));
}
