/* Looks for calls of the driver in every way that there is, and says whose function each finds:
 *   program_symbols DRIVER LIBRARY [launch]
 * prints one line for each way: its name, and `file:function`, or `none`. LIBRARY is libbound.so.
 * With `launch`, launches once by each of them, and waits at the end for the end of its input. */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda_types.h"

typedef CUresult launch_function(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned,
                                 unsigned, unsigned, CUstream, void **, void **);
typedef CUresult proc_address_function(const char *, void **, int, uint64_t, void *);
typedef void *dlsym_function(void *, const char *);
typedef void *dlvsym_function(void *, const char *, const char *);

/* Bound when the program is loaded, if there is one then. */
extern __attribute__((weak)) launch_function cuLaunchKernel;

#ifdef __x86_64__
#define FIRST_VERSION "GLIBC_2.2.5"
#else
#define FIRST_VERSION "GLIBC_2.17"
#endif

static bool launches;

static const char *last_part(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash == NULL ? path : slash + 1;
}

static void tell(const char *way, void *function) {
    Dl_info info;
    if (function == NULL)
        printf("%s: none\n", way);
    else if (dladdr(function, &info) == 0 || info.dli_sname == NULL)
        printf("%s: unknown\n", way);
    else
        printf("%s: %s:%s\n", way, last_part(info.dli_fname), info.dli_sname);
}

static void found(const char *way, void *function) {
    tell(way, function);
    launch_function *launch = (launch_function *)function;
    if (launches && launch != NULL &&
        launch((CUfunction)1000, 1, 1, 1, 32, 1, 1, 0, NULL, NULL, NULL) != CUDA_SUCCESS)
        exit(3);
}

/* A finder that was itself found. */
static void found_by(const char *way, void *finder, void *driver) {
    dlsym_function *dlsym_found = (dlsym_function *)finder;
    found(way, dlsym_found == NULL ? NULL : dlsym_found(driver, "cuLaunchKernel"));
}

static void routed_by(const char *way, void *function) {
    void *launch = NULL;
    if (function != NULL)
        ((proc_address_function *)function)("cuLaunchKernel", &launch, 12000, 0, NULL);
    found(way, launch);
}

int main(int count, char **arguments) {
    const char *path = arguments[1];
    setvbuf(stdout, NULL, _IOLBF, 0);
    launches = count > 3;
    void *driver = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (driver == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    CUresult (*retain)(CUcontext *, CUdevice) = dlsym(driver, "cuDevicePrimaryCtxRetain");
    CUcontext context;
    CUresult (*set_current)(CUcontext) = dlsym(driver, "cuCtxSetCurrent");
    if (retain(&context, 0) != CUDA_SUCCESS || set_current(context) != CUDA_SUCCESS)
        return 3;
    found("by the loader", (void *)cuLaunchKernel);
    found("handle", dlsym(driver, "cuLaunchKernel"));
    found("default", dlsym(RTLD_DEFAULT, "cuLaunchKernel"));
    found("next", dlsym(RTLD_NEXT, "cuLaunchKernel"));
    tell("not hooked", dlsym(driver, "cuInit"));

    void *libc = dlopen("libc.so.6", RTLD_NOW);
    found_by("dlsym of the C library", dlsym(libc, "dlsym"), driver);
    found_by("dlsym of the default", dlsym(RTLD_DEFAULT, "dlsym"), driver);
    found_by("the next dlsym", dlsym(RTLD_NEXT, "dlsym"), driver);
    found_by("dlsym of a version", dlvsym(libc, "dlsym", FIRST_VERSION), driver);
    found_by("the next dlsym of a version", dlvsym(RTLD_NEXT, "dlsym", FIRST_VERSION), driver);
    found_by("the default dlsym of a version", dlvsym(RTLD_DEFAULT, "dlsym", FIRST_VERSION),
             driver);
    dlvsym_function *dlvsym_found = (dlvsym_function *)dlvsym(libc, "dlvsym", FIRST_VERSION);
    found_by("dlsym by dlvsym by dlvsym", dlvsym_found(libc, "dlsym", FIRST_VERSION), driver);
    found("handle, of a version", dlvsym(driver, "cuLaunchKernel", "CUDA_1"));

    routed_by("cuGetProcAddress", dlsym(driver, "cuGetProcAddress_v2"));
    routed_by("cuGetProcAddress of the default", dlsym(RTLD_DEFAULT, "cuGetProcAddress_v2"));
    void *by_itself = NULL;
    ((proc_address_function *)dlsym(driver, "cuGetProcAddress_v2"))("cuGetProcAddress", &by_itself,
                                                                    12000, 0, NULL);
    routed_by("cuGetProcAddress by itself", by_itself);

    void *bound = dlopen(arguments[2], RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
    if (bound == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    dlsym_function *bound_dlsym = ((dlsym_function * (*)(void)) dlsym(bound, "bound_dlsym"))();
    found("bound before all others", ((void *(*)(void))dlsym(bound, "bound_launch"))());
    found("found by a library bound so", bound_dlsym(driver, "cuLaunchKernel"));

    /* Errors are told as ever, and the C library is asked as if we asked it. */
    tell("unknown", dlsym(driver, "cuNoSuchFunction"));
    const char *error = dlerror();
    printf("error: %s\n", error == NULL ? "none" : strstr(error, "undefined symbol"));
    tell("unknown version", dlvsym(libc, "dlsym", "GLIBC_1.0"));
    error = dlerror();
    printf("error of a version: %s\n", error == NULL ? "none" : strstr(error, "undefined symbol"));
    tell("of the C library", dlvsym(libc, "dlclose", FIRST_VERSION));
    printf("parent: %d\n", getppid() > 0);
    uint64_t (*launched)(void) = dlsym(driver, "stub_launches");
    printf("launched: %d\n", (int)launched());

    void *apart = dlmopen(LM_ID_NEWLM, path, RTLD_NOW | RTLD_LOCAL);
    tell("in a namespace of its own", apart == NULL ? NULL : dlsym(apart, "cuLaunchKernel"));
    while (launches && getchar() != EOF)
        continue;
    return 0;
}
