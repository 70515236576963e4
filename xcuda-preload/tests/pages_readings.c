/* Readings and gate under a writer that never rests and is killed anywhere: nobody ever sees half
 * of anything, and nobody waits for the dead.
 *
 *   pages_readings threads DIR    one writer, several readers, in one process
 *   pages_readings killed DIR     writers that are killed, readers in other processes
 */
#include <pthread.h>

#include "pages_testing.h"

enum { READERS = 3, LOOKS = 20000, KILLS = 60 };

static struct mux_device_readings readings_number(uint32_t n) {
    struct mux_device_readings readings = {
        .time_boottime_ns = n,
        .since_boottime_ns = ~(int64_t)n,
        .condition = n % 5,
        .epoch = n,
        .sm_activity_permille = (int32_t)(n % 1000),
        .memory_used_bytes = (int64_t)n << 20,
        .offline_memory_bytes = -(int64_t)n,
    };
    memset(readings.cause, 'a' + (int)(n % 26), sizeof readings.cause - 1);
    return readings;
}

static void expect_number(const struct mux_device_readings *readings) {
    struct mux_device_readings whole = readings_number(readings->epoch);
    expect(memcmp(readings, &whole, sizeof whole) == 0, "readings are of one write");
}

/* Each field of the word says the same number: a torn one would not. */
static uint64_t word_number(uint32_t n) {
    return mux_gate_pack((struct mux_gate){
        .state = MUX_GATE_OPEN,
        .budget_permille = n % 1000,
        .window_us = n % 1000,
        .epoch = n % 1000,
    });
}

static void expect_word(uint64_t word) {
    struct mux_gate gate = mux_gate_unpack(word);
    expect(gate.budget_permille == gate.window_us && gate.window_us == gate.epoch,
           "a gate word is of one store");
}

static void write_number(struct mux_device_page *page, uint32_t n) {
    struct mux_device_readings readings = readings_number(n);
    mux_store64(&page->gate, word_number(n));
    mux_readings_write(page, &readings);
    mux_beat(page);
}

/* Returns how many looks found whole readings. */
static int look(const struct mux_device_page *page) {
    struct mux_device_readings readings;
    expect_word(mux_gate_load(&page->gate));
    if (!mux_readings_read(page, &readings))
        return 0;
    expect_number(&readings);
    return 1;
}

/* ---- threads ------------------------------------------------------------------------------------
 */

static _Atomic int reading = READERS;

static void *write_on(void *page) {
    for (uint32_t n = 1; atomic_load(&reading) > 0; n++)
        write_number(page, n);
    return NULL;
}

static void *read_on(void *page) {
    for (int whole = 0; whole < LOOKS; whole += look(page))
        continue;
    atomic_fetch_sub(&reading, 1);
    return NULL;
}

static void threads(struct mux_device_page *page) {
    pthread_t writer, readers[READERS];
    pthread_create(&writer, NULL, write_on, page);
    for (int i = 0; i < READERS; i++)
        pthread_create(&readers[i], NULL, read_on, page);
    for (int i = 0; i < READERS; i++)
        pthread_join(readers[i], NULL);
    pthread_join(writer, NULL);
}

/* ---- killed writers -----------------------------------------------------------------------------
 */

static pid_t start_writer(struct mux_device_page *page, uint32_t n) {
    pid_t child = fork_child();
    if (child == 0)
        for (;; n++)
            write_number(page, n);
    return child;
}

static void wait_for_beats(const struct mux_device_page *page, uint64_t beats) {
    uint64_t before = mux_load64(&page->heartbeat);
    while (mux_load64(&page->heartbeat) - before < beats)
        continue;
}

/* Not even a writer that died in the middle of its readings keeps a reader. */
static bool look_after(const struct mux_device_page *page) {
    bool torn = mux_load32(&page->sequence) & 1;
    struct mux_device_readings readings;
    bool whole = mux_readings_read(page, &readings);
    expect(whole == !torn, "only readings that were being written cannot be had");
    expect_word(mux_gate_load(&page->gate));
    return torn;
}

static void killed(struct mux_device_page *page) {
    int torn = 0, rounds = 0;
    for (; rounds < KILLS || torn == 0; rounds++) {
        expect(rounds < 100 * KILLS, "some writer is hit in the middle of its readings");
        pid_t writer = start_writer(page, (uint32_t)rounds * 1000000 + 1);
        wait_for_beats(page, (uint64_t)rounds % 7 + 1);
        for (int i = 0; i < 20; i++)
            look(page);
        kill_now(writer);
        torn += look_after(page);
    }
    write_number(page, 7);
    expect(look(page) == 1, "the next writer's readings are whole");
}

int main(int argc, char **argv) {
    expect(argc == 3, "usage: pages_readings threads|killed DIR");
    struct mux_device_page first = {.gate = word_number(0), .readings = readings_number(0)};
    make_device_page(argv[2], first);
    struct mux_device_page *page = map_page(argv[2], "device", MUX_DEVICE_PAGE_BYTES);
    if (strcmp(argv[1], "threads") == 0)
        threads(page);
    else
        killed(page);
    return 0;
}
