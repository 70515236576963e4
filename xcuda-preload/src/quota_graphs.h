/* Graphs that allocate memory when they run. */
#ifndef XCUDA_QUOTA_GRAPHS_H
#define XCUDA_QUOTA_GRAPHS_H

#include <stdbool.h>

#include "hooks.h"
#include "ledger.h"

/* An allocation may just be captured. */
void quota_graphs_note_capture(void);

/* Around the end of an executable graph: before it the handle is taken out, as the next one may get
 * it; after it the memory is given back, or the entry put back. Returns `result`. */
bool quota_graph_forget(CUgraphExec graph, struct ledger_entry *entry);
CUresult quota_graph_settle_gone(CUresult result, bool known, const struct ledger_entry *entry);

void quota_graphs_forget_all(void);

#endif
