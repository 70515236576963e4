/* The beacon page: what a reader takes from it, and slots among processes that come and go.
 *
 *   pages_beacon rule             when the online side keeps others off
 *   pages_beacon claim DIR        slots are claimed, found again, and taken over from the dead
 *   pages_beacon truncated DIR    the page is cut, mended and replaced under reader and writer
 */
#include "pages_testing.h"

enum { HOLDOFF_US = 500 };
#define US INT64_C(1000)
#define MS INT64_C(1000000)

static void make_beacon_page(const char *dir, size_t bytes) {
    static const struct mux_beacon_page empty;
    make_page(dir, "beacon", MUX_PAGE_BEACON, &empty, sizeof empty, bytes);
}

/* ---- the rule ----------------------------------------------------------------------------------
 */

static void keeps_off_while_active_and_for_the_holdoff(void) {
    struct mux_beacon_seen seen = {.launches = 0};
    struct mux_beacon_slot slot = {.owner = 1};
    int64_t at = 1000 * MS;
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, at) == 0, "who never launched is idle");
    slot.launches = 3;
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, at) == INT64_MAX, "a launch is active");
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, at + 19 * MS) == INT64_MAX,
           "and stays so while nothing says that it is complete");
    slot.complete = 3;
    at += 19 * MS;
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, at) == HOLDOFF_US * US, "then others wait");
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, at + 200 * US) == 300 * US, "no longer");
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, at + HOLDOFF_US * US) == 0, "than the rest");
}

static void a_launch_and_its_end_between_two_looks_are_seen(void) {
    struct mux_beacon_seen seen = {.launches = 7, .complete = 7, .changed_ns = 0};
    struct mux_beacon_slot slot = {.owner = 1, .launches = 8, .complete = 8};
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, 50 * MS) == HOLDOFF_US * US,
           "what began and ended since the last look counts as just ended");
}

static void who_stands_still_keeps_nobody_off(void) {
    struct mux_beacon_seen seen = {.launches = 0};
    struct mux_beacon_slot slot = {.owner = 1, .launches = 5};
    int64_t patience_ns = MUX_BEACON_PATIENCE_US * US;
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, MS) == INT64_MAX, "a launch is active");
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, MS + patience_ns) == 0, "within bounds");
    slot.launches++;
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, MS + patience_ns) == INT64_MAX, "again");
    slot.owner = 0;
    expect(mux_beacon_see(&seen, &slot, HOLDOFF_US, MS + patience_ns) == 0, "nobody is nobody");
}

/* ---- slots -------------------------------------------------------------------------------------
 */

static struct mux_beacon_reader opened(const char *dir, int64_t now_ns) {
    struct mux_beacon_reader reader;
    mux_beacon_open(&reader, dir, now_ns);
    return reader;
}

static void a_slot_is_found_again_and_taken_over_from_the_dead(const char *dir) {
    static struct mux_beacon own, again;
    make_beacon_page(dir, sizeof(struct mux_beacon_page));
    expect(mux_beacon_claim(&own, dir) == 0, "a slot can be claimed");
    own.slot->launches = 4;
    expect(mux_beacon_claim(&own, dir) == 0 && own.slot->launches == 4, "it stays ours");

    pid_t child = fork_child();
    if (child == 0) {
        struct mux_beacon mine = {.owner = 0};
        expect(mux_beacon_claim(&mine, dir) == 0, "a child claims a slot of its own");
        _exit(mine.slot == (void *)(mine.address + ((uint8_t *)own.slot - own.address)));
    }
    expect_success(child, "that is not its parent's");
    expect(own.slot->launches == 4, "which keeps what it counted");
    for (int i = 0; i < 2 * MUX_BEACON_SLOTS; i++) {
        child = fork_child();
        if (child == 0) {
            struct mux_beacon mine = {.owner = 0};
            _exit(mux_beacon_claim(&mine, dir) != 0);
        }
        expect_success(child, "slots of the dead can be had again");
    }
    struct mux_beacon_reader reader = opened(dir, 0);
    expect(reader.slots == 2, "so that a reader has few to look at");
    mux_beacon_close(&reader);

    expect(mux_beacon_claim(&again, dir) == 0 && again.owner == own.owner, "a program that");
    expect(again.slot->launches == 0 && own.slot->launches == 0, "calls exec begins anew");
}

static void slots_run_out(const char *dir) {
    make_beacon_page(dir, sizeof(struct mux_beacon_page));
    struct mux_beacon_page *page = map_page(dir, "beacon", sizeof *page);
    for (unsigned i = 0; i < MUX_BEACON_SLOTS; i++)
        page->slots[i].owner = mux_owner_of(getppid());
    static struct mux_beacon beacon;
    expect(mux_beacon_claim(&beacon, dir) == ENOSPC, "slots of the living are not taken");
    page->slots[40].owner = 0;
    expect(mux_beacon_claim(&beacon, dir) == 0, "one that is free is");
    expect(page->slots[40].owner == beacon.owner, "and has our name then");
}

/* ---- truncated, missing, wrong -----------------------------------------------------------------
 */

static void cut(const char *dir, off_t bytes) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/beacon", dir);
    expect(truncate(path, bytes) == 0, "a page can be cut");
}

static void what_is_no_page_is_no_online_process(const char *dir) {
    static struct mux_beacon beacon;
    expect(mux_beacon_claim(&beacon, dir) == ENOENT, "there is no page");
    make_beacon_page(dir, 100);
    expect(mux_beacon_claim(&beacon, dir) == ENODATA, "a short page is none");
    uint8_t zeros[sizeof(struct mux_beacon_page)] = {0};
    make_page(dir, "beacon", MUX_PAGE_JOB, zeros, sizeof zeros, sizeof zeros);
    expect(mux_beacon_claim(&beacon, dir) == EBADMSG, "nor is one of another kind");
    struct mux_beacon_reader reader = opened(dir, 0);
    expect(reader.page.error == EBADMSG, "a reader says so, too");
    expect(mux_beacon_wait_ns(&reader, HOLDOFF_US, 0) == 0, "and waits for nobody");
    mux_beacon_close(&reader);
    expect(mux_beacon_claim(&beacon, NULL) == ENOENT, "no directory, no page");
}

static void a_page_that_is_cut_ends_neither_reader_nor_writer(const char *dir) {
    static struct mux_beacon beacon;
    int64_t now_ns = 1000 * MS;
    make_beacon_page(dir, sizeof(struct mux_beacon_page));
    expect(mux_beacon_claim(&beacon, dir) == 0, "a slot can be claimed");
    struct mux_beacon_reader reader = opened(dir, now_ns);
    beacon.slot->launches = 1;
    expect(mux_beacon_wait_ns(&reader, 0, now_ns) == 0, "no hold-off, no beacon");
    expect(mux_beacon_wait_ns(&reader, HOLDOFF_US, now_ns) == INT64_MAX, "a launch is seen");
    cut(dir, 0);
    expect(mux_beacon_wait_ns(&reader, HOLDOFF_US, now_ns) == 0, "what is cut keeps nobody off");
    mux_beacon_refresh(&reader, now_ns);
    expect(reader.page.error == ENODATA, "and is found out");
    expect(mux_beacon_claim(&beacon, dir) == ENODATA, "by its writer, too");
    beacon.slot->launches++; /* as another thread may do */

    make_beacon_page(dir, sizeof(struct mux_beacon_page));
    expect(mux_beacon_claim(&beacon, dir) == 0, "a page that comes is used");
    mux_beacon_refresh(&reader, now_ns);
    beacon.slot->launches++;
    expect(mux_beacon_wait_ns(&reader, HOLDOFF_US, now_ns) == INT64_MAX, "by both");
    make_beacon_page(dir, sizeof(struct mux_beacon_page));
    expect(mux_beacon_claim(&beacon, dir) == 0 && beacon.slot->launches == 0, "the one at the");
    mux_beacon_refresh(&reader, now_ns + MS);
    expect(mux_beacon_wait_ns(&reader, HOLDOFF_US, now_ns + 50 * MS) <= HOLDOFF_US * US, "path");
}

int main(int count, char **arguments) {
    const char *what = count > 1 ? arguments[1] : "";
    if (strcmp(what, "rule") == 0) {
        keeps_off_while_active_and_for_the_holdoff();
        a_launch_and_its_end_between_two_looks_are_seen();
        who_stands_still_keeps_nobody_off();
    } else if (strcmp(what, "claim") == 0) {
        a_slot_is_found_again_and_taken_over_from_the_dead(arguments[2]);
        slots_run_out(arguments[2]);
    } else if (strcmp(what, "truncated") == 0) {
        what_is_no_page_is_no_online_process(arguments[2]);
        a_page_that_is_cut_ends_neither_reader_nor_writer(arguments[2]);
    } else {
        expect(false, "there is a test of this name");
    }
    return 0;
}
