/* Symbols as the program asks for them with dlsym and dlvsym, and libraries as it loads them. */
#ifndef XCUDA_SYMBOLS_H
#define XCUDA_SYMBOLS_H

/* The C library's dlsym. */
void *symbols_real_dlsym(void *handle, const char *name);

/* What the thunks in dlsym.S are to do: return `address`, or, if `jump` is not NULL, jump there
 * with the caller's arguments and return address, on which the meaning of RTLD_NEXT depends. */
struct symbols_answer {
    void *address;
    void *jump;
};

struct symbols_answer symbols_answer(void *handle, const char *name);
struct symbols_answer symbols_answer_versioned(void *handle, const char *name, const char *version);

/* The flags with which a library is to be loaded, and the function that does it. In a job none is
 * loaded with RTLD_DEEPBIND: it would find the driver and the C library's dlsym before any hook, as
 * do libraries of CUDA that Julia loads. */
struct symbols_load {
    long flags;
    void *jump;
};

struct symbols_load symbols_load(int flags);

#endif
