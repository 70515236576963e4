#include "settings.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static struct settings read_once;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* A value that is too long names no file: it stays empty, and what was to be there is missing. */
static bool copy(char target[PATH_MAX], const char *value) {
    if (value == NULL)
        return false;
    if (strlen(value) < PATH_MAX)
        strcpy(target, value);
    return true;
}

static void read_environment(void) {
    bool device = copy(read_once.device_dir, getenv("XCUDA_DEVICE_DIR"));
    bool job = copy(read_once.job_dir, getenv("XCUDA_JOB_DIR"));
    copy(read_once.log, secure_getenv("XCUDA_LOG")); /* a setuid program writes nobody's file */
    const char *mode = getenv("XCUDA_MODE");
    bool offline = mode != NULL && strcmp(mode, "offline") == 0;
    bool beacon = mode != NULL && strcmp(mode, "beacon") == 0;
    read_once.mode = device || job || offline ? MODE_OFFLINE : MODE_INERT;
    if (beacon && !job) /* a job is offline, whatever it says of itself */
        read_once.mode = MODE_BEACON;
}

const struct settings *settings(void) {
    pthread_once(&once, read_environment);
    return &read_once;
}

/* Programs may clear their environment in main. */
__attribute__((constructor)) static void read_early(void) {
    settings();
}
