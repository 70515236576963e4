/* What the end of an operation does to memory.
 *
 * A copy moves its bytes when the model has ended it. Whoever sees an end in this process first
 * applies the effects of everything that ended before, in the order of the ends; so no call tells
 * of an end whose effect is not there. For programs that only look at memory, the helper applies
 * effects too (cuda_call.c).
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cuda_memory.h"

enum { COLLECTED = 64 };

struct effect *effect_new(enum effect_kind kind) {
    struct effect *effect = calloc(1, sizeof *effect);
    if (effect)
        effect->kind = kind;
    return effect;
}

static void run_copy(const struct region *r) {
    for (size_t z = 0; z < r->depth; z++)
        for (size_t y = 0; y < r->height; y++)
            memmove(r->to + z * r->to_slice + y * r->to_pitch,
                    r->from + z * r->from_slice + y * r->from_pitch, r->width);
}

/* Zeroes, without touching pages that have never been touched. */
static void zero(char *to, size_t bytes) {
    const size_t page = 4096;
    enum { WORTH_A_CALL = 1 << 20 };
    char *first = (char *)(((uintptr_t)to + page - 1) & ~(page - 1));
    char *end = (char *)(((uintptr_t)to + bytes) & ~(page - 1));
    struct block block;
    bool private_pages =
        block_find((uintptr_t)to, &block) && block_is_on_device(&block) && block.fd < 0;
    if (bytes < WORTH_A_CALL || !private_pages ||
        madvise(first, (size_t)(end - first), MADV_DONTNEED) != 0) {
        memset(to, 0, bytes);
        return;
    }
    memset(to, 0, (size_t)(first - to));
    memset(end, 0, (size_t)(to + bytes - end));
}

static void fill_row(char *to, size_t bytes, unsigned value_bytes, uint64_t value) {
    if (value == 0) {
        zero(to, bytes);
        return;
    }
    if (value_bytes == 1) {
        memset(to, (int)value, bytes);
        return;
    }
    for (size_t i = 0; i + value_bytes <= bytes; i += value_bytes)
        memcpy(to + i, &value, value_bytes);
}

static void run_fill(const struct effect *effect) {
    const struct region *r = &effect->region;
    for (size_t y = 0; y < r->height; y++)
        fill_row(r->to + y * r->to_pitch, r->width, effect->value_bytes, effect->value);
}

void effect_run(const struct effect *effect) {
    struct block block;
    switch (effect->kind) {
    case EFFECT_COPY:
        run_copy(&effect->region);
        break;
    case EFFECT_FILL:
        run_fill(effect);
        break;
    case EFFECT_STORE:
        if (effect->value_bytes == 8)
            atomic_store((_Atomic uint64_t *)effect->address, effect->value);
        else
            atomic_store((_Atomic uint32_t *)effect->address, (uint32_t)effect->value);
        break;
    case EFFECT_ADD:
        atomic_fetch_add((_Atomic uint32_t *)effect->address, (uint32_t)effect->value);
        break;
    case EFFECT_FREE:
        if (block_remove(effect->address, &block))
            device_free(&block);
        break;
    }
}

static void effect_end(struct effect *effect) {
    effect_run(effect);
    free(effect->owned);
    free(effect);
}

void apply_effects(struct gpu *gpu) {
    if (atomic_load(&gpu->effects_pending) == 0)
        return;
    pthread_mutex_lock(&gpu->effects_lock);
    uint32_t count;
    do {
        uint64_t tokens[COLLECTED];
        count = 0;
        if (gpu_lock(gpu) != CUDA_SUCCESS)
            break; /* the work is lost, and its effects with it */
        while (count < COLLECTED && simgpu_collect(gpu->shared.device, gpu->client, &tokens[count]))
            count++;
        gpu_unlock(gpu);
        for (uint32_t i = 0; i < count; i++)
            effect_end((struct effect *)(uintptr_t)tokens[i]);
        atomic_fetch_sub(&gpu->effects_pending, count);
    } while (count == COLLECTED);
    pthread_mutex_unlock(&gpu->effects_lock);
}
