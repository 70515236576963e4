/* What the container says, or else the environment. Read once, before the program can change it. */
#ifndef XCUDA_SETTINGS_H
#define XCUDA_SETTINGS_H

#include <limits.h>
#include <stdbool.h>

enum mode {
    MODE_INERT,   /* no job of ours: everything goes to the driver as it is */
    MODE_OFFLINE, /* an offline job: gated, and frozen as long as its pages are missing */
    MODE_BEACON   /* an online process: its launches are counted, and nothing else */
};

struct settings {
    enum mode mode;
    char device_dir[PATH_MAX]; /* XCUDA_DEVICE_DIR: where the pages of the device are */
    char job_dir[PATH_MAX];    /* XCUDA_JOB_DIR: where those of the job are */
    char log[PATH_MAX];        /* XCUDA_LOG: a file, or `stderr`; empty: no log */
};

/* May be called from other libraries' constructors, that is before our own. */
const struct settings *settings(void);

#endif
