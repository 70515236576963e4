/* Symbols as the program asks for them with dlsym. */
#ifndef XCUDA_SYMBOLS_H
#define XCUDA_SYMBOLS_H

/* The C library's dlsym. */
void *symbols_real_dlsym(void *handle, const char *name);

/* What the thunk in dlsym.S is to do: return `address`, or, if `jump` is not NULL, jump there with
 * the caller's arguments and return address, on which the meaning of RTLD_NEXT depends. */
struct symbols_answer {
    void *address;
    void *jump;
};

struct symbols_answer symbols_answer(void *handle, const char *name);

#endif
