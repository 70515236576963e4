/* Finding entry points by name and version; those that are not there. */
#include <string.h>

#include "cuda_driver.h"

#define ENTRY(name, version, function)
#define OWN_ENTRY(name, version, function, own)
#define UNSUPPORTED(name, version)       \
    CUDA_API CUresult name(void);        \
    CUDA_API CUresult name(void) {       \
        return CUDA_ERROR_NOT_SUPPORTED; \
    }
#include "cuda_entries.def"
#undef ENTRY
#undef OWN_ENTRY
#undef UNSUPPORTED

typedef void (*function)(void);

static const struct entry {
    const char *name;
    int version;
    function plain, own; /* own: for programs whose default stream is the thread's; or NULL */
} entries[] = {
#define ENTRY(name, version, function) {#name, version, (void (*)(void))(function), NULL},
#define OWN_ENTRY(name, version, function, own) \
    {#name, version, (void (*)(void))(function), (void (*)(void))(own)},
#define UNSUPPORTED(name, version) {#name, version, (void (*)(void))(name), NULL},
#include "cuda_entries.def"
#undef ENTRY
#undef OWN_ENTRY
#undef UNSUPPORTED
};

/* The newest that is not newer than the version; entries of one name lie in order of version. */
static CUdriverProcAddressQueryResult find(const char *name, int version, bool own,
                                           function *found) {
    bool named = false;
    *found = NULL;
    for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
        const struct entry *entry = &entries[i];
        if (strcmp(entry->name, name) != 0)
            continue;
        named = true;
        if (entry->version <= version)
            *found = own && entry->own ? entry->own : entry->plain;
    }
    if (*found)
        return CU_GET_PROC_ADDRESS_SUCCESS;
    return named ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
                 : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
}

CUDA_API CUresult cuGetProcAddress_v2(const char *name, void **address, int version, uint64_t flags,
                                      CUdriverProcAddressQueryResult *status) {
    if (!name || !*name || !address || flags > CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM)
        return CUDA_ERROR_INVALID_VALUE;
    function found;
    CUdriverProcAddressQueryResult outcome =
        find(name, version, flags == CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, &found);
    memcpy(address, &found, sizeof found);
    if (status)
        *status = outcome;
    return outcome == CU_GET_PROC_ADDRESS_SUCCESS ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUDA_API CUresult cuGetProcAddress(const char *name, void **address, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, address, version, flags, NULL);
}

/* The tables behind it are private to the real driver and its runtime. */
CUDA_API CUresult cuGetExportTable(const void **table, const CUuuid *id) {
    (void)id;
    if (table)
        *table = NULL;
    return CUDA_ERROR_NOT_SUPPORTED;
}
