/* The table of blocks, sorted by address: what each address of the process is. */
#include <stdlib.h>
#include <string.h>

#include "cuda_memory.h"

static struct {
    pthread_rwlock_t lock;
    struct block *blocks;
    size_t count, room;
} table = {.lock = PTHREAD_RWLOCK_INITIALIZER};

/* Index of the first block that starts above the address. */
static size_t above(uintptr_t address) {
    size_t low = 0;
    size_t high = table.count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (table.blocks[middle].start <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

bool block_is_on_device(const struct block *block) {
    return block->kind != BLOCK_HOST && block->kind != BLOCK_REGISTERED &&
           block->kind != BLOCK_RESERVED;
}

bool block_find(uintptr_t address, struct block *found) {
    pthread_rwlock_rdlock(&table.lock);
    size_t at = above(address);
    bool contains = at > 0 && address - table.blocks[at - 1].start < table.blocks[at - 1].bytes;
    if (contains)
        *found = table.blocks[at - 1];
    pthread_rwlock_unlock(&table.lock);
    return contains;
}

CUresult block_add(const struct block *block) {
    pthread_rwlock_wrlock(&table.lock);
    if (table.count == table.room) {
        size_t room = table.room ? 2 * table.room : 256;
        struct block *grown = realloc(table.blocks, room * sizeof *grown);
        if (!grown) {
            pthread_rwlock_unlock(&table.lock);
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        table.blocks = grown;
        table.room = room;
    }
    size_t at = above(block->start);
    memmove(&table.blocks[at + 1], &table.blocks[at], (table.count - at) * sizeof *block);
    static uint64_t last_id;
    table.blocks[at] = *block;
    table.blocks[at].id = ++last_id;
    table.count++;
    pthread_rwlock_unlock(&table.lock);
    return CUDA_SUCCESS;
}

static struct block *block_at(uintptr_t start) {
    size_t at = above(start);
    return at > 0 && table.blocks[at - 1].start == start ? &table.blocks[at - 1] : NULL;
}

bool block_remove(uintptr_t start, struct block *removed) {
    pthread_rwlock_wrlock(&table.lock);
    struct block *block = block_at(start);
    if (block) {
        *removed = *block;
        table.count--;
        memmove(block, block + 1, (size_t)(&table.blocks[table.count] - block) * sizeof *block);
    }
    pthread_rwlock_unlock(&table.lock);
    return block != NULL;
}

bool block_update(const struct block *changed) {
    pthread_rwlock_wrlock(&table.lock);
    struct block *block = block_at(changed->start);
    if (block)
        *block = *changed;
    pthread_rwlock_unlock(&table.lock);
    return block != NULL;
}

static bool take_any_of(const struct context *context, struct block *taken) {
    pthread_rwlock_rdlock(&table.lock);
    bool found = false;
    for (size_t i = 0; i < table.count && !found; i++)
        if (table.blocks[i].context == context) {
            *taken = table.blocks[i];
            found = true;
        }
    pthread_rwlock_unlock(&table.lock);
    return found && block_remove(taken->start, taken);
}

void blocks_forget(struct context *context) {
    for (struct block block; take_any_of(context, &block);)
        device_free(&block);
}
