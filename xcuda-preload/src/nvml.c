#include "nvml.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "cancel.h"
#include "driver.h"
#include "pages.h"
#include "settings.h"
#include "symbols.h"

enum { NVML_SUCCESS = 0, NVML_ERROR_UNINITIALIZED = 1 };

struct nvml_memory {
    unsigned long long total, free, used;
};

struct nvml_memory_v2 {
    unsigned int version;
    unsigned long long total, reserved, free, used;
};

_Static_assert(sizeof(struct nvml_memory_v2) == 40, "layout");

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* innermost: nothing is called under it */
static _Atomic bool found;
static struct functions {
    CUresult (*memory)(void *device, void *memory);
    CUresult (*memory_v2)(void *device, void *memory);
    CUresult (*uuid)(void *device, char *uuid, unsigned int bytes);
} nvml;

bool nvml_is(enum hook_index hook) {
    return hook == HOOK_nvmlDeviceGetMemoryInfo || hook == HOOK_nvmlDeviceGetMemoryInfo_v2;
}

static void look_up(void *library, const char *name, void *field) {
    void *function = symbols_real_dlsym(library, name);
    memcpy(field, &function, sizeof function);
}

/* Holding the handle keeps it where it is: a program that closes it might open it elsewhere. */
bool nvml_find(void) {
    if (atomic_load_explicit(&found, memory_order_acquire))
        return true;
    void *library = dlopen("libnvidia-ml.so.1", RTLD_LAZY | RTLD_NOLOAD);
    if (library == NULL)
        return false;
    struct functions functions;
    look_up(library, "nvmlDeviceGetMemoryInfo", &functions.memory);
    look_up(library, "nvmlDeviceGetMemoryInfo_v2", &functions.memory_v2);
    look_up(library, "nvmlDeviceGetUUID", &functions.uuid);
    pthread_mutex_lock(&lock);
    if (!atomic_load_explicit(&found, memory_order_relaxed))
        nvml = functions;
    atomic_store_explicit(&found, true, memory_order_release);
    pthread_mutex_unlock(&lock);
    return true;
}

void nvml_forget_lock(void) {
    pthread_mutex_init(&lock, NULL);
}

void *nvml_route(void *function, enum hook_index hook) {
    if (!nvml_find())
        return function;
    void *known =
        hook == HOOK_nvmlDeviceGetMemoryInfo ? (void *)nvml.memory : (void *)nvml.memory_v2;
    return function == known ? hook_table[hook].function : function;
}

/* ---- the job's memory --------------------------------------------------------------------------
 *
 * A program may ask before it uses CUDA, or without ever doing so: then the process has no slot and
 * no gate. So the pages are read as anybody may read them, each time. */

struct share {
    char uuid[MUX_UUID_BYTES];
    uint64_t quota_bytes; /* 0: none */
    uint64_t used_bytes;
};

static int open_page(const char *name, enum mux_page_kind kind) {
    char path[PATH_MAX];
    if (mux_page_path(path, settings()->job_dir, name) != 0)
        return -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd >= 0 && mux_page_check(fd, kind) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static bool read_control(struct share *share) {
    struct mux_control_page page;
    int fd = open_page("control", MUX_PAGE_CONTROL);
    if (fd < 0)
        return false;
    bool whole = pread(fd, &page, sizeof page, 0) == (ssize_t)sizeof page;
    close(fd);
    if (!whole)
        return false;
    memcpy(share->uuid, page.header.uuid, sizeof share->uuid);
    share->quota_bytes = page.quota_bytes;
    return share->quota_bytes != 0;
}

static void read_used(struct share *share) {
    struct mux_process_slot slots[MUX_JOB_SLOTS];
    int fd = open_page("job", MUX_PAGE_JOB);
    share->used_bytes = 0;
    if (fd < 0)
        return;
    bool whole = pread(fd, slots, sizeof slots, offsetof(struct mux_job_page, slots)) ==
                 (ssize_t)sizeof slots;
    close(fd);
    for (unsigned i = 0; whole && i < MUX_JOB_SLOTS; i++) {
        bool holds = slots[i].owner != 0 && slots[i].memory_bytes != 0;
        if (holds && mux_owner_lives(slots[i].owner) &&
            __builtin_add_overflow(share->used_bytes, slots[i].memory_bytes, &share->used_bytes))
            share->used_bytes = UINT64_MAX;
    }
}

/* ---- which device it is ------------------------------------------------------------------------
 */

/* Handles are few and stay what they are. A number is taken when its handle was written. */
enum { HANDLES = 64 };
static struct {
    void *_Atomic device;
    char uuid[MUX_UUID_BYTES];
} known[HANDLES];
static _Atomic unsigned knowns;

static bool ask_uuid(void *device, char uuid[MUX_UUID_BYTES]) {
    char text[96] = "";
    if (nvml.uuid == NULL || nvml.uuid(device, text, sizeof text) != NVML_SUCCESS)
        return false;
    size_t length = strnlen(text, MUX_UUID_BYTES - 1);
    memcpy(uuid, text, length);
    uuid[length] = '\0';
    return true;
}

static void remember(void *device, const char uuid[MUX_UUID_BYTES]) {
    pthread_mutex_lock(&lock);
    unsigned place = atomic_load(&knowns);
    if (place < HANDLES) {
        memcpy(known[place].uuid, uuid, MUX_UUID_BYTES);
        atomic_store(&known[place].device, device);
        atomic_store(&knowns, place + 1);
    }
    pthread_mutex_unlock(&lock);
}

static bool is_device(void *device, const char uuid[MUX_UUID_BYTES]) {
    char asked[MUX_UUID_BYTES];
    unsigned count = atomic_load(&knowns);
    for (unsigned i = 0; i < count; i++) {
        if (atomic_load(&known[i].device) == device)
            return strncmp(known[i].uuid, uuid, MUX_UUID_BYTES) == 0;
    }
    if (!ask_uuid(device, asked))
        return false;
    remember(device, asked);
    return strncmp(asked, uuid, MUX_UUID_BYTES) == 0;
}

/* What the job has of the device. False if that is no limit of ours. */
static bool share_of(void *device, struct share *share) {
    if (settings()->mode != MODE_OFFLINE)
        return false;
    int before = errno, cancel = cancel_forbid();
    bool ours = read_control(share) && is_device(device, share->uuid);
    if (ours)
        read_used(share);
    cancel_restore(cancel);
    errno = before;
    return ours;
}

/* ---- calls -------------------------------------------------------------------------------------
 */

static unsigned long long least(unsigned long long one, unsigned long long other) {
    return one < other ? one : other;
}

/* The quota is the device's size, what the job holds is what is used of it. */
static void limit(unsigned long long *total, unsigned long long *free, unsigned long long *used,
                  const struct share *share) {
    *total = least(*total, share->quota_bytes);
    *used = least(*total, share->used_bytes);
    *free = least(*free, *total - *used);
}

CUresult on_nvml_memory(enum hook_index hook, void *device, void *memory) {
    (void)hook;
    if (!nvml_find() || nvml.memory == NULL)
        return NVML_ERROR_UNINITIALIZED;
    struct share share;
    struct nvml_memory *told = memory;
    CUresult result = nvml.memory(device, memory);
    if (result == NVML_SUCCESS && told != NULL && share_of(device, &share))
        limit(&told->total, &told->free, &told->used, &share);
    return result;
}

CUresult on_nvml_memory_v2(enum hook_index hook, void *device, void *memory) {
    (void)hook;
    if (!nvml_find() || nvml.memory_v2 == NULL)
        return NVML_ERROR_UNINITIALIZED;
    struct share share;
    struct nvml_memory_v2 *told = memory;
    CUresult result = nvml.memory_v2(device, memory);
    if (result == NVML_SUCCESS && told != NULL && share_of(device, &share)) {
        limit(&told->total, &told->free, &told->used, &share);
        told->reserved = 0; /* nothing of the quota is */
    }
    return result;
}
