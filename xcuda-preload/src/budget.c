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

int64_t budget_wait_ns(const struct budget *budget, uint32_t permille) {
    if (permille >= 1000)
        return 0;
    if (permille == 0)
        return INT64_MAX;
    return budget->credit_ns >= 0 ? 0 : -budget->credit_ns * 1000 / permille + 1;
}
