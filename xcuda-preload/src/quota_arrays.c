/* Arrays and mipmapped arrays. Their layout is the driver's secret: they are charged what their
 * elements need. */
#include "driver.h"
#include "launch.h"
#include "quota.h"

/* Bits of one element in one channel; for formats that fix the channels, of one element. */
static uint64_t bits_of(int format, unsigned channels) {
    switch (format) {
    case 0x01: /* 8-bit integers */
    case 0x08:
        return 8 * (uint64_t)channels;
    case 0x02: /* 16-bit integers, half */
    case 0x09:
    case 0x10:
        return 16 * (uint64_t)channels;
    case 0x03: /* 32-bit integers, float */
    case 0x0a:
    case 0x20:
        return 32 * (uint64_t)channels;
    case 0xb0: /* NV12 */
        return 12;
    case 0x91: /* BC1, BC4: 8 bytes for 16 elements */
    case 0x92:
    case 0x97:
    case 0x98:
        return 4;
    case 0x93: /* BC2, BC3, BC5, BC6H, BC7: 16 bytes for 16 elements */
    case 0x94:
    case 0x95:
    case 0x96:
    case 0x99:
    case 0x9a:
    case 0x9b:
    case 0x9c:
    case 0x9d:
    case 0x9e:
        return 8;
    case 0xc0: /* normalized, 8 bits, 1, 2 or 4 channels; then 16 bits */
    case 0xc6:
        return 8;
    case 0xc1:
    case 0xc7:
    case 0xc3:
    case 0xc9:
        return 16;
    case 0xc5:
    case 0xcb:
        return 64;
    default: /* the rest are pictures of at most 32 bits */
        return 32;
    }
}

static uint64_t or_one(size_t extent) {
    return extent == 0 ? 1 : extent;
}

static uint64_t array_bytes(const CUDA_ARRAY3D_DESCRIPTOR *array) {
    if (array == NULL || array->Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING))
        return 0; /* has no memory of its own */
    uint64_t elements = or_one(array->Width) * or_one(array->Height) * or_one(array->Depth);
    return (elements * bits_of(array->Format, array->NumChannels) + 7) / 8;
}

static CUresult settle(enum hook_index hook, CUresult result, enum ledger_kind kind,
                       const void *key, uint64_t bytes) {
    struct ledger_entry entry = {.kind = kind,
                                 .key = (uint64_t)(uintptr_t)key,
                                 .bytes = bytes,
                                 .context = quota_current_context()};
    return quota_settle_taken(hook, result, &entry);
}

CUresult on_array_create(enum hook_index hook, CUarray *array,
                         const CUDA_ARRAY_DESCRIPTOR *wanted) {
    if (!launch_gated())
        return REAL_OF(hook, cuArrayCreate_v2)(array, wanted);
    CUDA_ARRAY3D_DESCRIPTOR flat = {.Depth = 0};
    if (wanted != NULL) {
        flat.Width = wanted->Width;
        flat.Height = wanted->Height;
        flat.Format = wanted->Format;
        flat.NumChannels = wanted->NumChannels;
    }
    uint64_t bytes = wanted == NULL ? 0 : array_bytes(&flat);
    if (!quota_take(bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = REAL_OF(hook, cuArrayCreate_v2)(array, wanted);
    return settle(hook, result, LEDGER_ARRAY, result == CUDA_SUCCESS ? *array : NULL, bytes);
}

CUresult on_array3d_create(enum hook_index hook, CUarray *array,
                           const CUDA_ARRAY3D_DESCRIPTOR *wanted) {
    if (!launch_gated())
        return REAL_OF(hook, cuArray3DCreate_v2)(array, wanted);
    uint64_t bytes = array_bytes(wanted);
    if (!quota_take(bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = REAL_OF(hook, cuArray3DCreate_v2)(array, wanted);
    return settle(hook, result, LEDGER_ARRAY, result == CUDA_SUCCESS ? *array : NULL, bytes);
}

/* Each level has half the extent of the one before in every direction; layers and the sides of a
 * cube are not such a direction. */
CUresult on_mipmapped_array_create(enum hook_index hook, CUmipmappedArray *array,
                                   const CUDA_ARRAY3D_DESCRIPTOR *wanted, unsigned int levels) {
    if (!launch_gated())
        return REAL_OF(hook, cuMipmappedArrayCreate)(array, wanted, levels);
    uint64_t bytes = 0;
    CUDA_ARRAY3D_DESCRIPTOR level =
        wanted == NULL ? (CUDA_ARRAY3D_DESCRIPTOR){.Width = 0} : *wanted;
    for (unsigned int i = 0; wanted != NULL && i < levels && i < 64; i++) {
        bytes += array_bytes(&level);
        level.Width = or_one(level.Width / 2);
        level.Height = level.Height == 0 ? 0 : or_one(level.Height / 2);
        if (level.Depth != 0 && !(level.Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP)))
            level.Depth = or_one(level.Depth / 2);
    }
    if (!quota_take(bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = REAL_OF(hook, cuMipmappedArrayCreate)(array, wanted, levels);
    return settle(hook, result, LEDGER_MIPMAPPED, result == CUDA_SUCCESS ? *array : NULL, bytes);
}

CUresult on_array_destroy(enum hook_index hook, CUarray array) {
    if (!launch_gated())
        return REAL_OF(hook, cuArrayDestroy)(array);
    struct ledger_entry entry;
    bool known = quota_forget(LEDGER_ARRAY, (uint64_t)(uintptr_t)array, &entry);
    return quota_settle_freed(hook, REAL_OF(hook, cuArrayDestroy)(array), known, &entry);
}

CUresult on_mipmapped_array_destroy(enum hook_index hook, CUmipmappedArray array) {
    if (!launch_gated())
        return REAL_OF(hook, cuMipmappedArrayDestroy)(array);
    struct ledger_entry entry;
    bool known = quota_forget(LEDGER_MIPMAPPED, (uint64_t)(uintptr_t)array, &entry);
    return quota_settle_freed(hook, REAL_OF(hook, cuMipmappedArrayDestroy)(array), known, &entry);
}
