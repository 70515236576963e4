#include "ledger.h"

#include <string.h>
#include <sys/mman.h>

enum { FIRST_CAPACITY = 1024 };

/* Mapped, not allocated: the program's allocator is the program's. */
bool ledger_grow(struct ledger *ledger) {
    struct ledger old = *ledger;
    uint64_t capacity = old.capacity == 0 ? FIRST_CAPACITY : old.capacity * 2;
    void *entries = mmap(NULL, capacity * sizeof *ledger->entries, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (entries == MAP_FAILED)
        return false;
    madvise(entries, capacity * sizeof *ledger->entries, MADV_HUGEPAGE); /* it is hopped about in */
    *ledger = (struct ledger){.entries = entries, .capacity = capacity, .count = old.count};
    for (uint64_t i = 0; i < old.capacity; i++) {
        if (old.entries[i].kind != LEDGER_NOTHING)
            *ledger_seek(ledger, old.entries[i].kind, old.entries[i].key) = old.entries[i];
    }
    ledger_clear(&old);
    return true;
}

/* Entries behind the gap that would no longer be found move up into it. */
void ledger_close_gap(struct ledger *ledger, uint64_t gap) {
    uint64_t mask = ledger->capacity - 1;
    for (uint64_t i = (gap + 1) & mask; ledger->entries[i].kind != LEDGER_NOTHING;
         i = (i + 1) & mask) {
        uint64_t wanted = ledger_home(ledger, ledger->entries[i].kind, ledger->entries[i].key);
        if (((i - wanted) & mask) >= ((i - gap) & mask)) {
            ledger->entries[gap] = ledger->entries[i];
            gap = i;
        }
    }
    ledger->entries[gap] = (struct ledger_entry){.kind = LEDGER_NOTHING};
    ledger->count--;
}

uint64_t ledger_take_context(struct ledger *ledger, CUcontext context) {
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < ledger->capacity;) {
        struct ledger_entry *entry = &ledger->entries[i];
        if (entry->kind == LEDGER_NOTHING || entry->kind > LEDGER_CONTEXT ||
            entry->context != context) {
            i++;
            continue;
        }
        bytes += entry->bytes;
        ledger_close_gap(ledger, i); /* which may put another one here: look again */
    }
    return bytes;
}

uint64_t ledger_take_pooled(struct ledger *ledger, uint64_t none) {
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < ledger->capacity;) {
        struct ledger_entry *entry = &ledger->entries[i];
        if (entry->kind != LEDGER_POOLED && entry->kind != LEDGER_EXEC) {
            i++;
            continue;
        }
        bytes += entry->object == none ? entry->bytes : 0;
        ledger_close_gap(ledger, i);
    }
    return bytes;
}

void ledger_clear(struct ledger *ledger) {
    if (ledger->capacity != 0)
        munmap(ledger->entries, ledger->capacity * sizeof *ledger->entries);
    *ledger = (struct ledger){.entries = NULL};
}
