#include "inflation.h"

enum { MOST_PERMILLE = 1000000 };

static int64_t faded(int64_t sum_ns, int64_t passed_ns) {
    if (passed_ns >= INFLATION_MEMORY_NS)
        return 0;
    return (int64_t)((double)sum_ns * (1.0 - (double)passed_ns / INFLATION_MEMORY_NS));
}

void inflation_add(struct inflation *inflation, int64_t measured_ns, int64_t baseline_ns,
                   int64_t now_ns) {
    if (baseline_ns <= 0)
        return;
    int64_t passed_ns = now_ns - inflation->at_ns;
    *inflation = (struct inflation){
        .measured_ns = faded(inflation->measured_ns, passed_ns) + measured_ns,
        .baseline_ns = faded(inflation->baseline_ns, passed_ns) + baseline_ns,
        .at_ns = now_ns,
    };
}

uint32_t inflation_permille(const struct inflation *inflation, int64_t now_ns) {
    if (inflation->baseline_ns == 0 || now_ns - inflation->at_ns >= INFLATION_MEMORY_NS)
        return 0;
    double permille = 1000.0 * (double)inflation->measured_ns / (double)inflation->baseline_ns;
    return permille < MOST_PERMILLE ? (uint32_t)permille : MOST_PERMILLE;
}
