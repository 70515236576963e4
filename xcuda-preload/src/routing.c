/* cuGetProcAddress. The driver is asked as the program asked, and what it answers is exchanged for
 * the hook of that very function. Going by the name would give the wrong one: the same name means
 * another interface in another version, and the stream of a NULL depends on the flags. */
#include "driver.h"
#include "settings.h"

CUresult on_get_proc_address(enum hook_index hook, const char *symbol, void **function, int version,
                             uint64_t flags) {
    bool gated = driver_find() && settings()->mode != MODE_INERT;
    CUresult result = REAL_OF(hook, cuGetProcAddress)(symbol, function, version, flags);
    if (gated && result == CUDA_SUCCESS && function != NULL)
        *function = driver_route(*function);
    return result;
}

CUresult on_get_proc_address_v2(enum hook_index hook, const char *symbol, void **function,
                                int version, uint64_t flags, void *status) {
    bool gated = driver_find() && settings()->mode != MODE_INERT;
    CUresult result = REAL_OF(hook, cuGetProcAddress_v2)(symbol, function, version, flags, status);
    if (gated && result == CUDA_SUCCESS && function != NULL)
        *function = driver_route(*function);
    return result;
}
