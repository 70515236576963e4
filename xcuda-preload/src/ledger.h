/* What device memory the process holds: one entry per thing that must be given back. A hash table,
 * so that the cost of an allocation does not depend on how many there are. Not locked: see quota.c.
 */
#ifndef XCUDA_LEDGER_H
#define XCUDA_LEDGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda_types.h"

enum ledger_kind {
    LEDGER_NOTHING,
    LEDGER_POINTER,
    LEDGER_ARRAY,
    LEDGER_MIPMAPPED,
    LEDGER_CONTEXT, /* it and those before end with a context */
    LEDGER_POOLED,  /* a pointer into a pool; `object` says which */
    LEDGER_EXEC,    /* a graph that allocates: the most it has at a time, and in which pool */
    LEDGER_HANDLE,  /* of physical memory (cuMemCreate); `object` says which */
    LEDGER_MAPPING, /* of such memory at an address */
    LEDGER_OBJECT,  /* the memory itself, which lives as long as handles or mappings do */
};

struct ledger_entry {
    uint64_t key; /* address or handle */
    enum ledger_kind kind;
    uint32_t references; /* of an object: its handles and mappings */
    uint64_t bytes;
    union {
        CUcontext context; /* whose end frees it; NULL: none's */
        uint64_t object;   /* of what does not end with a context */
    };
};

struct ledger {
    struct ledger_entry *entries;
    uint64_t capacity; /* a power of two; 0: nothing yet */
    uint64_t count;
};

static inline uint64_t ledger_home(const struct ledger *ledger, enum ledger_kind kind,
                                   uint64_t key) {
    uint64_t hash = (key ^ (uint64_t)kind << 59) * UINT64_C(0x9e3779b97f4a7c15);
    return (hash ^ hash >> 32) & (ledger->capacity - 1);
}

/* Where the entry is, or the free place where it would go. */
static inline struct ledger_entry *ledger_seek(const struct ledger *ledger, enum ledger_kind kind,
                                               uint64_t key) {
    for (uint64_t i = ledger_home(ledger, kind, key);; i = (i + 1) & (ledger->capacity - 1)) {
        struct ledger_entry *entry = &ledger->entries[i];
        if (entry->kind == LEDGER_NOTHING || (entry->kind == kind && entry->key == key))
            return entry;
    }
}

/* Valid until the next change of the ledger. NULL if there is none. */
static inline struct ledger_entry *ledger_find(const struct ledger *ledger, enum ledger_kind kind,
                                               uint64_t key) {
    if (ledger->capacity == 0)
        return NULL;
    struct ledger_entry *entry = ledger_seek(ledger, kind, key);
    return entry->kind == LEDGER_NOTHING ? NULL : entry;
}

bool ledger_grow(struct ledger *ledger);

/* False if there is no memory for it. An entry of the same kind and key is replaced: what that one
 * was for has gone unseen, and is for the caller to give back. `replaced` is a LEDGER_NOTHING if
 * there was none. */
static inline bool ledger_add(struct ledger *ledger, const struct ledger_entry *entry,
                              struct ledger_entry *replaced) {
    *replaced = (struct ledger_entry){.kind = LEDGER_NOTHING};
    if (ledger->count * 2 >= ledger->capacity && !ledger_grow(ledger))
        return false;
    struct ledger_entry *place = ledger_seek(ledger, entry->kind, entry->key);
    ledger->count += place->kind == LEDGER_NOTHING;
    *replaced = *place;
    *place = *entry;
    return true;
}

void ledger_close_gap(struct ledger *ledger, uint64_t gap);

/* Takes the entry out. False if there is none. */
static inline bool ledger_take(struct ledger *ledger, enum ledger_kind kind, uint64_t key,
                               struct ledger_entry *taken) {
    struct ledger_entry *entry = ledger_find(ledger, kind, key);
    if (entry == NULL)
        return false;
    *taken = *entry;
    ledger_close_gap(ledger, (uint64_t)(entry - ledger->entries));
    return true;
}

/* Takes out all entries of a context. Returns the sum of their bytes. */
uint64_t ledger_take_context(struct ledger *ledger, CUcontext context);

/* Takes out all that lies in pools, of which `object` is one. Returns the bytes of what should, but
 * counts for itself, its `object` being `none`. */
uint64_t ledger_take_pooled(struct ledger *ledger, uint64_t none);

void ledger_clear(struct ledger *ledger);

#endif
