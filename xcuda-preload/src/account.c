#include "account.h"

#include <pthread.h>

#include "budget.h"
#include "job.h"

struct account account;
static struct budget budget;
static struct budget_shares shares;
static _Atomic bool unlimited; /* of late */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void account_lock(void) {
    pthread_mutex_lock(&lock);
}

void account_unlock(void) {
    pthread_mutex_unlock(&lock);
}

/* What may be left of a long launch when the next one goes: the device shall not run dry while
 * somebody notices that it is complete. */
enum { REST_PER_WINDOW = 4 };

bool account_reserve(int64_t wanted_ns, int64_t window_ns, int64_t progress_ns) {
    int64_t left_ns = atomic_fetch_add(&account.window_used_ns, wanted_ns) - progress_ns;
    if (left_ns <= window_ns / REST_PER_WINDOW || left_ns + wanted_ns <= window_ns)
        return true;
    account_unreserve(wanted_ns);
    return false;
}

bool account_reserve_beside(int64_t wanted_ns, int64_t beside_ns, int64_t progress_ns) {
    int64_t used_ns = atomic_load(&account.window_used_ns);
    do {
        int64_t left_ns = used_ns - progress_ns;
        if (left_ns > 0 && left_ns >= beside_ns)
            return false;
    } while (!atomic_compare_exchange_weak(&account.window_used_ns, &used_ns, used_ns + wanted_ns));
    return true;
}

void account_unreserve(int64_t reserved_ns) {
    atomic_fetch_sub(&account.window_used_ns, reserved_ns);
}

void account_launched(uint32_t launches, int64_t cost_ns) {
    int32_t change = (int32_t)launches; /* a launch that was refused is taken out again */
    atomic_fetch_add_explicit(&account.launches, (uint64_t)(int64_t)change, memory_order_relaxed);
    atomic_fetch_add_explicit(&account.in_flight, launches, memory_order_relaxed);
    atomic_fetch_add_explicit(&account.in_flight_ns, cost_ns, memory_order_relaxed);
}

void account_landed(uint32_t launches, int64_t cost_ns) {
    atomic_fetch_sub_explicit(&account.in_flight, launches, memory_order_relaxed);
    atomic_fetch_sub_explicit(&account.in_flight_ns, cost_ns, memory_order_relaxed);
    account_unreserve(cost_ns);
}

void account_expect(int64_t due_ns) {
    int64_t before_ns = atomic_load(&account.due_ns);
    while (before_ns < due_ns && !atomic_compare_exchange_weak(&account.due_ns, &before_ns, due_ns))
        continue;
}

bool account_overdue(int64_t now_ns) {
    return atomic_load(&account.window_used_ns) > 0 &&
           now_ns - atomic_load(&account.due_ns) >= ACCOUNT_PATIENCE_NS;
}

bool account_out_of_turn(int64_t now_ns, int64_t since_ns) {
    int64_t last_ns = atomic_load(&account.progress_ns);
    if (now_ns - last_ns < ACCOUNT_PATIENCE_NS || now_ns - since_ns < ACCOUNT_PATIENCE_NS)
        return false;
    if (!atomic_compare_exchange_strong(&account.progress_ns, &last_ns, now_ns))
        return false;
    atomic_store(&account.out_of_turn_ns, now_ns);
    return true;
}

/* Old sums fade, so that the quotient is that of the last dozens of groups. */
enum { FADING = 16 };

void account_busy(int64_t start_ns, int64_t end_ns) {
    int64_t new_ns = timeline_add(&account.timeline, start_ns, end_ns);
    account.busy_ns += (uint64_t)new_ns;
    account.each_ns += end_ns - start_ns - account.each_ns / FADING;
    account.together_ns += new_ns - account.together_ns / FADING;
}

bool account_measures(int64_t now_ns) {
    account_lock();
    bool known = inflation_permille(&account.inflation, now_ns) > 0;
    account_unlock();
    return known;
}

enum { WIDEST = 16 };

/* Whole lanes, or nearly: that of one lane is measured as a little more than what it is busy, and
 * does not make its window wider. */
int64_t account_widen(int64_t window_ns) {
    account_lock();
    int64_t each_ns = account.each_ns, together_ns = account.together_ns;
    account_unlock();
    if (together_ns <= 0)
        return window_ns;
    int64_t lanes = (each_ns + together_ns / 4) / together_ns;
    return window_ns * (lanes < 1 ? 1 : lanes > WIDEST ? WIDEST : lanes);
}

static int64_t wait_ns_after(const struct job_others *others, int64_t now_ns, uint32_t permille) {
    account_lock();
    if (atomic_exchange(&unlimited, false)) /* nothing was kept account of: it starts anew */
        budget = (struct budget){.at_ns = 0};
    int64_t own_ns = (int64_t)account.busy_ns + account.charged_ns;
    budget_bring(&budget, now_ns, own_ns + others->spent_ns, permille);
    budget_share(&shares, now_ns, own_ns, others->spent_ns);
    int64_t credit_ns = budget_courtesy_ns(&shares, others->wanting);
    int64_t wait_ns = budget_wait_ns(&budget, permille, credit_ns);
    account_unlock();
    return wait_ns;
}

/* What others spend is looked at now and then, and once more before anything is launched: processes
 * that wait for the same budget would otherwise all go at once. */
int64_t account_budget_wait_ns(int64_t now_ns, uint32_t permille) {
    if (permille >= 1000) {
        atomic_store_explicit(&unlimited, true, memory_order_relaxed);
        return 0;
    }
    struct job_others others = {.wanting = 0};
    job_look_at_others(&others, now_ns, JOB_LOOK_NS);
    int64_t wait_ns = wait_ns_after(&others, now_ns, permille);
    if (wait_ns > 0)
        return wait_ns;
    job_look_at_others(&others, now_ns, 0);
    return wait_ns_after(&others, now_ns, permille);
}

void account_charge(int64_t charge_ns) {
    account_lock();
    account.charged_ns += charge_ns;
    account_unlock();
    job_publish();
}

void account_forget_all(void) {
    pthread_mutex_init(&lock, NULL);
    account = (struct account){.busy_ns = 0};
    budget = (struct budget){.at_ns = 0};
    shares = (struct budget_shares){.at_ns = 0};
}
