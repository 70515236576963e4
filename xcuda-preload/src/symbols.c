#include "symbols.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "driver.h"
#include "libc.h"
#include "nvml.h"
#include "settings.h"

#ifdef XCUDA_UNDER_TEST
/* A test program that is linked with the sources has the C library's dlsym. */
void *symbols_real_dlsym(void *handle, const char *name) {
    return dlsym(handle, name);
}
#else
typedef void *(*dlsym_function)(void *handle, const char *name);
typedef void *(*dlvsym_function)(void *handle, const char *name, const char *version);

/* What dlsym.S exports under these names. The names alone would mean those of a library that was
 * loaded before this one, if it has them, too. */
extern HIDDEN char own_dlsym[], own_dlvsym[], own_dlopen[];

/* Functions that find functions: ours, and the C library's once it was looked for. */
static struct finder {
    const char *name;
    void *own;
    _Atomic(void *) known; /* every thread that races finds the same */
} finders[] = {
    {"dlsym", own_dlsym, NULL}, {"dlvsym", own_dlvsym, NULL}, {"dlopen", own_dlopen, NULL}};
enum { DLSYM, DLVSYM, DLOPEN, FINDERS };

static void *real(struct finder *finder) {
    void *function = atomic_load_explicit(&finder->known, memory_order_relaxed);
    if (function == NULL) {
        function = libc_function(finder->name);
        atomic_store_explicit(&finder->known, function, memory_order_relaxed);
    }
    return function;
}

static struct finder *finder_named(const char *name) {
    if (name[0] != 'd' || name[1] != 'l')
        return NULL;
    unsigned i = 0;
    while (i < FINDERS && !libc_same(finders[i].name, name))
        i++;
    return i < FINDERS ? &finders[i] : NULL;
}

void *symbols_real_dlsym(void *handle, const char *name) {
    dlsym_function function = (dlsym_function)real(&finders[DLSYM]);
    return function == NULL ? NULL : function(handle, name);
}

static void *none(void) {
    return NULL;
}

/* What a program asks for, and the function that it asked. */
struct question {
    void *handle;
    const char *name;
    const char *version; /* of dlvsym only */
    void *real;          /* the C library's own */
    bool versioned;
};

static void *search(const struct question *asked, void *handle) {
    if (asked->versioned)
        return ((dlvsym_function)asked->real)(handle, asked->name, asked->version);
    return ((dlsym_function)asked->real)(handle, asked->name);
}

/* cu[A-Z]: cuBLAS and cuDNN have names with cu, too, but theirs go on in small letters. */
static bool may_be_hooked(const char *name) {
    return nvml_may_be(name) ||
           (name[0] == 'c' && name[1] == 'u' && name[2] >= 'A' && name[2] <= 'Z');
}

static bool is_loaded(enum hook_index hook) {
    return nvml_is(hook) ? nvml_find() : driver_find();
}

static void *route(void *function, enum hook_index hook) {
    return nvml_is(hook) ? nvml_route(function, hook) : driver_route(function);
}

/* Not to be had past this library either. Whoever asks for the next one may stand before us or
 * behind us: ours calls none but the C library's, so it is the right one for both. */
static struct symbols_answer answer_finder(const struct question *asked, struct finder *finder) {
    void *found = search(asked, asked->handle);
    bool passed_us = found != NULL && (found == real(finder) || asked->handle == RTLD_NEXT);
    return (struct symbols_answer){passed_us ? finder->own : found, NULL};
}

/* Our exported hook comes first in the global scope, whether or not there is a driver. Without one
 * the answer is that of a search that starts behind this library: none, and an error for dlerror.
 */
static struct symbols_answer answer_hooked(const struct question *asked, enum hook_index hook) {
    void *exported = hook_table[hook].function;
    void *found = search(asked, asked->handle);
    if (found == exported || (asked->handle == RTLD_NEXT && !asked->versioned))
        return (struct symbols_answer){is_loaded(hook) ? exported : search(asked, RTLD_NEXT), NULL};
    return (struct symbols_answer){found == NULL ? NULL : route(found, hook), NULL};
}

static struct symbols_answer answer(const struct question *asked) {
    struct symbols_answer elsewhere = {NULL, asked->real == NULL ? (void *)none : asked->real};
    const char *name = asked->name;
    if (name == NULL || asked->real == NULL)
        return elsewhere;
    struct finder *finder = finder_named(name);
    if (finder != NULL)
        return answer_finder(asked, finder);
    if (!may_be_hooked(name) || settings()->mode == MODE_INERT)
        return elsewhere;
    enum hook_index hook = driver_hook_named(name);
    return hook == HOOK_COUNT ? elsewhere : answer_hooked(asked, hook);
}

struct symbols_answer symbols_answer(void *handle, const char *name) {
    return answer(&(struct question){handle, name, NULL, real(&finders[DLSYM]), false});
}

struct symbols_answer symbols_answer_versioned(void *handle, const char *name,
                                               const char *version) {
    return answer(&(struct question){handle, name, version, real(&finders[DLVSYM]), true});
}

struct symbols_load symbols_load(int flags) {
    void *function = real(&finders[DLOPEN]);
    if (settings()->mode == MODE_OFFLINE)
        flags &= ~RTLD_DEEPBIND;
    return (struct symbols_load){flags, function == NULL ? (void *)none : function};
}
#endif
