/* A job's view of its gate: what is missing, wrong or stale is frozen, and nothing crashes.
 *
 *   pages_view bad DIR           pages that are none
 *   pages_view heartbeat DIR     ageing, first looks, other clocks
 *   pages_view replaced DIR      pages exchanged under threads that load from them
 */
#include <pthread.h>

#include "pages_testing.h"

enum { SECOND = 1000000000, STALE_MS = 500 };

static uint64_t open_word(uint32_t epoch) {
    return mux_gate_pack(
        (struct mux_gate){.state = MUX_GATE_OPEN, .budget_permille = 1000, .epoch = epoch});
}

static struct mux_device_page open_page(int64_t read_boottime_ns) {
    return (struct mux_device_page){
        .gate = open_word(1),
        .heartbeat = 41,
        .stale_after_ms = STALE_MS,
        .readings = {.time_boottime_ns = read_boottime_ns},
    };
}

static struct mux_device_page fresh_page(void) {
    return open_page(clock_ns(CLOCK_BOOTTIME));
}

static bool is_open(struct mux_view *view, int64_t now_ns) {
    return mux_gate_unpack(mux_view_device_gate(view, now_ns)).state == MUX_GATE_OPEN;
}

/* ---- pages that are none ------------------------------------------------------------------------
 */

static void expect_frozen(struct mux_view *view, int error, const char *sentence) {
    int64_t now_ns = clock_ns(CLOCK_MONOTONIC);
    mux_view_refresh(view, now_ns);
    expect(view->device.error == error, sentence);
    expect(mux_view_device_gate(view, now_ns) == 0, sentence);
    expect(mux_gate_combine(mux_view_device_gate(view, now_ns), mux_view_job_gate(view)).state ==
               MUX_GATE_FROZEN,
           sentence);
}

static void make_wrong_page(const char *dir, struct mux_page_header header, size_t bytes) {
    uint8_t raw[MUX_DEVICE_PAGE_BYTES] = {0};
    struct mux_device_page page = fresh_page();
    memcpy(raw, &page, sizeof page);
    make_page(dir, "device", MUX_PAGE_DEVICE, raw, sizeof raw, bytes);
    if (header.magic) {
        struct mux_page_header *written = map_page(dir, "device", MUX_DEVICE_PAGE_BYTES);
        *written = header;
        munmap(written, MUX_DEVICE_PAGE_BYTES);
    }
}

static struct mux_page_header header_of(uint16_t kind, uint16_t version, uint32_t bytes) {
    return (struct mux_page_header){
        .magic = MUX_PAGE_MAGIC, .kind = kind, .version = version, .size_bytes = bytes};
}

static void bad(const char *dir) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/device", dir);
    struct mux_view view;
    int64_t now_ns = clock_ns(CLOCK_MONOTONIC);
    mux_view_open(&view, NULL, NULL, now_ns);
    expect(mux_view_device_gate(&view, now_ns) == 0 && mux_view_job_gate(&view) == 0,
           "without directories all is frozen");
    mux_view_close(&view);

    mux_view_open(&view, dir, dir, now_ns);
    expect_frozen(&view, ENOENT, "a page that is not there");
    make_wrong_page(dir, (struct mux_page_header){0}, MUX_DEVICE_PAGE_BYTES - 1);
    expect_frozen(&view, ENODATA, "a page that is too short");
    make_wrong_page(dir, (struct mux_page_header){0}, 3);
    expect_frozen(&view, ENODATA, "a page of three bytes");
    make_wrong_page(dir, header_of(MUX_PAGE_JOB, MUX_PAGE_VERSION, MUX_DEVICE_PAGE_BYTES),
                    MUX_DEVICE_PAGE_BYTES);
    expect_frozen(&view, EBADMSG, "a page of another kind");
    make_wrong_page(dir, header_of(MUX_PAGE_DEVICE, 9, MUX_DEVICE_PAGE_BYTES),
                    MUX_DEVICE_PAGE_BYTES);
    expect_frozen(&view, EPROTONOSUPPORT, "a page of another version");
    make_wrong_page(dir, header_of(MUX_PAGE_DEVICE, MUX_PAGE_VERSION, 8192), MUX_DEVICE_PAGE_BYTES);
    expect_frozen(&view, EPROTONOSUPPORT, "a page of another size");
    unlink(path);
    expect(mkfifo(path, 0600) == 0, "a FIFO can be made");
    expect_frozen(&view, EBADMSG, "a FIFO without a writer, which nobody waits for");
    unlink(path);
    expect(symlink("/dev/zero", path) == 0, "a link can be made");
    expect_frozen(&view, ELOOP, "a link");
    unlink(path);
    expect(mkdir(path, 0700) == 0 && rmdir(path) == 0, "a directory can be made");

    make_device_page(dir, fresh_page());
    now_ns = clock_ns(CLOCK_MONOTONIC);
    mux_view_refresh(&view, now_ns);
    expect(is_open(&view, now_ns), "a sound page that came late is seen");
    expect(truncate(path, 100) == 0, "a page can be truncated");
    expect_frozen(&view, ENODATA, "a page that was truncated under its reader");
    expect(truncate(path, MUX_DEVICE_PAGE_BYTES) == 0, "a page can be made long again");
    expect_frozen(&view, 0, "a page that has lost its gate");
    mux_view_close(&view);
}

/* ---- heartbeat ----------------------------------------------------------------------------------
 */

static void heartbeat(const char *dir) {
    int64_t now = clock_ns(CLOCK_MONOTONIC);
    struct mux_view view;
    make_device_page(dir, fresh_page());
    struct mux_device_page *page = map_page(dir, "device", MUX_DEVICE_PAGE_BYTES);

    mux_view_open(&view, dir, dir, now);
    expect(is_open(&view, now), "what was read a moment ago is fresh at first sight");
    expect(is_open(&view, now + STALE_MS * 1000000L), "a heartbeat may stand still for its time");
    expect(!is_open(&view, now + STALE_MS * 1000000L + 1), "then it is stale");
    expect(mux_gate_load(&page->gate) == open_word(1), "whatever the gate says");
    now += SECOND;
    mux_beat(page); /* the readings are still said to be a moment old: this is a live monitor */
    expect(is_open(&view, now), "a monitor that goes on is believed");
    mux_view_close(&view);

    /* A page that a dead monitor left behind: its readings are old. */
    page->readings.time_boottime_ns = clock_ns(CLOCK_BOOTTIME) - SECOND;
    mux_view_open(&view, dir, dir, now);
    expect(!is_open(&view, now), "a newcomer does not believe a dead monitor");
    now += 10 * (int64_t)SECOND;
    expect(!is_open(&view, now), "not later either");
    mux_beat(page);
    expect(!is_open(&view, now), "a move at some time in a long absence proves nothing");
    now += SECOND / 10;
    mux_beat(page);
    expect(is_open(&view, now), "a move between two looks does");
    mux_view_close(&view);

    /* A monitor whose CLOCK_BOOTTIME is not ours: in another time namespace, or of another boot. */
    int64_t offsets[] = {-86400 * (int64_t)SECOND, 86400 * (int64_t)SECOND, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        page->readings.time_boottime_ns = offsets[i] == INT64_MAX || offsets[i] == INT64_MIN
                                              ? offsets[i]
                                              : clock_ns(CLOCK_BOOTTIME) + offsets[i];
        mux_view_open(&view, dir, dir, now);
        expect(!is_open(&view, now), "a clock without sense is not believed");
        for (int beat = 0; beat < 3; beat++) {
            now += SECOND / 10;
            mux_beat(page);
            expect(is_open(&view, now), "but a heartbeat that moves is");
        }
        now += SECOND;
        expect(!is_open(&view, now), "until it stands still");
        mux_view_close(&view);
    }

    page->stale_after_ms = 0;
    mux_view_open(&view, dir, dir, now);
    expect(!is_open(&view, now + 1), "a page that may not age is stale");
    mux_view_close(&view);
}

/* ---- exchanged pages ----------------------------------------------------------------------------
 */

static _Atomic bool looking = true;

static void *look_on(void *argument) {
    struct mux_view *view = argument;
    while (atomic_load(&looking)) {
        uint64_t word = mux_gate_load(&mux_view_device(view)->gate);
        expect(word == 0 || word == open_word(1) || word == open_word(2),
               "a page is exchanged as a whole");
        is_open(view, clock_ns(CLOCK_MONOTONIC));
    }
    return NULL;
}

static void replaced(const char *dir) {
    struct mux_device_page other = fresh_page();
    other.gate = open_word(2);
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/device", dir);
    struct mux_view view;
    mux_view_open(&view, dir, dir, clock_ns(CLOCK_MONOTONIC));
    pthread_t lookers[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&lookers[i], NULL, look_on, &view);
    for (int round = 0; round < 300; round++) {
        make_device_page(dir, round % 2 ? fresh_page() : other);
        mux_view_refresh(&view, clock_ns(CLOCK_MONOTONIC));
        expect(mux_gate_load(&mux_view_device(&view)->gate) == open_word(round % 2 ? 1 : 2),
               "a page that was replaced is seen");
        if (round % 10 == 0) {
            make_wrong_page(dir, (struct mux_page_header){0}, 10);
            mux_view_refresh(&view, clock_ns(CLOCK_MONOTONIC));
        }
    }
    atomic_store(&looking, false);
    for (int i = 0; i < 2; i++)
        pthread_join(lookers[i], NULL);
    unlink(path);
    mux_view_refresh(&view, clock_ns(CLOCK_MONOTONIC));
    expect(mux_gate_load(&mux_view_device(&view)->gate) == open_word(1),
           "a page that was removed stays mapped");
    mux_view_close(&view);
}

int main(int argc, char **argv) {
    expect(argc == 3, "usage: pages_view bad|heartbeat|replaced DIR");
    if (strcmp(argv[1], "bad") == 0)
        bad(argv[2]);
    else if (strcmp(argv[1], "heartbeat") == 0)
        heartbeat(argv[2]);
    else
        replaced(argv[2]);
    return 0;
}
