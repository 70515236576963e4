/* The budget's account: device time that may be spent, as wall time goes by. */
#ifndef XCUDA_BUDGET_H
#define XCUDA_BUDGET_H

#include <stdbool.h>
#include <stdint.h>

/* An idle job saves up no more than this, so that it does not come back with a long burst: one
 * point over a second. */
#define BUDGET_MOST_CREDIT_NS INT64_C(10000000)

/* A job that overran, by a kernel that nobody knew to be so long, owes no more than this. */
#define BUDGET_MOST_DEBT_NS INT64_C(500000000)

struct budget {
    int64_t credit_ns; /* device time that may be spent now; negative: owed */
    int64_t at_ns;     /* when that was so; 0: never */
    int64_t spent_ns;  /* what all processes had spent by then */
};

/* Brings the account up to `now_ns`, when `spent_ns` in all have been spent. */
void budget_bring(struct budget *budget, int64_t now_ns, int64_t spent_ns, uint32_t permille);

/* Wall time until there is so much credit (not negative) that something may be spent again; 0: now.
 * INT64_MAX: never at this budget. */
int64_t budget_wait_ns(const struct budget *budget, uint32_t permille, int64_t credit_ns);

/* What this process and the others of its job have spent of late. */
struct budget_shares {
    int64_t own_ns, others_ns;         /* fading */
    int64_t own_sum_ns, others_sum_ns; /* when last looked at, which was then: */
    int64_t at_ns;                     /* 0: never */
};

void budget_share(struct budget_shares *shares, int64_t now_ns, int64_t own_ns, int64_t others_ns);

/* The credit that a process must see before it goes on, beside so many others that want to launch:
 * the more, the more it has had above its part. Never so much that credit is lost. */
int64_t budget_courtesy_ns(const struct budget_shares *shares, unsigned others);

#endif
