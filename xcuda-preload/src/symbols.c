#include "symbols.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>

#include "driver.h"
#include "nvml.h"
#include "settings.h"

#ifdef XCUDA_UNDER_TEST
/* A test program that is linked with the sources has the C library's dlsym. */
void *symbols_real_dlsym(void *handle, const char *name) {
    return dlsym(handle, name);
}
#else
typedef void *(*dlsym_function)(void *handle, const char *name);

/* The versions under which C libraries have had dlsym: from 2.34 on, then the first one of x86-64
 * and of aarch64. A plain dlsym here would find our own. */
static dlsym_function find_dlsym(void) {
    static const char *const versions[] = {"GLIBC_2.34", "GLIBC_2.2.5", "GLIBC_2.17"};
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        void *found = dlvsym(RTLD_NEXT, "dlsym", versions[i]);
        if (found != NULL)
            return (dlsym_function)found;
    }
    return NULL;
}

static dlsym_function real_dlsym(void) {
    static _Atomic(dlsym_function) known; /* every thread that races finds the same */
    dlsym_function function = atomic_load_explicit(&known, memory_order_relaxed);
    if (function == NULL) {
        function = find_dlsym();
        atomic_store_explicit(&known, function, memory_order_relaxed);
    }
    return function;
}

void *symbols_real_dlsym(void *handle, const char *name) {
    dlsym_function function = real_dlsym();
    return function == NULL ? NULL : function(handle, name);
}

static void *no_dlsym(void) {
    return NULL;
}

/* cu[A-Z]: cuBLAS and cuDNN have names with cu, too, but theirs go on in small letters. */
static int may_be_hooked(const char *name) {
    if (name == NULL)
        return 0;
    return nvml_may_be(name) ||
           (name[0] == 'c' && name[1] == 'u' && name[2] >= 'A' && name[2] <= 'Z');
}

static int is_loaded(enum hook_index hook) {
    return nvml_is(hook) ? nvml_find() : driver_find();
}

static void *route(void *function, enum hook_index hook) {
    return nvml_is(hook) ? nvml_route(function, hook) : driver_route(function);
}

struct symbols_answer symbols_answer(void *handle, const char *name) {
    dlsym_function real = real_dlsym();
    struct symbols_answer elsewhere = {NULL, real == NULL ? (void *)no_dlsym : (void *)real};
    if (!may_be_hooked(name) || real == NULL || settings()->mode == MODE_INERT)
        return elsewhere;
    enum hook_index hook = driver_hook_named(name);
    if (hook == HOOK_COUNT)
        return elsewhere;

    /* Our exported hook comes first in the global scope, whether or not there is a driver. Without
     * one the answer is that of a search that starts behind this library: none, and an error for
     * dlerror. */
    void *found = real(handle == RTLD_DEFAULT ? RTLD_NEXT : handle, name);
    bool global = handle == RTLD_DEFAULT || handle == RTLD_NEXT;
    if (global || found == hook_table[hook].function)
        return (struct symbols_answer){
            is_loaded(hook) ? hook_table[hook].function : real(RTLD_NEXT, name), NULL};
    return (struct symbols_answer){found == NULL ? NULL : route(found, hook), NULL};
}
#endif
