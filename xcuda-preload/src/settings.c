#include "settings.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Where a container has the directories of its job and of the device. A host's run directory has
 * `jobs` and `devices` there, and neither of these. */
#define CONTAINER_JOB_DIR    "/run/muxflow/job"
#define CONTAINER_DEVICE_DIR "/run/muxflow/device"

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

/* Whoever starts a process decides about its environment: it has no say here. The kernel itself is
 * asked: a stat that another library stands in front of may load libraries, for which the settings
 * are needed. */
static bool read_container(void) {
    struct stat found;
    if (syscall(SYS_newfstatat, AT_FDCWD, CONTAINER_JOB_DIR, &found, 0) != 0 ||
        !S_ISDIR(found.st_mode))
        return false;
    strcpy(read_once.job_dir, CONTAINER_JOB_DIR);
    strcpy(read_once.device_dir, CONTAINER_DEVICE_DIR);
    read_once.mode = MODE_OFFLINE;
    return true;
}

/* A setuid program opens and writes nobody's files. */
static void read_environment(void) {
    bool device = copy(read_once.device_dir, secure_getenv("XCUDA_DEVICE_DIR"));
    bool job = copy(read_once.job_dir, secure_getenv("XCUDA_JOB_DIR"));
    const char *mode = secure_getenv("XCUDA_MODE");
    bool offline = mode != NULL && strcmp(mode, "offline") == 0;
    bool beacon = mode != NULL && strcmp(mode, "beacon") == 0;
    read_once.mode = device || job || offline ? MODE_OFFLINE : MODE_INERT;
    if (beacon && !job) /* a job is offline, whatever it says of itself */
        read_once.mode = MODE_BEACON;
}

static void read_settings(void) {
    int before = errno;
    copy(read_once.log, secure_getenv("XCUDA_LOG"));
    if (!read_container())
        read_environment();
    errno = before;
}

const struct settings *settings(void) {
    pthread_once(&once, read_settings);
    return &read_once;
}

/* Programs may clear their environment in main. */
__attribute__((constructor)) static void read_early(void) {
    settings();
}
