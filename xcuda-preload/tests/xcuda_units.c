/* The parts of the library that only compute: what was covered, what may be spent, what is
 * expected, what is held; and whom pools wait for. Says nothing and ends with 0 if all is right. */
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "budget.h"
#include "driver.h"
#include "estimate.h"
#include "gate.h"
#include "inflation.h"
#include "ledger.h"
#include "libc.h"
#include "quota_pools.h"
#include "timeline.h"
#include "work.h"

#define CHECK(truth)                                                              \
    do {                                                                          \
        if (!(truth)) {                                                           \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #truth); \
            exit(1);                                                              \
        }                                                                         \
    } while (0)

#define MS INT64_C(1000000)

/* ---- timeline ----------------------------------------------------------------------------------
 */

static void overlaps_count_once(void) {
    struct timeline timeline = {.count = 0};
    CHECK(timeline_add(&timeline, 10, 20) == 10);
    CHECK(timeline_add(&timeline, 15, 25) == 5);
    CHECK(timeline_add(&timeline, 12, 18) == 0);
    CHECK(timeline_add(&timeline, 5, 30) == 10);
    CHECK(timeline.count == 1);
}

static void gaps_are_filled_later(void) {
    struct timeline timeline = {.count = 0};
    CHECK(timeline_add(&timeline, 10, 20) == 10);
    CHECK(timeline_add(&timeline, 30, 40) == 10);
    CHECK(timeline_add(&timeline, 18, 35) == 10);
    CHECK(timeline.count == 1 && timeline.spans[0].start_ns == 10 &&
          timeline.spans[0].end_ns == 40);
}

static void what_is_long_ago_is_taken_as_covered(void) {
    struct timeline timeline = {.count = 0};
    for (int64_t i = 0; i <= TIMELINE_SPANS; i++)
        CHECK(timeline_add(&timeline, i * 10 + 1, i * 10 + 2) == 1);
    CHECK(timeline_add(&timeline, 0, 2) == 0);
    CHECK(timeline.count <= TIMELINE_SPANS);
}

static void the_union_is_that_of_a_bitmap(void) {
    enum { LENGTH = 2000 };
    struct timeline timeline = {.count = 0};
    static bool covered[LENGTH];
    int64_t at = 0;
    for (int round = 0; round < 300; round++) { /* roughly in order, as marks come in */
        int64_t start = at + rand() % 30, end = start + rand() % 40, fresh = 0;
        for (int64_t i = start; i < end; i++) {
            fresh += !covered[i];
            covered[i] = true;
        }
        CHECK(timeline_add(&timeline, start, end) == fresh);
        at += rand() % 7;
    }
}

/* ---- budget ------------------------------------------------------------------------------------
 */

static void a_job_that_spends_its_budget_never_waits_for_long(void) {
    struct budget budget = {.at_ns = 0};
    int64_t now_ns = 1, spent_ns = 0;
    budget_bring(&budget, now_ns, spent_ns, 300);
    for (int i = 0; i < 1000; i++) { /* kernels of 3 ms, as soon as each is allowed */
        budget_bring(&budget, now_ns, spent_ns, 300);
        now_ns += budget_wait_ns(&budget, 300, 0) + 3 * MS;
        spent_ns += 3 * MS;
    }
    double share = (double)spent_ns / (double)now_ns;
    CHECK(share > 0.295 && share < 0.305);
}

static void credit_and_debt_are_bounded(void) {
    struct budget budget = {.at_ns = 0};
    budget_bring(&budget, 1, 0, 500);
    budget_bring(&budget, 100000 * MS, 0, 500);
    CHECK(budget.credit_ns == BUDGET_MOST_CREDIT_NS);
    budget_bring(&budget, 100000 * MS, 100000 * MS, 500);
    CHECK(budget.credit_ns == -BUDGET_MOST_DEBT_NS);
    CHECK(budget_wait_ns(&budget, 500, 0) == 2 * BUDGET_MOST_DEBT_NS + 1);
}

static void a_whole_budget_keeps_no_account_and_none_waits_for_ever(void) {
    struct budget budget = {.at_ns = 0};
    budget_bring(&budget, 1, 0, 1000);
    budget_bring(&budget, 2, 1000 * MS, 1000);
    CHECK(budget_wait_ns(&budget, 1000, 0) == 0);
    CHECK(budget_wait_ns(&budget, 0, 0) == INT64_MAX);
}

static void a_process_that_had_more_than_its_part_lets_others_go_first(void) {
    struct budget_shares shares = {.at_ns = 0};
    budget_share(&shares, 1, 0, 0);
    budget_share(&shares, 50 * MS, 9 * MS, 0);
    CHECK(budget_courtesy_ns(&shares, 0) == 0);
    CHECK(budget_courtesy_ns(&shares, 2) == BUDGET_MOST_CREDIT_NS / 2);
    budget_share(&shares, 100 * MS, 9 * MS, 9 * MS);
    CHECK(budget_courtesy_ns(&shares, 1) == 0);
    budget_share(&shares, 1000 * MS, 9 * MS, 9 * MS);
    CHECK(shares.own_ns == 0 && shares.others_ns == 0);
}

/* ---- estimates ---------------------------------------------------------------------------------
 */

static void what_was_never_measured_costs_more_than_any_window(void) {
    struct estimate *estimate = estimate_of(work_kernel((CUfunction)0x1000, 1, 1, 1));
    CHECK(estimate->cost_ns == ESTIMATE_UNKNOWN_NS && estimate_is_young(estimate));
}

static void a_constant_duration_is_learned_at_once_and_exactly(void) {
    struct estimate *estimate = estimate_of(work_kernel((CUfunction)0x2000, 1, 1, 1));
    for (int i = 0; i < 4; i++)
        estimate_learn(estimate, 50000, 1);
    CHECK(estimate->mean_ns == 50000 && estimate->cost_ns == 50000);
    CHECK(!estimate_is_young(estimate));
}

static void an_estimate_is_never_too_old_to_learn(void) {
    struct estimate *estimate = estimate_of(work_kernel((CUfunction)0x2400, 1, 1, 1));
    for (int i = 0; i < 1000; i++)
        estimate_learn(estimate, 50000, 4);
    CHECK(estimate->samples < 1000 && estimate->mean_ns == 50000);
    for (int i = 0; i < 100; i++)
        estimate_learn(estimate, 90000, 1);
    CHECK(estimate->mean_ns > 89000 && !estimate_is_young(estimate));
}

static void a_duration_that_varies_costs_more_than_its_mean(void) {
    struct estimate *estimate = estimate_of(work_kernel((CUfunction)0x3000, 1, 1, 1));
    for (int i = 0; i < 100; i++)
        estimate_learn(estimate, i % 2 ? 5000 : 20 * MS, 1);
    CHECK(estimate->mean_ns > 7 * MS && estimate->mean_ns < 13 * MS);
    CHECK(estimate->cost_ns > 20 * MS);
}

static void another_grid_is_another_estimate(void) {
    CUfunction function = (CUfunction)0x4000;
    estimate_learn(estimate_of(work_kernel(function, 1, 1, 1)), 5000, 1);
    CHECK(estimate_of(work_kernel(function, 2, 1, 1))->cost_ns == ESTIMATE_UNKNOWN_NS);
    CHECK(estimate_of(work_kernel(function, 1, 2, 1))->cost_ns == ESTIMATE_UNKNOWN_NS);
    CHECK(estimate_of(work_kernel(function, 1, 1, 1))->cost_ns == 5000);
}

static void a_full_table_gives_up_old_estimates_and_goes_on(void) {
    for (uintptr_t i = 1; i < 20000; i++) {
        uint64_t work = work_kernel((CUfunction)(0x100000 + i * 64), 1, 1, 1);
        struct estimate *estimate = estimate_of(work);
        CHECK(estimate->work == work && estimate->cost_ns == ESTIMATE_UNKNOWN_NS);
        estimate_learn(estimate, 7000, 1);
        CHECK(estimate_of(work) == estimate);
    }
}

/* Works of two threads that go by pairs, at the same time, into the same two empty places. */
enum { RACES = ESTIMATES / 2 };
static _Atomic uint64_t runners;
static struct estimate *taken[2][RACES];

static uint64_t racing_work(uint64_t race, uint64_t which) {
    return 2 * race << 52 | (which + 1);
}

static void *take_places(void *which) {
    for (uint64_t i = 0; i < RACES; i++) {
        atomic_fetch_add(&runners, 1);
        while (atomic_load(&runners) < 2 * (i + 1))
            sched_yield();
        taken[(uintptr_t)which][i] = estimate_of(racing_work(i, (uintptr_t)which));
    }
    return NULL;
}

static void threads_that_want_the_same_place_do_not_share_it(void) {
    memset(estimates, 0, sizeof estimates);
    pthread_t other;
    CHECK(pthread_create(&other, NULL, take_places, (void *)1) == 0);
    take_places((void *)0);
    pthread_join(other, NULL);
    for (uint64_t i = 0; i < RACES; i++) {
        for (uint64_t which = 0; which < 2; which++)
            CHECK(taken[which][i]->work == racing_work(i, which));
    }
    memset(estimates, 0, sizeof estimates);
}

static void a_handle_that_is_used_again_is_learned_again(void) {
    uint64_t work = work_graph((CUgraphExec)0x5000);
    for (int i = 0; i < 9; i++)
        estimate_learn(estimate_of(work), 9 * MS, 1);
    estimate_forget(work);
    CHECK(estimate_of(work)->cost_ns == ESTIMATE_UNKNOWN_NS);
    estimate_learn(estimate_of(work), 5000, 1);
    CHECK(estimate_of(work)->cost_ns == 5000);
}

static void copies_of_about_the_same_size_are_alike(void) {
    CHECK(work_copy(1000000) == work_copy(1000100));
    CHECK(work_copy(1000000) != work_copy(1300000));
    CHECK(work_copy(4096) != work_set(4096));
    CHECK(work_copy(0) != 0);
}

static void copies_from_and_to_the_host_are_none_of_ours(void) {
    CUDA_MEMCPY2D copy = {.srcMemoryType = 2, .dstMemoryType = 2, .WidthInBytes = 8, .Height = 8};
    CHECK(work_copy2d(&copy) == work_copy(64));
    copy.dstMemoryType = CU_MEMORYTYPE_HOST;
    CHECK(work_copy2d(&copy) == 0 && work_copy2d(NULL) == 0);
}

/* ---- inflation ---------------------------------------------------------------------------------
 */

/* Measures work again and again for some time, ten times in a second. Returns its baseline. */
static int64_t measure(struct estimate *estimate, int64_t *now_ns, int seconds,
                       int64_t duration_ns) {
    int64_t baseline_ns = 0;
    for (int i = 0; i < 10 * seconds; i++) {
        *now_ns += 100 * MS;
        estimate_learn(estimate, duration_ns, 1);
        baseline_ns = estimate_baseline_ns(estimate, *now_ns);
    }
    return baseline_ns;
}

static void a_baseline_is_what_work_takes_undisturbed(void) {
    struct estimate *estimate = estimate_of(work_kernel((CUfunction)0x6000, 1, 1, 1));
    int64_t now_ns = 1;
    CHECK(measure(estimate, &now_ns, 1, 10000) == 10000);
    CHECK(measure(estimate, &now_ns, 1, 30000) < 12000);
    CHECK(measure(estimate, &now_ns, 5, 10000) <= 10100);
    CHECK(measure(estimate, &now_ns, 4, 5000) <= 5100);
}

static void a_baseline_follows_work_that_has_grown(void) {
    struct estimate *estimate = estimate_of(work_kernel((CUfunction)0x7000, 1, 1, 1));
    int64_t now_ns = 1;
    measure(estimate, &now_ns, 1, 10000);
    int64_t half_ns = measure(estimate, &now_ns, 20, 30000);
    CHECK(half_ns > 18000 && half_ns < 21000);
    CHECK(measure(estimate, &now_ns, 60, 30000) > 28000);
}

static void a_baseline_rises_no_slower_where_work_is_measured_often(void) {
    struct estimate *estimate = estimate_of(work_kernel((CUfunction)0x8400, 1, 1, 1));
    int64_t now_ns = 1, baseline_ns = 0;
    CHECK(measure(estimate, &now_ns, 1, 5000) == 5000);
    for (int i = 0; i < 40000; i++) { /* 20 s */
        estimate_learn(estimate, 10000, 1);
        baseline_ns = estimate_baseline_ns(estimate, now_ns += MS / 2);
    }
    CHECK(baseline_ns > 7400 && baseline_ns < 7600);
}

static void a_pause_does_not_raise_a_baseline(void) {
    struct estimate *estimate = estimate_of(work_kernel((CUfunction)0x8000, 1, 1, 1));
    int64_t now_ns = 1;
    measure(estimate, &now_ns, 1, 10000);
    now_ns += 1000000 * MS;
    CHECK(measure(estimate, &now_ns, 1, 30000) < 12000);
}

static void what_takes_now_this_long_now_that_says_nothing(void) {
    struct estimate *estimate = estimate_of(work_kernel((CUfunction)0x9000, 1, 1, 1));
    for (int i = 0; i < 100; i++)
        estimate_learn(estimate, i % 2 ? 5000 : 10 * MS, 1);
    CHECK(estimate_baseline_ns(estimate, 1) == 0);
}

static void inflation_is_that_of_the_last_tenth_of_a_second(void) {
    struct inflation inflation = {.at_ns = 0};
    int64_t now_ns = 1000 * MS;
    CHECK(inflation_permille(&inflation, now_ns) == 0);
    inflation_add(&inflation, 50000, 0, now_ns);
    CHECK(inflation_permille(&inflation, now_ns) == 0);
    for (int i = 0; i < 100; i++)
        inflation_add(&inflation, 500000, 500000, now_ns += MS);
    CHECK(inflation_permille(&inflation, now_ns) == 1000);
    for (int i = 0; i < 100; i++)
        inflation_add(&inflation, 1000000, 500000, now_ns += MS);
    uint32_t permille = inflation_permille(&inflation, now_ns);
    CHECK(permille > 1600 && permille < 1800);
    CHECK(inflation_permille(&inflation, now_ns + 100 * MS) == 0);
}

static void long_work_counts_for_more(void) {
    struct inflation inflation = {.at_ns = 0};
    inflation_add(&inflation, 9 * MS, 9 * MS, 1000 * MS);
    inflation_add(&inflation, 2 * MS, 1 * MS, 1000 * MS);
    CHECK(inflation_permille(&inflation, 1000 * MS) == 1100);
}

/* ---- ledger ------------------------------------------------------------------------------------
 */

static void the_ledger_is_that_of_a_plain_array(void) {
    enum { KEYS = 5000 };
    static uint64_t held[KEYS];
    struct ledger ledger = {.capacity = 0};
    for (int round = 0; round < 200000; round++) {
        uint64_t key = (uint64_t)(rand() % KEYS);
        enum ledger_kind kind = key % 2 ? LEDGER_POINTER : LEDGER_ARRAY;
        if (held[key] == 0) {
            held[key] = (uint64_t)rand() + 1;
            struct ledger_entry entry = {.kind = kind, .key = key << 9, .bytes = held[key]};
            struct ledger_entry replaced;
            CHECK(ledger_add(&ledger, &entry, &replaced) && replaced.kind == LEDGER_NOTHING);
        } else {
            struct ledger_entry taken;
            CHECK(ledger_take(&ledger, kind, key << 9, &taken) && taken.bytes == held[key]);
            CHECK(!ledger_take(&ledger, kind, key << 9, &taken));
            held[key] = 0;
        }
    }
    for (uint64_t key = 0; key < KEYS; key++) {
        enum ledger_kind kind = key % 2 ? LEDGER_POINTER : LEDGER_ARRAY;
        const struct ledger_entry *entry = ledger_find(&ledger, kind, key << 9);
        CHECK(held[key] == 0 ? entry == NULL : entry != NULL && entry->bytes == held[key]);
    }
    ledger_clear(&ledger);
}

static void a_context_takes_its_memory_along(void) {
    struct ledger ledger = {.capacity = 0};
    for (uint64_t key = 1; key <= 3000; key++) {
        struct ledger_entry entry = {.kind = LEDGER_POINTER, .key = key << 21, .bytes = 10};
        struct ledger_entry replaced;
        entry.context = (CUcontext)(uintptr_t)(key % 3 + 1);
        CHECK(ledger_add(&ledger, &entry, &replaced));
    }
    CHECK(ledger_take_context(&ledger, (CUcontext)1) == 10000);
    CHECK(ledger_take_context(&ledger, (CUcontext)1) == 0);
    CHECK(ledger.count == 2000);
    for (uint64_t key = 1; key <= 3000; key++)
        CHECK((ledger_find(&ledger, LEDGER_POINTER, key << 21) == NULL) == (key % 3 == 0));
    ledger_clear(&ledger);
}

static void what_was_under_the_same_address_is_told(void) {
    struct ledger ledger = {.capacity = 0};
    struct ledger_entry entry = {.kind = LEDGER_POINTER, .key = 512, .bytes = 10}, replaced;
    CHECK(ledger_add(&ledger, &entry, &replaced) && replaced.kind == LEDGER_NOTHING);
    entry.bytes = 20;
    CHECK(ledger_add(&ledger, &entry, &replaced) && replaced.bytes == 10 && ledger.count == 1);
    entry.kind = LEDGER_ARRAY;
    CHECK(ledger_add(&ledger, &entry, &replaced) && replaced.kind == LEDGER_NOTHING);
    ledger_clear(&ledger);
}

static void what_lies_in_pools_goes_and_the_rest_stays(void) {
    struct ledger ledger = {.capacity = 0};
    for (uint64_t key = 1; key <= 3000; key++) {
        const enum ledger_kind kinds[] = {LEDGER_POINTER, LEDGER_POOLED, LEDGER_EXEC};
        struct ledger_entry entry = {.kind = kinds[key % 3], .key = key << 9, .bytes = 10};
        struct ledger_entry replaced;
        entry.object = key % 2;
        CHECK(ledger_add(&ledger, &entry, &replaced));
    }
    CHECK(ledger_take_pooled(&ledger, 1) == 10000);
    CHECK(ledger.count == 1000);
    for (uint64_t key = 3; key <= 3000; key += 3)
        CHECK(ledger_find(&ledger, LEDGER_POINTER, key << 9) != NULL);
    ledger_clear(&ledger);
}

/* ---- pools -------------------------------------------------------------------------------------
 */

static sem_t being_asked;
static atomic_bool closed;

static CUresult answer_late(CUmemoryPool pool, int attribute, void *value) {
    (void)pool, (void)attribute;
    sem_post(&being_asked);
    nanosleep(&(struct timespec){0, 5 * MS}, NULL); /* long enough for who does not wait */
    CHECK(!atomic_load(&closed));
    *(uint64_t *)value = 0;
    return CUDA_SUCCESS;
}

static void *look_at(void *pool) {
    pool_look(*(int *)pool);
    return NULL;
}

static CUresult some_mode(int *mode) {
    *mode = 0;
    return CUDA_SUCCESS;
}

static void a_pool_is_closed_once_nobody_asks_about_it(void) {
    CUmemoryPool handle = (CUmemoryPool)1;
    pthread_t thread;
    gate_start();
    driver.exchange_capture_mode = some_mode;
    driver.pool_get = answer_late;
    sem_init(&being_asked, 0, 0);
    int pool = pool_of(handle);
    pthread_create(&thread, NULL, look_at, &pool);
    sem_wait(&being_asked);
    pool_close(pool);
    atomic_store(&closed, true);
    pthread_join(thread, NULL);
    pool_look(pool); /* asks nobody */
    pool_gone(pool);
}

static CUmemoryPool told;
static bool changes;

static CUresult tell_pool(CUmemoryPool *pool, CUdevice device) {
    (void)device;
    *pool = told;
    if (changes)
        pool_current_changed();
    return CUDA_SUCCESS;
}

static CUresult tell_device(CUdevice *device) {
    *device = 0;
    return CUDA_SUCCESS;
}

static void a_current_pool_that_changed_meanwhile_is_asked_for_again(void) {
    driver.ctx_get_device = tell_device;
    driver.device_get_pool = tell_pool;
    told = (CUmemoryPool)2;
    changes = true;
    int first = pool_of_stream(NULL);
    told = (CUmemoryPool)3;
    changes = false;
    int second = pool_of_stream(NULL);
    CHECK(first >= 0 && second >= 0 && second != first);
    told = (CUmemoryPool)4;
    CHECK(pool_of_stream(NULL) == second);
    pool_current_changed();
    CHECK(pool_of_stream(NULL) != second);
}

/* ---- the C library -----------------------------------------------------------------------------
 */

static void functions_of_the_c_library_are_found_in_its_own_table(void) {
    void *library = dlopen("libc.so.6", RTLD_NOW);
    static const char *const names[] = {"dlsym", "dlvsym",    "dlopen", "dlclose",        "qsort",
                                        "puts",  "sigaction", "",       "noSuchFunction", "dlsy"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        CHECK(libc_function(names[i]) == dlsym(library, names[i]));
    CHECK(libc_same("dlsym", "dlsym") && !libc_same("dlsym", "dlsy") && !libc_same("", "d"));
}

int main(void) {
    functions_of_the_c_library_are_found_in_its_own_table();
    overlaps_count_once();
    gaps_are_filled_later();
    what_is_long_ago_is_taken_as_covered();
    the_union_is_that_of_a_bitmap();
    a_job_that_spends_its_budget_never_waits_for_long();
    credit_and_debt_are_bounded();
    a_whole_budget_keeps_no_account_and_none_waits_for_ever();
    a_process_that_had_more_than_its_part_lets_others_go_first();
    what_was_never_measured_costs_more_than_any_window();
    a_constant_duration_is_learned_at_once_and_exactly();
    an_estimate_is_never_too_old_to_learn();
    a_duration_that_varies_costs_more_than_its_mean();
    another_grid_is_another_estimate();
    a_full_table_gives_up_old_estimates_and_goes_on();
    threads_that_want_the_same_place_do_not_share_it();
    a_handle_that_is_used_again_is_learned_again();
    copies_of_about_the_same_size_are_alike();
    copies_from_and_to_the_host_are_none_of_ours();
    a_baseline_is_what_work_takes_undisturbed();
    a_baseline_follows_work_that_has_grown();
    a_baseline_rises_no_slower_where_work_is_measured_often();
    a_pause_does_not_raise_a_baseline();
    what_takes_now_this_long_now_that_says_nothing();
    inflation_is_that_of_the_last_tenth_of_a_second();
    long_work_counts_for_more();
    the_ledger_is_that_of_a_plain_array();
    what_was_under_the_same_address_is_told();
    what_lies_in_pools_goes_and_the_rest_stays();
    a_pool_is_closed_once_nobody_asks_about_it();
    a_current_pool_that_changed_meanwhile_is_asked_for_again();
    a_context_takes_its_memory_along();
    return 0;
}
