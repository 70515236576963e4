/* Pages for the services in Python. */
#include "pages_python.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- writing ------------------------------------------------------------------------------------
 */

void mux_store32(uint32_t *word, uint32_t value) {
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

void mux_store64(uint64_t *word, uint64_t value) {
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

void mux_store64s(int64_t *word, int64_t value) {
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

void mux_beat(struct mux_device_page *page) {
    __atomic_fetch_add(&page->heartbeat, 1, __ATOMIC_RELEASE);
}

/* Each word is stored with release and loaded with acquire: who sees one word of the new readings
 * sees the odd number that was stored before, and who sees the even number at the end sees all
 * words. */
void mux_readings_write(struct mux_device_page *page, const struct mux_device_readings *readings) {
    enum { WORDS = sizeof *readings / sizeof(uint64_t) };
    uint64_t copy[WORDS];
    memcpy(copy, readings, sizeof copy);
    uint64_t *words = (void *)&page->readings;
    uint32_t odd = mux_load32(&page->sequence) | 1; /* a killed writer has left it odd already */
    mux_store32(&page->sequence, odd);
    for (int i = 0; i < WORDS; i++)
        mux_store64(&words[i], copy[i]);
    mux_store32(&page->sequence, odd + 1);
}

/* ---- reading ------------------------------------------------------------------------------------
 */

static int64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

struct mux_reader *mux_reader_new(const char *device_dir) {
    struct mux_reader *reader = calloc(1, sizeof *reader);
    if (reader) {
        mux_mapping_open(&reader->device, device_dir, "device", MUX_PAGE_DEVICE);
        mux_pulse_start(&reader->pulse, reader->device.page, monotonic_ns());
    }
    return reader;
}

void mux_reader_look(struct mux_reader *reader, struct mux_look *look) {
    int64_t now_ns = monotonic_ns();
    mux_device_refresh(&reader->device, &reader->pulse, now_ns);
    const struct mux_device_page *page = reader->device.page;
    *look = (struct mux_look){
        .gate = mux_gate_load(&page->gate),
        .heartbeat = mux_load64(&page->heartbeat),
        .error = reader->device.error,
        .fresh = mux_pulse_fresh(&reader->pulse, page, now_ns),
        .stale_after_ms = mux_load32(&page->stale_after_ms),
    };
    look->whole = mux_readings_read(page, &look->readings);
    memcpy(look->uuid, page->header.uuid, sizeof look->uuid - 1);
}

void mux_reader_free(struct mux_reader *reader) {
    if (reader)
        mux_mapping_close(&reader->device);
    free(reader);
}
