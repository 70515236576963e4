/* How fast operations progress beside one another.
 *
 * Kernel i has a demand of SMs s_i and of memory bandwidth b_i (shares of the device, while it
 * runs at full speed), a priority k_i (smaller is more urgent), and work: the time it takes alone
 * at boost clock. Its context may use the share p of the SMs (MPS thread percentage).
 *
 *   1. The kernels of a context share p by weight s_i * 2^-k_i, none getting more than s_i:
 *          a_i = min(s_i, L * s_i * 2^-k_i),  L such that the a of the context add up to at most p
 *   2. All kernels share the SMs by the same weights, none getting more than a_i:
 *          g_i = min(a_i, L * s_i * 2^-k_i),  L such that the g add up to at most 1
 *      With equal priorities and without limits that is s_i / max(1, sum of s): all slow alike.
 *   3. Speed by SMs and clock: x_i = (g_i / s_i) * clock / boost clock.
 *   4. Bandwidth is shared max-min fairly, by demand d_i = b_i * x_i:
 *          m_i = min(d_i, M),  M such that the m add up to at most 1
 *   5. rate_i = x_i * m_i / d_i (x_i without a demand of bandwidth).
 *
 * Copies over PCIe share the link of their direction equally; copies within the device and memsets
 * demand the whole bandwidth. Both take part in step 4 with x = their share of the link, or 1.
 */
#include <math.h>

#include "model.h"

/* A copy begins to move bytes after this time; a memset or a copy within the device too. */
static const double transfer_latency_ns = 2000;

bool simgpu_is_kernel(const struct simgpu_op *op) {
    return op->kind == SIMGPU_KERNEL || op->kind == SIMGPU_WORD_WAIT;
}

bool simgpu_is_copy(const struct simgpu_op *op) {
    return op->kind >= SIMGPU_COPY_H2D && op->kind <= SIMGPU_MEMSET;
}

/* Shares the capacity: grants[i] = min(demands[i], level * weights[i]), with the highest level at
 * which the grants add up to no more than it. */
static void share(double capacity, uint32_t count, const double *demands, const double *weights,
                  double *grants) {
    double demand = 0;
    for (uint32_t i = 0; i < count; i++)
        demand += demands[i];
    if (demand <= capacity) {
        for (uint32_t i = 0; i < count; i++)
            grants[i] = demands[i];
        return;
    }
    for (uint32_t i = 0; i < count; i++)
        grants[i] = -1;
    for (;;) {
        double weight = 0;
        for (uint32_t i = 0; i < count; i++)
            weight += grants[i] < 0 ? weights[i] : 0;
        double level = capacity / weight;
        bool met = false;
        for (uint32_t i = 0; i < count; i++)
            if (grants[i] < 0 && demands[i] <= level * weights[i]) {
                grants[i] = demands[i];
                capacity -= demands[i];
                met = true;
            }
        if (met)
            continue;
        for (uint32_t i = 0; i < count; i++)
            if (grants[i] < 0)
                grants[i] = level * weights[i];
        return;
    }
}

struct competition {
    uint32_t count;
    uint32_t kernels; /* come first */
    const struct simgpu_op *op[SIMGPU_RUNNING];
    double demands[SIMGPU_RUNNING]; /* of SMs, then of bandwidth */
    double weights[SIMGPU_RUNNING];
    double grants[SIMGPU_RUNNING];
    double speed[SIMGPU_RUNNING]; /* x */
};

/* Step 1 for the context of kernel `first`, which is the first of its context. */
static void share_context(const struct simgpu_device *device, struct competition *c,
                          uint32_t first) {
    double demands[SIMGPU_RUNNING], weights[SIMGPU_RUNNING], grants[SIMGPU_RUNNING];
    uint32_t of_context[SIMGPU_RUNNING];
    uint32_t context = c->op[first]->context;
    uint32_t count = 0;
    for (uint32_t i = first; i < c->kernels; i++) {
        if (c->op[i]->context != context)
            continue;
        demands[count] = c->demands[i];
        weights[count] = c->weights[i];
        of_context[count++] = i;
    }
    share(device->contexts[context].thread_share, count, demands, weights, grants);
    for (uint32_t i = 0; i < count; i++)
        c->demands[of_context[i]] = grants[i];
}

static bool is_first_of_context(const struct competition *c, uint32_t kernel) {
    for (uint32_t i = 0; i < kernel; i++)
        if (c->op[i]->context == c->op[kernel]->context)
            return false;
    return true;
}

/* Steps 1 to 3. */
static void share_sms(const struct simgpu_device *device, struct competition *c,
                      struct simgpu_running *running) {
    for (uint32_t i = 0; i < c->kernels; i++) {
        c->demands[i] = c->op[i]->sm_share;
        c->weights[i] = ldexp(c->demands[i], -c->op[i]->priority);
    }
    for (uint32_t i = 0; i < c->kernels; i++)
        if (device->contexts[c->op[i]->context].thread_share < 1 && is_first_of_context(c, i))
            share_context(device, c, i);
    share(1, c->kernels, c->demands, c->weights, c->grants);
    double clock = (double)device->sm_clock_mhz / device->kind.boost_mhz;
    for (uint32_t i = 0; i < c->kernels; i++) {
        double part = c->grants[i] / c->op[i]->sm_share;
        running[i].sm = c->grants[i];
        running[i].occupancy = c->op[i]->occupancy * part;
        c->speed[i] = part * clock;
    }
}

static void share_links(struct competition *c, struct simgpu_running *running) {
    uint32_t on_link[SIMGPU_MARK + 1] = {0};
    for (uint32_t i = c->kernels; i < c->count; i++)
        on_link[c->op[i]->kind]++;
    for (uint32_t i = c->kernels; i < c->count; i++) {
        uint32_t kind = c->op[i]->kind;
        bool link = kind == SIMGPU_COPY_H2D || kind == SIMGPU_COPY_D2H;
        c->speed[i] = link ? 1.0 / on_link[kind] : 1;
        running[i].sm = 0;
        running[i].occupancy = 0;
    }
}

/* Steps 4 and 5. */
static void share_bandwidth(struct competition *c, struct simgpu_running *running) {
    for (uint32_t i = 0; i < c->count; i++) {
        c->demands[i] = c->op[i]->bandwidth * c->speed[i];
        c->weights[i] = c->demands[i] > 0;
    }
    share(1, c->count, c->demands, c->weights, c->grants);
    for (uint32_t i = 0; i < c->count; i++) {
        running[i].memory = c->grants[i];
        running[i].rate =
            c->grants[i] < c->demands[i] ? c->speed[i] * c->grants[i] / c->demands[i] : c->speed[i];
    }
}

uint32_t simgpu_rates(const struct simgpu_device *device, const struct simgpu_lane *lanes,
                      uint32_t count, uint32_t turn, struct simgpu_running *running) {
    struct competition c;
    c.count = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (!lanes[i].running || lanes[i].group != turn)
            continue;
        const struct simgpu_op *op = &device->ops[lanes[i].op];
        if (!simgpu_is_kernel(op))
            continue;
        running[c.count].lane = i;
        c.op[c.count++] = op;
    }
    c.kernels = c.count;
    for (uint32_t i = 0; i < count; i++) {
        if (!lanes[i].running || !simgpu_is_copy(&device->ops[lanes[i].op]))
            continue;
        running[c.count].lane = i;
        c.op[c.count++] = &device->ops[lanes[i].op];
    }
    share_sms(device, &c, running);
    share_links(&c, running);
    share_bandwidth(&c, running);
    return c.count;
}

struct simgpu_work simgpu_transfer(const struct simgpu_device *device, enum simgpu_op_kind kind,
                                   uint64_t bytes) {
    const struct simgpu_kind *gpu = &device->kind;
    struct simgpu_work work = {
        .kind = kind, .bytes = bytes, .wait_stream = SIMGPU_NONE, .event = SIMGPU_NONE};
    bool link = kind == SIMGPU_COPY_H2D || kind == SIMGPU_COPY_D2H;
    /* 10^9 bytes/s is one byte per ns; a copy within the device reads and writes each byte. */
    double touched = kind == SIMGPU_COPY_D2D ? 2.0 * bytes : bytes;
    double bytes_per_ns = link ? gpu->pcie_gbps : gpu->bandwidth_gbps;
    work.work_ns = transfer_latency_ns + touched / bytes_per_ns;
    work.bandwidth = (link ? (double)gpu->pcie_gbps / gpu->bandwidth_gbps : 1) *
                     (1 - transfer_latency_ns / work.work_ns);
    return work;
}
