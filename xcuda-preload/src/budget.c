#include "budget.h"

void budget_bring(struct budget *budget, int64_t now_ns, int64_t spent_ns, uint32_t permille) {
    if (permille >= 1000 || budget->at_ns == 0) { /* no account is kept; it starts at nothing */
        *budget = (struct budget){.credit_ns = 0, .at_ns = now_ns, .spent_ns = spent_ns};
        return;
    }
    int64_t credit_ns = budget->credit_ns + (now_ns - budget->at_ns) * permille / 1000 -
                        (spent_ns - budget->spent_ns);
    if (credit_ns > BUDGET_MOST_CREDIT_NS)
        credit_ns = BUDGET_MOST_CREDIT_NS;
    if (credit_ns < -BUDGET_MOST_DEBT_NS)
        credit_ns = -BUDGET_MOST_DEBT_NS;
    *budget = (struct budget){.credit_ns = credit_ns, .at_ns = now_ns, .spent_ns = spent_ns};
}

int64_t budget_wait_ns(const struct budget *budget, uint32_t permille, int64_t credit_ns) {
    if (permille >= 1000)
        return 0;
    if (permille == 0)
        return INT64_MAX;
    int64_t missing_ns = credit_ns - budget->credit_ns;
    return missing_ns <= 0 ? 0 : missing_ns * 1000 / permille + 1;
}

/* "Of late" fades with this time. */
#define MEMORY_NS INT64_C(200000000)

static int64_t faded(int64_t sum_ns, int64_t passed_ns) {
    return passed_ns >= MEMORY_NS ? 0 : sum_ns - sum_ns * passed_ns / MEMORY_NS;
}

void budget_share(struct budget_shares *shares, int64_t now_ns, int64_t own_ns, int64_t others_ns) {
    bool first = shares->at_ns == 0;
    int64_t passed_ns = now_ns - shares->at_ns;
    if (!first) {
        shares->own_ns = faded(shares->own_ns, passed_ns) + own_ns - shares->own_sum_ns;
        shares->others_ns = faded(shares->others_ns, passed_ns) + others_ns - shares->others_sum_ns;
    }
    shares->own_sum_ns = own_ns;
    shares->others_sum_ns = others_ns;
    shares->at_ns = now_ns;
}

int64_t budget_courtesy_ns(const struct budget_shares *shares, unsigned others) {
    if (others == 0)
        return 0;
    int64_t part_ns = (shares->own_ns + shares->others_ns) / (others + 1);
    int64_t above_ns = shares->own_ns - part_ns;
    if (above_ns <= 0)
        return 0;
    return above_ns < BUDGET_MOST_CREDIT_NS / 2 ? above_ns : BUDGET_MOST_CREDIT_NS / 2;
}
