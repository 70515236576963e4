/* Pages for the services in Python: what of them has to be atomic, and the same view of a device
 * that a job has. Loaded by muxflow_device.pages through ctypes; not part of libxcuda.so's work. */
#ifndef MUXFLOW_PAGES_PYTHON_H
#define MUXFLOW_PAGES_PYTHON_H

#include "pages.h"

/* ---- writing: one thread of one process per page ----------------------------------------------
 */

void mux_store32(uint32_t *word, uint32_t value);
void mux_store64(uint64_t *word, uint64_t value);
void mux_store64s(int64_t *word, int64_t value);

/* The monitor is alive. To be called by the sampling thread itself. */
void mux_beat(struct mux_device_page *page);

/* Replaces the readings. Who is killed in the middle leaves an odd sequence number, which readers
 * take for readings they cannot have, until the next one writes. */
void mux_readings_write(struct mux_device_page *page, const struct mux_device_readings *readings);

/* ---- reading ------------------------------------------------------------------------------------
 */

/* A device page as one reader knows it, with what it has seen of the heartbeat. */
struct mux_reader {
    struct mux_mapping device;
    struct mux_pulse pulse;
};

/* All of a device page at one moment. */
struct mux_look {
    uint64_t gate; /* as it is on the page; holds only while `fresh` */
    uint64_t heartbeat;
    int32_t error;           /* 0, or why the page is unusable: see mux_mapping_open */
    uint32_t fresh;          /* 1: the monitor is alive */
    uint32_t whole;          /* 1: `readings` could be read */
    uint32_t stale_after_ms; /* on the page */
    char uuid[MUX_UUID_BYTES];
    struct mux_device_readings readings;
};

/* NULL when there is no memory. The page need not be there yet. */
struct mux_reader *mux_reader_new(const char *device_dir);
void mux_reader_look(struct mux_reader *reader, struct mux_look *look);
void mux_reader_free(struct mux_reader *reader);

#endif
