#include "ledger.h"

#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

enum { FIRST_CAPACITY = 1024 };

static uint64_t home(const struct ledger *ledger, enum ledger_kind kind, uint64_t key) {
    uint64_t hash = (key ^ (uint64_t)kind << 59) * UINT64_C(0x9e3779b97f4a7c15);
    return (hash ^ hash >> 32) & (ledger->capacity - 1);
}

/* Where the entry is, or the free place where it would go. */
static struct ledger_entry *seek(const struct ledger *ledger, enum ledger_kind kind, uint64_t key) {
    for (uint64_t i = home(ledger, kind, key);; i = (i + 1) & (ledger->capacity - 1)) {
        struct ledger_entry *entry = &ledger->entries[i];
        if (entry->kind == LEDGER_NOTHING || (entry->kind == kind && entry->key == key))
            return entry;
    }
}

struct ledger_entry *ledger_find(const struct ledger *ledger, enum ledger_kind kind, uint64_t key) {
    if (ledger->capacity == 0)
        return NULL;
    struct ledger_entry *entry = seek(ledger, kind, key);
    return entry->kind == LEDGER_NOTHING ? NULL : entry;
}

/* Mapped, not allocated: the program's allocator is the program's. */
static bool grow(struct ledger *ledger) {
    struct ledger old = *ledger;
    uint64_t capacity = old.capacity == 0 ? FIRST_CAPACITY : old.capacity * 2;
    void *entries = mmap(NULL, capacity * sizeof *ledger->entries, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (entries == MAP_FAILED)
        return false;
    *ledger = (struct ledger){.entries = entries, .capacity = capacity, .count = old.count};
    for (uint64_t i = 0; i < old.capacity; i++) {
        if (old.entries[i].kind != LEDGER_NOTHING)
            *seek(ledger, old.entries[i].kind, old.entries[i].key) = old.entries[i];
    }
    ledger_clear(&old);
    return true;
}

bool ledger_add(struct ledger *ledger, const struct ledger_entry *entry) {
    if (ledger->count * 2 >= ledger->capacity && !grow(ledger))
        return false;
    struct ledger_entry *place = seek(ledger, entry->kind, entry->key);
    if (place->kind == LEDGER_NOTHING)
        ledger->count++;
    *place = *entry;
    return true;
}

/* Entries behind the gap that would no longer be found move up into it. */
static void close_gap(struct ledger *ledger, uint64_t gap) {
    uint64_t mask = ledger->capacity - 1;
    for (uint64_t i = (gap + 1) & mask; ledger->entries[i].kind != LEDGER_NOTHING;
         i = (i + 1) & mask) {
        uint64_t wanted = home(ledger, ledger->entries[i].kind, ledger->entries[i].key);
        if (((i - wanted) & mask) >= ((i - gap) & mask)) {
            ledger->entries[gap] = ledger->entries[i];
            gap = i;
        }
    }
    ledger->entries[gap] = (struct ledger_entry){.kind = LEDGER_NOTHING};
    ledger->count--;
}

bool ledger_take(struct ledger *ledger, enum ledger_kind kind, uint64_t key,
                 struct ledger_entry *taken) {
    struct ledger_entry *entry = ledger_find(ledger, kind, key);
    if (entry == NULL)
        return false;
    *taken = *entry;
    close_gap(ledger, (uint64_t)(entry - ledger->entries));
    return true;
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
        close_gap(ledger, i); /* which may put another one here: look again */
    }
    return bytes;
}

void ledger_clear(struct ledger *ledger) {
    if (ledger->capacity != 0)
        munmap(ledger->entries, ledger->capacity * sizeof *ledger->entries);
    *ledger = (struct ledger){.entries = NULL};
}
