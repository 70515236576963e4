/* The device model against schedules computed by hand. Time is given, so every figure is exact.
 *
 * `model_schedules` runs one test by name; without a name it prints the names. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "model.h"

#define US        1000ULL
#define MS        1000000ULL
#define UNBOUNDED INFINITY

static struct simgpu_device *gpu;
static uint64_t start_ns;

static void check(bool holds, const char *what, int line) {
    if (holds)
        return;
    fprintf(stderr, "line %d: %s\n", line, what);
    exit(1);
}
#define CHECK(condition) check(condition, #condition, __LINE__)

static void check_time(uint64_t is_ns, uint64_t expected_ns, int line) {
    if (is_ns == expected_ns)
        return;
    fprintf(stderr, "line %d: %lld ns instead of %lld ns after the start\n", line,
            (long long)(is_ns - start_ns), (long long)(expected_ns - start_ns));
    exit(1);
}
/* The time is that many ns after the start. */
#define CHECK_TIME(is, expected) check_time(is, start_ns + (expected), __LINE__)

static void check_near(double is, double expected, int line) {
    if (fabs(is - expected) <= 2 + fabs(expected) * 1e-6)
        return;
    fprintf(stderr, "line %d: %f instead of %f\n", line, is, expected);
    exit(1);
}
#define CHECK_NEAR(is, expected) check_near(is, expected, __LINE__)

static void new_device(const char *kind) {
    static const uint8_t uuid[16];
    gpu = mmap(NULL, sizeof *gpu, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    start_ns = 1000 * MS;
    simgpu_initialise(gpu, 0, simgpu_kind_find(kind), uuid, true, start_ns);
}

static void at(uint64_t after_start_ns) {
    simgpu_advance(gpu, start_ns + after_start_ns);
}

static uint32_t new_client(uint32_t slot) {
    CHECK(simgpu_client_create(gpu, slot, 100 + slot, 1, 0, "test") == 0);
    return slot;
}

static uint32_t new_context(uint32_t client, double thread_share) {
    int context = simgpu_context_create(gpu, client, thread_share, 0);
    CHECK(context >= 0);
    return (uint32_t)context;
}

static uint32_t new_stream(uint32_t context, uint32_t flags, int priority) {
    int stream = simgpu_stream_create(gpu, context, flags, priority);
    CHECK(stream >= 0);
    return (uint32_t)stream;
}

/* A stream of a process and a context of its own. */
static uint32_t lone_stream(uint32_t client) {
    return new_stream(new_context(new_client(client), 1), SIMGPU_STREAM_NON_BLOCKING, 0);
}

static uint32_t mps_client(uint32_t slot, uint32_t mps) {
    uint32_t client = new_client(slot);
    gpu->clients[client].mps = mps;
    gpu->clients[client].mps_server = gpu->mps[mps].server_id;
    return client;
}

static uint32_t new_server(void) {
    gpu->mps[0].state = SIMGPU_MPS_IDLE;
    simgpu_mps_server_started(gpu, 0, 4242, 0);
    return 0;
}

static struct simgpu_work kernel(double work_ns, double sm_share, double bandwidth) {
    return (struct simgpu_work){.kind = SIMGPU_KERNEL,
                                .work_ns = work_ns,
                                .sm_share = sm_share,
                                .bandwidth = bandwidth,
                                .occupancy = sm_share,
                                .wait_stream = SIMGPU_NONE,
                                .event = SIMGPU_NONE};
}

static struct simgpu_work mark(void) {
    return (struct simgpu_work){
        .kind = SIMGPU_MARK, .wait_stream = SIMGPU_NONE, .event = SIMGPU_NONE};
}

static uint32_t put(uint32_t stream, struct simgpu_work work) {
    int op = simgpu_enqueue(gpu, stream, &work);
    CHECK(op >= 0);
    return (uint32_t)op;
}

/* Runs a kernel in the stream and returns an event that is recorded after it. */
static uint32_t put_timed(uint32_t stream, struct simgpu_work work) {
    put(stream, work);
    uint32_t client = gpu->contexts[gpu->streams[stream].context].client;
    int event = simgpu_event_create(gpu, client);
    CHECK(event >= 0);
    struct simgpu_work record = mark();
    record.event = (uint32_t)event;
    put(stream, record);
    return (uint32_t)event;
}

static uint64_t time_of(uint32_t event) {
    return gpu->events[event].time_ns;
}

/* --- alone --- */

static void a_kernel_alone_takes_its_work(void) {
    uint32_t event = put_timed(lone_stream(0), kernel(70 * US, 0.4, 0.9));
    at(70 * US - 1);
    CHECK(time_of(event) == 0);
    at(5 * MS);
    CHECK_TIME(time_of(event), 70 * US);
}

static void a_stream_runs_one_after_another(void) {
    uint32_t stream = lone_stream(0);
    uint32_t first = put_timed(stream, kernel(10 * US, 0.1, 0));
    uint32_t second = put_timed(stream, kernel(30 * US, 0.1, 0));
    at(1 * MS);
    CHECK_TIME(time_of(first), 10 * US);
    CHECK_TIME(time_of(second), 40 * US);
}

static void a_gap_between_launches_is_kept(void) {
    uint32_t stream = lone_stream(0);
    put(stream, kernel(10 * US, 1, 0));
    at(25 * US);
    uint32_t event = put_timed(stream, kernel(10 * US, 1, 0));
    at(1 * MS);
    CHECK_TIME(time_of(event), 35 * US);
}

static void a_slower_clock_slows_kernels_and_not_copies(void) {
    uint32_t stream = lone_stream(0);
    uint32_t context = gpu->streams[stream].context;
    uint32_t other = new_stream(context, SIMGPU_STREAM_NON_BLOCKING, 0);
    uint32_t event = put_timed(stream, kernel(100 * US, 1, 0));
    struct simgpu_work copy = simgpu_transfer(gpu, SIMGPU_COPY_H2D, 1200000);
    uint32_t copied = put_timed(other, copy);
    at(50 * US);
    simgpu_set_clock(gpu, gpu->kind.boost_mhz / 2, 0);
    at(1 * MS);
    CHECK_TIME(time_of(event), 150 * US);
    CHECK_TIME(time_of(copied), 102 * US); /* 12 bytes per ns, and 2 us to begin */
}

/* --- beside one another --- */

static void full_kernels_share_the_device_equally(void) {
    uint32_t context = new_context(new_client(0), 1);
    uint32_t a = put_timed(new_stream(context, 0, 0), kernel(100 * US, 1, 0));
    uint32_t b = put_timed(new_stream(context, 0, 0), kernel(300 * US, 1, 0));
    at(1 * MS);
    CHECK_TIME(time_of(a), 200 * US);
    CHECK_TIME(time_of(b), 400 * US);
}

static void shares_that_fit_do_not_slow(void) {
    uint32_t context = new_context(new_client(0), 1);
    uint32_t a = put_timed(new_stream(context, 0, 0), kernel(100 * US, 0.5, 0.3));
    uint32_t b = put_timed(new_stream(context, 0, 0), kernel(90 * US, 0.5, 0.7));
    at(1 * MS);
    CHECK_TIME(time_of(a), 100 * US);
    CHECK_TIME(time_of(b), 90 * US);
}

static void too_much_demand_of_sms_slows_all_alike(void) {
    /* 0.75 + 0.5 = 1.25: both at 0.8. b ends at 125 us, a has 200 - 100 left then. */
    uint32_t context = new_context(new_client(0), 1);
    uint32_t a = put_timed(new_stream(context, 0, 0), kernel(200 * US, 0.75, 0));
    uint32_t b = put_timed(new_stream(context, 0, 0), kernel(100 * US, 0.5, 0));
    at(1 * MS);
    CHECK_TIME(time_of(b), 125 * US);
    CHECK_TIME(time_of(a), 225 * US);
}

static void a_newcomer_slows_what_runs(void) {
    /* a alone until 60 us, then both at half speed. */
    uint32_t context = new_context(new_client(0), 1);
    uint32_t a = put_timed(new_stream(context, 0, 0), kernel(100 * US, 1, 0));
    at(60 * US);
    uint32_t b = put_timed(new_stream(context, 0, 0), kernel(100 * US, 1, 0));
    at(1 * MS);
    CHECK_TIME(time_of(a), 140 * US);
    CHECK_TIME(time_of(b), 200 * US);
}

static void bandwidth_is_shared_max_min_fairly(void) {
    /* Demands 0.25 and 1: the small one is met, the other gets 0.75. */
    uint32_t context = new_context(new_client(0), 1);
    uint32_t small = put_timed(new_stream(context, 0, 0), kernel(300 * US, 0.5, 0.25));
    uint32_t large = put_timed(new_stream(context, 0, 0), kernel(90 * US, 0.5, 1));
    at(1 * MS);
    CHECK_TIME(time_of(large), 120 * US);
    CHECK_TIME(time_of(small), 300 * US);
}

static void a_kernel_slowed_by_sms_asks_for_less_bandwidth(void) {
    /* SMs: 1 + 1, both at half speed; bandwidth 0.5 * 0.5 + 1 * 0.5 = 0.75 fits. */
    uint32_t context = new_context(new_client(0), 1);
    uint32_t a = put_timed(new_stream(context, 0, 0), kernel(100 * US, 1, 0.5));
    uint32_t b = put_timed(new_stream(context, 0, 0), kernel(100 * US, 1, 1));
    at(1 * MS);
    CHECK_TIME(time_of(a), 200 * US);
    CHECK_TIME(time_of(b), 200 * US);
}

static void each_step_of_priority_doubles_the_weight(void) {
    /* Weights 2 and 1: a at 2/3 until 150 us, when b has done 50. */
    uint32_t context = new_context(new_client(0), 1);
    uint32_t a = put_timed(new_stream(context, 0, -1), kernel(100 * US, 1, 0));
    uint32_t b = put_timed(new_stream(context, 0, 0), kernel(100 * US, 1, 0));
    at(1 * MS);
    CHECK_NEAR((double)(time_of(a) - start_ns), 150e3);
    CHECK_NEAR((double)(time_of(b) - start_ns), 200e3);
}

static void weight_gives_nobody_more_than_it_asks_for(void) {
    /* a asks for 0.4 and has 8 times the weight: it is met; b gets 0.6. */
    uint32_t context = new_context(new_client(0), 1);
    uint32_t a = put_timed(new_stream(context, 0, -3), kernel(100 * US, 0.4, 0));
    uint32_t b = put_timed(new_stream(context, 0, 0), kernel(100 * US, 1, 0));
    at(1 * MS);
    CHECK_TIME(time_of(a), 100 * US);
    CHECK_NEAR((double)(time_of(b) - start_ns), 140e3);
}

static void copies_share_the_link_of_their_direction(void) {
    uint32_t context = new_context(new_client(0), 1);
    struct simgpu_work in = simgpu_transfer(gpu, SIMGPU_COPY_H2D, 1176000); /* 98 + 2 us */
    struct simgpu_work out = simgpu_transfer(gpu, SIMGPU_COPY_D2H, 1176000);
    uint32_t a = put_timed(new_stream(context, 0, 0), in);
    uint32_t b = put_timed(new_stream(context, 0, 0), in);
    uint32_t c = put_timed(new_stream(context, 0, 0), out);
    at(1 * MS);
    CHECK_TIME(time_of(a), 200 * US);
    CHECK_TIME(time_of(b), 200 * US);
    CHECK_TIME(time_of(c), 100 * US);
}

static void a_copy_runs_beside_a_kernel(void) {
    uint32_t context = new_context(new_client(0), 1);
    uint32_t a = put_timed(new_stream(context, 0, 0), kernel(100 * US, 1, 0));
    uint32_t b =
        put_timed(new_stream(context, 0, 0), simgpu_transfer(gpu, SIMGPU_COPY_D2H, 1176000));
    at(1 * MS);
    CHECK_TIME(time_of(a), 100 * US);
    CHECK_TIME(time_of(b), 100 * US);
}

static void no_more_kernels_run_than_the_hardware_takes(void) {
    uint32_t context = new_context(new_client(0), 1);
    uint32_t events[130];
    for (int i = 0; i < 130; i++)
        events[i] =
            put_timed(new_stream(context, 0, i == 129 ? -1 : 0), kernel(100 * US, 0.001, 0));
    at(1 * MS);
    CHECK_TIME(time_of(events[127]), 100 * US);
    CHECK_TIME(time_of(events[128]), 200 * US);
    CHECK_TIME(time_of(events[129]), 200 * US);
    CHECK(gpu->log[128].id > gpu->log[0].id);
}

/* --- thread percentage --- */

static void a_context_has_no_more_than_its_share(void) {
    uint32_t context = new_context(new_client(0), 0.25);
    uint32_t event = put_timed(new_stream(context, 0, 0), kernel(100 * US, 1, 0));
    at(1 * MS);
    CHECK_TIME(time_of(event), 400 * US);
}

static void a_kernel_within_the_share_is_not_slowed(void) {
    uint32_t context = new_context(new_client(0), 0.25);
    uint32_t event = put_timed(new_stream(context, 0, 0), kernel(100 * US, 0.25, 0));
    at(1 * MS);
    CHECK_TIME(time_of(event), 100 * US);
}

static void kernels_of_a_context_divide_its_share(void) {
    uint32_t context = new_context(new_client(0), 0.5);
    uint32_t a = put_timed(new_stream(context, 0, 0), kernel(100 * US, 0.5, 0));
    uint32_t b = put_timed(new_stream(context, 0, 0), kernel(100 * US, 0.5, 0));
    at(1 * MS);
    CHECK_TIME(time_of(a), 200 * US);
    CHECK_TIME(time_of(b), 200 * US);
}

static void shares_keep_mps_clients_apart(void) {
    uint32_t mps = new_server();
    uint32_t small = new_context(mps_client(0, mps), 0.25);
    uint32_t large = new_context(mps_client(1, mps), 0.75);
    uint32_t a = put_timed(new_stream(small, 0, 0), kernel(100 * US, 1, 0));
    uint32_t b = put_timed(new_stream(large, 0, 0), kernel(300 * US, 1, 0));
    at(1 * MS);
    CHECK_TIME(time_of(a), 400 * US);
    CHECK_TIME(time_of(b), 400 * US);
}

static void a_client_below_normal_priority_has_half_the_weight(void) {
    uint32_t mps = new_server();
    uint32_t online = mps_client(0, mps);
    uint32_t offline = mps_client(1, mps);
    gpu->clients[offline].mps_priority = 1;
    uint32_t a = put_timed(new_stream(new_context(online, 1), 0, 0), kernel(100 * US, 1, 0));
    uint32_t b = put_timed(new_stream(new_context(offline, 1), 0, 0), kernel(100 * US, 1, 0));
    at(1 * MS);
    CHECK_NEAR((double)(time_of(a) - start_ns), 150e3);
    CHECK_NEAR((double)(time_of(b) - start_ns), 200e3);
}

/* --- time slices --- */

static void processes_without_mps_take_turns(void) {
    /* a until 2 ms, b 2 to 4, a 4 to 5 (done), b 5 to 6 (done). */
    uint32_t a = put_timed(lone_stream(0), kernel(3 * MS, 0.1, 0));
    at(500 * US);
    uint32_t b = put_timed(lone_stream(1), kernel(3 * MS, 0.1, 0));
    at(100 * MS);
    CHECK_TIME(time_of(a), 5 * MS);
    CHECK_TIME(time_of(b), 6 * MS);
    CHECK(gpu->log[0].ran_ns == 3 * MS && gpu->log[1].ran_ns == 3 * MS);
}

static void a_newcomer_waits_for_the_end_of_the_slice(void) {
    /* a has been alone for two slices; b runs from 6 to 7 ms. */
    uint32_t a = put_timed(lone_stream(0), kernel(10 * MS, 1, 0));
    at(5500 * US);
    uint32_t b = put_timed(lone_stream(1), kernel(1 * MS, 1, 0));
    at(100 * MS);
    CHECK_TIME(time_of(b), 7 * MS);
    CHECK_TIME(time_of(a), 11 * MS);
}

static void an_idle_process_gives_up_its_slice(void) {
    uint32_t a = put_timed(lone_stream(0), kernel(100 * US, 1, 0));
    uint32_t b = put_timed(lone_stream(1), kernel(100 * US, 1, 0));
    at(100 * MS);
    CHECK_TIME(time_of(a), 100 * US);
    CHECK_TIME(time_of(b), 200 * US);
}

static void three_processes_go_round(void) {
    uint32_t events[3];
    for (uint32_t i = 0; i < 3; i++)
        events[i] = put_timed(lone_stream(i), kernel(3 * MS, 1, 0));
    at(100 * MS);
    CHECK_TIME(time_of(events[0]), 7 * MS);
    CHECK_TIME(time_of(events[1]), 8 * MS);
    CHECK_TIME(time_of(events[2]), 9 * MS);
}

static void copies_need_no_turn(void) {
    put(lone_stream(0), kernel(10 * MS, 1, 0));
    uint32_t copied = put_timed(lone_stream(1), simgpu_transfer(gpu, SIMGPU_COPY_H2D, 1176000));
    at(100 * MS);
    CHECK_TIME(time_of(copied), 100 * US);
}

static void mps_clients_run_together(void) {
    uint32_t mps = new_server();
    uint32_t a =
        put_timed(new_stream(new_context(mps_client(0, mps), 1), 0, 0), kernel(10 * MS, 0.5, 0));
    uint32_t b =
        put_timed(new_stream(new_context(mps_client(1, mps), 1), 0, 0), kernel(10 * MS, 0.5, 0));
    at(100 * MS);
    CHECK_TIME(time_of(a), 10 * MS);
    CHECK_TIME(time_of(b), 10 * MS);
}

static void a_process_without_mps_takes_turns_with_all_clients(void) {
    uint32_t mps = new_server();
    uint32_t a =
        put_timed(new_stream(new_context(mps_client(0, mps), 1), 0, 0), kernel(3 * MS, 0.5, 0));
    uint32_t b =
        put_timed(new_stream(new_context(mps_client(1, mps), 1), 0, 0), kernel(3 * MS, 0.5, 0));
    uint32_t c = put_timed(lone_stream(2), kernel(1 * MS, 1, 0));
    at(100 * MS);
    CHECK_TIME(time_of(c), 3 * MS);
    CHECK_TIME(time_of(a), 4 * MS);
    CHECK_TIME(time_of(b), 4 * MS);
}

/* --- order --- */

static void a_stream_waits_for_an_event_of_another(void) {
    uint32_t context = new_context(new_client(0), 1);
    uint32_t producer = new_stream(context, SIMGPU_STREAM_NON_BLOCKING, 0);
    uint32_t consumer = new_stream(context, SIMGPU_STREAM_NON_BLOCKING, 0);
    uint32_t event = put_timed(producer, kernel(100 * US, 0.1, 0));
    put(producer, kernel(500 * US, 0.1, 0));
    struct simgpu_work wait = mark();
    wait.wait_stream = gpu->events[event].stream;
    wait.wait_sequence = gpu->events[event].sequence;
    put(consumer, wait);
    uint32_t done = put_timed(consumer, kernel(10 * US, 0.1, 0));
    at(5 * MS);
    CHECK_TIME(time_of(done), 110 * US);
}

static void the_default_stream_waits_for_blocking_streams_and_they_for_it(void) {
    uint32_t context = new_context(new_client(0), 1);
    uint32_t blocking = new_stream(context, 0, 0);
    uint32_t legacy = gpu->contexts[context].legacy;
    uint32_t a = put_timed(blocking, kernel(100 * US, 0.1, 0));
    uint32_t b = put_timed(legacy, kernel(100 * US, 0.1, 0));
    uint32_t c = put_timed(blocking, kernel(100 * US, 0.1, 0));
    at(5 * MS);
    CHECK_TIME(time_of(a), 100 * US);
    CHECK_TIME(time_of(b), 200 * US);
    CHECK_TIME(time_of(c), 300 * US);
}

static void the_default_stream_and_non_blocking_streams_ignore_each_other(void) {
    uint32_t context = new_context(new_client(0), 1);
    uint32_t free_stream = new_stream(context, SIMGPU_STREAM_NON_BLOCKING, 0);
    uint32_t a = put_timed(free_stream, kernel(100 * US, 0.1, 0));
    uint32_t b = put_timed(gpu->contexts[context].legacy, kernel(100 * US, 0.1, 0));
    at(5 * MS);
    CHECK_TIME(time_of(a), 100 * US);
    CHECK_TIME(time_of(b), 100 * US);
}

static void default_streams_of_two_contexts_ignore_each_other(void) {
    uint32_t client = new_client(0);
    uint32_t mps = new_server();
    gpu->clients[client].mps = mps;
    uint32_t a = new_context(client, 1);
    uint32_t b = new_context(client, 1);
    uint32_t first = put_timed(gpu->contexts[a].legacy, kernel(100 * US, 0.1, 0));
    uint32_t second = put_timed(gpu->contexts[b].legacy, kernel(100 * US, 0.1, 0));
    at(5 * MS);
    CHECK_TIME(time_of(first), 100 * US);
    CHECK_TIME(time_of(second), 100 * US);
}

static void a_host_function_holds_its_stream_until_it_returns(void) {
    uint32_t stream = lone_stream(0);
    put(stream, kernel(10 * US, 1, 0));
    uint32_t op = put(stream, (struct simgpu_work){.kind = SIMGPU_HOST_FUNCTION,
                                                   .work_ns = UNBOUNDED,
                                                   .wait_stream = SIMGPU_NONE,
                                                   .event = SIMGPU_NONE});
    uint32_t event = put_timed(stream, kernel(10 * US, 1, 0));
    at(5 * US);
    CHECK(gpu->ops[op].state == SIMGPU_OP_QUEUED);
    at(70 * US);
    CHECK(gpu->ops[op].state == SIMGPU_OP_RUNNING);
    CHECK(simgpu_predict(gpu, stream, gpu->streams[stream].enqueued) == SIMGPU_NEVER);
    simgpu_complete(gpu, op, gpu->ops[op].id);
    at(5 * MS);
    CHECK_TIME(time_of(event), 80 * US);
}

static void a_spinning_kernel_keeps_its_sms(void) {
    uint32_t context = new_context(new_client(0), 1);
    struct simgpu_work spin = kernel(UNBOUNDED, 1, 0);
    spin.kind = SIMGPU_WORD_WAIT;
    uint32_t op = put(new_stream(context, 0, 0), spin);
    uint32_t event = put_timed(new_stream(context, 0, 0), kernel(100 * US, 1, 0));
    at(100 * US);
    simgpu_complete(gpu, op, gpu->ops[op].id);
    at(5 * MS);
    CHECK_TIME(time_of(event), 150 * US);
}

static void a_context_queues_no_more_than_its_depth(void) {
    uint32_t stream = lone_stream(0);
    struct simgpu_work work = kernel(10 * US, 1, 0);
    for (int i = 0; i < SIMGPU_QUEUE_DEPTH; i++)
        put(stream, work);
    CHECK(simgpu_enqueue(gpu, stream, &work) == -EAGAIN);
    at(10 * US);
    put(stream, work);
    CHECK(simgpu_enqueue(gpu, stream, &work) == -EAGAIN);
}

static void a_destroyed_stream_ends_its_work_first(void) {
    uint32_t stream = lone_stream(0);
    uint32_t event = put_timed(stream, kernel(100 * US, 1, 0));
    simgpu_stream_destroy(gpu, stream);
    CHECK(gpu->streams[stream].state == SIMGPU_USED);
    at(1 * MS);
    CHECK_TIME(time_of(event), 100 * US);
    CHECK(gpu->streams[stream].state == SIMGPU_FREE);
}

/* --- predictions --- */

static uint32_t random_below(uint32_t bound) {
    return (uint32_t)(random() % bound);
}

static void put_something(const uint32_t *streams, uint32_t count) {
    uint32_t stream = streams[random_below(count)];
    struct simgpu_work work = kernel(1 + random_below(500000), 0.01 + random_below(100) / 100.0,
                                     random_below(100) / 100.0);
    switch (random_below(6)) {
    case 0:
        work = simgpu_transfer(gpu, SIMGPU_COPY_H2D + random_below(4), random_below(1000000));
        break;
    case 1:
        work = mark();
        work.wait_stream = streams[random_below(count)];
        work.wait_sequence = gpu->streams[work.wait_stream].enqueued;
        break;
    default:
        break;
    }
    put(stream, work);
}

/* Several processes, with and without MPS, with all sorts of streams. */
static uint32_t busy_world(uint32_t *streams) {
    uint32_t mps = new_server();
    uint32_t count = 0;
    for (uint32_t client = 0; client < 4; client++) {
        uint32_t context = new_context(client < 2 ? mps_client(client, mps) : new_client(client),
                                       0.3 + 0.2 * client);
        streams[count++] = gpu->contexts[context].legacy;
        streams[count++] = new_stream(context, 0, -1);
        streams[count++] = new_stream(context, SIMGPU_STREAM_NON_BLOCKING, 0);
    }
    return count;
}

static void predictions_come_true_when_nothing_new_comes(void) {
    for (unsigned seed = 0; seed < 60; seed++) {
        srandom(seed);
        new_device("A100");
        uint32_t streams[12];
        uint32_t count = busy_world(streams);
        for (int i = 0; i < 60; i++) {
            put_something(streams, count);
            at(gpu->now_ns - start_ns + random_below(3) * 20 * US);
        }
        uint32_t stream = streams[random_below(count)];
        uint64_t sequence = gpu->streams[stream].enqueued;
        uint64_t predicted_ns = simgpu_predict(gpu, stream, sequence);
        CHECK(predicted_ns != SIMGPU_NEVER);
        if (predicted_ns > gpu->now_ns) {
            simgpu_advance(gpu, predicted_ns - 1);
            CHECK(gpu->streams[stream].completed < sequence);
        }
        simgpu_advance(gpu, predicted_ns);
        CHECK(gpu->streams[stream].completed == sequence);
        munmap(gpu, sizeof *gpu);
    }
}

static void a_long_queue_is_predicted_at_once(void) {
    uint32_t stream = lone_stream(0);
    for (int i = 0; i < 1000; i++)
        put(stream, kernel(10 * US, 0.5, 0.1));
    CHECK_TIME(simgpu_predict(gpu, stream, 1000), 10 * MS);
}

static void a_prediction_changes_nothing(void) {
    uint32_t streams[12];
    uint32_t count = busy_world(streams);
    srandom(7);
    for (int i = 0; i < 40; i++)
        put_something(streams, count);
    at(30 * US);
    struct simgpu_device *before = malloc(sizeof *before);
    memcpy(before, gpu, sizeof *before);
    for (uint32_t i = 0; i < count; i++)
        simgpu_predict(gpu, streams[i], gpu->streams[streams[i]].enqueued);
    CHECK(memcmp(before, gpu, sizeof *before) == 0);
    free(before);
}

static void the_order_of_looks_does_not_change_the_schedule(void) {
    uint64_t ended_ns[2][12];
    for (int pass = 0; pass < 2; pass++) {
        new_device("T4");
        srandom(11);
        uint32_t streams[12];
        uint32_t count = busy_world(streams);
        for (int i = 0; i < 50; i++)
            put_something(streams, count);
        uint32_t events[12];
        for (uint32_t i = 0; i < count; i++)
            events[i] = put_timed(streams[i], kernel(50 * US, 0.5, 0.5));
        if (pass == 1)
            for (uint64_t ns = 0; ns < 80 * MS; ns += 7001)
                at(ns);
        at(80 * MS);
        for (uint32_t i = 0; i < count; i++)
            ended_ns[pass][i] = time_of(events[i]);
    }
    for (int i = 0; i < 12; i++)
        CHECK(ended_ns[0][i] && ended_ns[0][i] == ended_ns[1][i]);
}

/* --- meters --- */

static void meters_add_up_what_ran(void) {
    uint32_t context = new_context(new_client(0), 1);
    put(new_stream(context, 0, 0), kernel(100 * US, 0.5, 0.25));
    at(60 * US);
    put(new_stream(context, 0, 0), kernel(100 * US, 0.25, 0.5));
    at(1 * MS);
    struct simgpu_totals device = simgpu_device_totals(gpu);
    CHECK_NEAR(device.busy_ns, 160e3);
    CHECK_NEAR(device.sm_ns, 75e3);
    CHECK_NEAR(device.memory_ns, 75e3);
    CHECK(gpu->kernels_ended == 2);
    struct simgpu_totals client = simgpu_client_totals(gpu, 0);
    CHECK_NEAR(client.busy_ns, 160e3);
    CHECK_NEAR(client.sm_ns, 75e3);
}

static void a_client_is_not_busy_outside_its_slice(void) {
    put(lone_stream(0), kernel(5 * MS, 1, 0));
    put(lone_stream(1), kernel(5 * MS, 1, 0));
    at(8 * MS);
    CHECK_NEAR(simgpu_client_totals(gpu, 0).busy_ns, 4e6);
    CHECK_NEAR(simgpu_client_totals(gpu, 1).busy_ns, 4e6);
    CHECK_NEAR(simgpu_device_totals(gpu).busy_ns, 8e6);
}

static void history_knows_the_past(void) {
    uint32_t stream = lone_stream(0);
    at(20 * MS);
    put(stream, kernel(30 * MS, 0.5, 0));
    at(400 * MS);
    CHECK_NEAR(simgpu_device_totals_at(gpu, start_ns + 20 * MS).busy_ns, 0);
    CHECK_NEAR(simgpu_device_totals_at(gpu, start_ns + 35 * MS).busy_ns, 15e6);
    CHECK_NEAR(simgpu_device_totals_at(gpu, start_ns + 50 * MS).busy_ns, 30e6);
    CHECK_NEAR(simgpu_device_totals_at(gpu, start_ns + 390 * MS).sm_ns, 15e6);
}

static void copied_bytes_are_counted(void) {
    put(lone_stream(0), simgpu_transfer(gpu, SIMGPU_COPY_H2D, 5000000));
    at(10 * MS);
    CHECK_NEAR(simgpu_device_totals(gpu).h2d_bytes, 5e6);
    CHECK_NEAR(simgpu_device_totals(gpu).d2h_bytes, 0);
}

static void the_log_tells_what_ran_when(void) {
    uint32_t stream = lone_stream(0);
    put(stream, kernel(100 * US, 0.5, 0.25));
    at(10 * US);
    put(stream, kernel(50 * US, 1, 0));
    at(1 * MS);
    CHECK(gpu->log_count == 2);
    const struct simgpu_log_entry *second = &gpu->log[1];
    CHECK_TIME(second->enqueued_ns, 10 * US);
    CHECK_TIME(second->started_ns, 100 * US);
    CHECK_TIME(second->ended_ns, 150 * US);
    CHECK(second->pid == 100 && second->kind == SIMGPU_KERNEL && !second->cancelled);
    CHECK(strcmp(second->tag, "test") == 0);
}

/* --- memory --- */

static void memory_ends(void) {
    uint32_t client = new_client(0);
    uint64_t all = simgpu_memory_free(gpu);
    CHECK(all == gpu->kind.memory_bytes - gpu->kind.reserved_bytes);
    CHECK(simgpu_memory_take(gpu, client, all));
    CHECK(!simgpu_memory_take(gpu, client, 1));
    simgpu_memory_give(gpu, client, 4096);
    CHECK(simgpu_memory_take(gpu, client, 4096));
}

static void a_limit_of_a_client_holds(void) {
    uint32_t client = new_client(0);
    gpu->clients[client].memory_limit_bytes = 1000;
    CHECK(simgpu_memory_take(gpu, client, 1000));
    CHECK(!simgpu_memory_take(gpu, client, 1));
    CHECK(simgpu_memory_take(gpu, new_client(1), 5000));
}

static void a_dead_process_gives_back_its_memory(void) {
    uint64_t all = simgpu_memory_free(gpu);
    uint32_t client = new_client(0);
    CHECK(simgpu_memory_take(gpu, client, 1 << 20));
    CHECK(simgpu_context_create(gpu, client, 1, 300 << 20) >= 0);
    simgpu_client_bury(gpu, client);
    CHECK(simgpu_memory_free(gpu) == all);
}

/* --- faults --- */

struct pair {
    uint32_t culprit, other; /* clients */
    uint32_t culprit_stream, other_stream;
};

static struct pair two_clients(uint32_t mps) {
    struct pair pair = {.culprit = 0, .other = 1};
    pair.culprit_stream =
        new_stream(new_context(mps == SIMGPU_NONE ? new_client(0) : mps_client(0, mps), 1), 0, 0);
    pair.other_stream =
        new_stream(new_context(mps == SIMGPU_NONE ? new_client(1) : mps_client(1, mps), 1), 0, 0);
    return pair;
}

static void a_death_with_work_in_flight_hits_every_client_of_the_server(void) {
    uint32_t mps = new_server();
    struct pair pair = two_clients(mps);
    put(pair.culprit_stream, kernel(10 * MS, 0.1, 0));
    put(pair.other_stream, kernel(10 * MS, 0.1, 0));
    at(1 * MS);
    simgpu_client_bury(gpu, pair.culprit);
    CHECK(gpu->clients[pair.other].error == SIMGPU_ERROR_MPS_CLIENT_TERMINATED);
    CHECK(gpu->clients[pair.other].unfinished == 0);
    CHECK(gpu->mps[mps].state == SIMGPU_MPS_FAULTED);
    simgpu_client_bury(gpu, pair.other);
    CHECK(gpu->mps[mps].state == SIMGPU_MPS_READY);
}

static void a_death_with_nothing_in_flight_hurts_nobody(void) {
    uint32_t mps = new_server();
    struct pair pair = two_clients(mps);
    put(pair.culprit_stream, kernel(1 * MS, 0.1, 0));
    uint32_t event = put_timed(pair.other_stream, kernel(10 * MS, 0.1, 0));
    at(2 * MS);
    simgpu_client_bury(gpu, pair.culprit);
    CHECK(gpu->clients[pair.other].error == 0);
    CHECK(gpu->mps[mps].state == SIMGPU_MPS_READY);
    at(20 * MS);
    CHECK_TIME(time_of(event), 10 * MS);
}

static void a_death_without_mps_hurts_nobody(void) {
    struct pair pair = two_clients(SIMGPU_NONE);
    put(pair.culprit_stream, kernel(10 * MS, 1, 0));
    uint32_t event = put_timed(pair.other_stream, kernel(1 * MS, 1, 0));
    at(1 * MS);
    simgpu_client_bury(gpu, pair.culprit);
    at(20 * MS);
    CHECK(gpu->clients[pair.other].error == 0);
    CHECK_TIME(time_of(event), 2 * MS);
}

static void a_terminated_client_hurts_nobody_else(void) {
    uint32_t mps = new_server();
    struct pair pair = two_clients(mps);
    put(pair.culprit_stream, kernel(10 * MS, 1, 0));
    uint32_t event = put_timed(pair.other_stream, kernel(1 * MS, 1, 0));
    at(1 * MS);
    CHECK(simgpu_mps_terminate_client(gpu, mps, 100) == 0);
    CHECK(simgpu_mps_terminate_client(gpu, mps, 999) == -ESRCH);
    simgpu_client_bury(gpu, pair.culprit);
    at(20 * MS);
    CHECK(gpu->clients[pair.other].error == 0);
    CHECK_TIME(time_of(event), 1500 * US);
    CHECK(gpu->mps[mps].state == SIMGPU_MPS_READY);
}

static void a_kernel_that_faults_fails_its_process_alone_without_mps(void) {
    struct pair pair = two_clients(SIMGPU_NONE);
    struct simgpu_work work = kernel(1 * MS, 1, 0);
    work.xid = 31;
    put(pair.culprit_stream, work);
    uint32_t event = put_timed(pair.other_stream, kernel(1 * MS, 1, 0));
    at(20 * MS);
    CHECK(gpu->clients[pair.culprit].error == SIMGPU_ERROR_ILLEGAL_ADDRESS);
    CHECK(gpu->clients[pair.other].error == 0);
    CHECK_TIME(time_of(event), 2 * MS);
    CHECK(gpu->xid_count == 1 && gpu->xids[0].xid == 31 && gpu->xids[0].pid == 100);
    CHECK_TIME(gpu->xids[0].time_ns, 1 * MS);
}

static void a_kernel_that_faults_takes_all_mps_clients_along(void) {
    uint32_t mps = new_server();
    struct pair pair = two_clients(mps);
    struct simgpu_work work = kernel(1 * MS, 0.5, 0);
    work.xid = 13;
    put(pair.culprit_stream, work);
    uint32_t event = put_timed(pair.other_stream, kernel(5 * MS, 0.5, 0));
    at(20 * MS);
    CHECK(gpu->clients[pair.culprit].error == SIMGPU_ERROR_LAUNCH_FAILED);
    CHECK(gpu->clients[pair.other].error == SIMGPU_ERROR_LAUNCH_FAILED);
    CHECK_TIME(time_of(event), 1 * MS); /* cancelled then */
    CHECK(gpu->mps[mps].state == SIMGPU_MPS_FAULTED);
}

static void a_contained_error_hits_its_process_alone(void) {
    struct pair pair = two_clients(new_server());
    simgpu_inject_xid(gpu, 94, 100);
    CHECK(gpu->clients[pair.culprit].error == SIMGPU_ERROR_CONTAINED);
    CHECK(gpu->clients[pair.other].error == 0);
}

static void a_lost_gpu_fails_everybody(void) {
    struct pair pair = two_clients(SIMGPU_NONE);
    put(pair.other_stream, kernel(5 * MS, 1, 0));
    simgpu_inject_xid(gpu, 79, 0);
    CHECK(gpu->lost);
    CHECK(gpu->clients[pair.culprit].error == SIMGPU_ERROR_DEVICE_UNAVAILABLE);
    CHECK(gpu->clients[pair.other].error == SIMGPU_ERROR_DEVICE_UNAVAILABLE);
    CHECK(gpu->lane_count == 0);
    simgpu_restore(gpu);
    CHECK(!gpu->lost && gpu->clients[pair.other].error != 0);
}

static void a_stopped_server_fails_its_clients(void) {
    uint32_t mps = new_server();
    struct pair pair = two_clients(mps);
    simgpu_mps_server_stopped(gpu, mps);
    CHECK(gpu->clients[pair.other].error == SIMGPU_ERROR_MPS_RPC_FAILURE);
    CHECK(gpu->mps[mps].state == SIMGPU_MPS_IDLE && gpu->mps[mps].server_pid == 0);
    simgpu_mps_server_started(gpu, mps, 4343, 0);
    uint32_t fresh = mps_client(2, mps);
    simgpu_mps_fault(gpu, mps, SIMGPU_ERROR_LAUNCH_FAILED);
    CHECK(gpu->clients[fresh].error == SIMGPU_ERROR_LAUNCH_FAILED);
    simgpu_client_bury(gpu, fresh); /* the old server's clients do not count */
    CHECK(gpu->mps[mps].state == SIMGPU_MPS_READY);
}

static void effects_are_collected_in_the_order_of_their_ends(void) {
    uint32_t context = new_context(new_client(0), 1);
    struct simgpu_work slow = kernel(100 * US, 0.1, 0);
    struct simgpu_work fast = kernel(10 * US, 0.1, 0);
    slow.effect = fast.effect = 1;
    slow.token = 7;
    fast.token = 8;
    put(new_stream(context, 0, 0), slow);
    put(new_stream(context, 0, 0), fast);
    uint64_t token;
    CHECK(!simgpu_collect(gpu, 0, &token));
    at(50 * US);
    CHECK(simgpu_collect(gpu, 0, &token) && token == 8);
    CHECK(!simgpu_collect(gpu, 0, &token));
    at(1 * MS);
    CHECK(simgpu_collect(gpu, 0, &token) && token == 7);
}

/* --- repair --- */

static void repairing_a_sound_device_changes_no_schedule(void) {
    uint64_t ended_ns[2][12];
    for (int pass = 0; pass < 2; pass++) {
        new_device("A100");
        srandom(3);
        uint32_t streams[12];
        uint32_t count = busy_world(streams);
        uint32_t events[12];
        for (int i = 0; i < 100; i++) {
            put_something(streams, count);
            at(gpu->now_ns - start_ns + random_below(4) * 50 * US);
            if (pass)
                simgpu_recover(gpu);
        }
        for (uint32_t i = 0; i < count; i++)
            events[i] = put_timed(streams[i], kernel(50 * US, 0.5, 0.5));
        at(500 * MS);
        for (uint32_t i = 0; i < count; i++)
            ended_ns[pass][i] = time_of(events[i]);
    }
    for (int i = 0; i < 12; i++)
        CHECK(ended_ns[0][i] && ended_ns[0][i] == ended_ns[1][i]);
}

static void an_operation_half_entered_is_dropped(void) {
    uint32_t stream = lone_stream(0);
    uint32_t op = put(stream, kernel(100 * US, 1, 0));
    put(stream, kernel(100 * US, 1, 0));
    gpu->ops[gpu->streams[stream].last].state = SIMGPU_OP_FREE; /* as before it was published */
    simgpu_recover(gpu);
    CHECK(gpu->streams[stream].enqueued == 1 && gpu->streams[stream].last == op);
    at(1 * MS);
    CHECK(gpu->log_count == 1 && gpu->lane_count == 0);
}

static void an_operation_half_ended_is_ended_once(void) {
    uint32_t stream = lone_stream(0);
    uint32_t op = put(stream, kernel(100 * US, 1, 0));
    at(50 * US);
    struct simgpu_op half = gpu->ops[op];
    at(200 * US);
    gpu->ops[op] = half; /* as when its end was published and its slot not yet free */
    gpu->log_count = 0;  /* ... nor its entry counted */
    simgpu_recover(gpu);
    CHECK(gpu->ops[op].state == SIMGPU_OP_FREE);
    CHECK(gpu->log_count == 1);
    at(1 * MS);
    CHECK(gpu->log_count == 1);
}

static void a_fault_half_spread_is_completed(void) {
    uint32_t mps = new_server();
    struct pair pair = two_clients(mps);
    put(pair.other_stream, kernel(10 * MS, 1, 0));
    gpu->mps[mps].fault_error = SIMGPU_ERROR_LAUNCH_FAILED;
    gpu->mps[mps].state = SIMGPU_MPS_FAULTED;
    simgpu_recover(gpu);
    CHECK(gpu->clients[pair.other].error == SIMGPU_ERROR_LAUNCH_FAILED);
    CHECK(gpu->lane_count == 0);
}

/* --- */

struct test {
    const char *name;
    void (*run)(void);
};
#define TEST(name) {#name, name}

static const struct test tests[] = {
    TEST(a_kernel_alone_takes_its_work),
    TEST(a_stream_runs_one_after_another),
    TEST(a_gap_between_launches_is_kept),
    TEST(a_slower_clock_slows_kernels_and_not_copies),
    TEST(full_kernels_share_the_device_equally),
    TEST(shares_that_fit_do_not_slow),
    TEST(too_much_demand_of_sms_slows_all_alike),
    TEST(a_newcomer_slows_what_runs),
    TEST(bandwidth_is_shared_max_min_fairly),
    TEST(a_kernel_slowed_by_sms_asks_for_less_bandwidth),
    TEST(each_step_of_priority_doubles_the_weight),
    TEST(weight_gives_nobody_more_than_it_asks_for),
    TEST(copies_share_the_link_of_their_direction),
    TEST(a_copy_runs_beside_a_kernel),
    TEST(no_more_kernels_run_than_the_hardware_takes),
    TEST(a_context_has_no_more_than_its_share),
    TEST(a_kernel_within_the_share_is_not_slowed),
    TEST(kernels_of_a_context_divide_its_share),
    TEST(shares_keep_mps_clients_apart),
    TEST(a_client_below_normal_priority_has_half_the_weight),
    TEST(processes_without_mps_take_turns),
    TEST(a_newcomer_waits_for_the_end_of_the_slice),
    TEST(an_idle_process_gives_up_its_slice),
    TEST(three_processes_go_round),
    TEST(copies_need_no_turn),
    TEST(mps_clients_run_together),
    TEST(a_process_without_mps_takes_turns_with_all_clients),
    TEST(a_stream_waits_for_an_event_of_another),
    TEST(the_default_stream_waits_for_blocking_streams_and_they_for_it),
    TEST(the_default_stream_and_non_blocking_streams_ignore_each_other),
    TEST(default_streams_of_two_contexts_ignore_each_other),
    TEST(a_host_function_holds_its_stream_until_it_returns),
    TEST(a_spinning_kernel_keeps_its_sms),
    TEST(a_context_queues_no_more_than_its_depth),
    TEST(a_destroyed_stream_ends_its_work_first),
    TEST(predictions_come_true_when_nothing_new_comes),
    TEST(a_long_queue_is_predicted_at_once),
    TEST(a_prediction_changes_nothing),
    TEST(the_order_of_looks_does_not_change_the_schedule),
    TEST(meters_add_up_what_ran),
    TEST(a_client_is_not_busy_outside_its_slice),
    TEST(history_knows_the_past),
    TEST(copied_bytes_are_counted),
    TEST(the_log_tells_what_ran_when),
    TEST(memory_ends),
    TEST(a_limit_of_a_client_holds),
    TEST(a_dead_process_gives_back_its_memory),
    TEST(a_death_with_work_in_flight_hits_every_client_of_the_server),
    TEST(a_death_with_nothing_in_flight_hurts_nobody),
    TEST(a_death_without_mps_hurts_nobody),
    TEST(a_terminated_client_hurts_nobody_else),
    TEST(a_kernel_that_faults_fails_its_process_alone_without_mps),
    TEST(a_kernel_that_faults_takes_all_mps_clients_along),
    TEST(a_contained_error_hits_its_process_alone),
    TEST(a_lost_gpu_fails_everybody),
    TEST(a_stopped_server_fails_its_clients),
    TEST(effects_are_collected_in_the_order_of_their_ends),
    TEST(repairing_a_sound_device_changes_no_schedule),
    TEST(an_operation_half_entered_is_dropped),
    TEST(an_operation_half_ended_is_ended_once),
    TEST(a_fault_half_spread_is_completed),
};

int main(int argc, char **argv) {
    for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        if (argc < 2) {
            puts(tests[i].name);
        } else if (strcmp(argv[1], tests[i].name) == 0) {
            new_device("T4");
            tests[i].run();
            return 0;
        }
    }
    return argc < 2 ? 0 : 2;
}
