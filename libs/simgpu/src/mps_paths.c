#include "mps_paths.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static void from_variable(char path[MPS_PATH_MAX], const char *name, const char *otherwise) {
    const char *value = getenv(name);
    snprintf(path, MPS_PATH_MAX, "%s", value != NULL && value[0] != '\0' ? value : otherwise);
}

struct mps_paths mps_paths_from_environment(void) {
    struct mps_paths paths;
    from_variable(paths.pipe_dir, "CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps");
    from_variable(paths.log_dir, "CUDA_MPS_LOG_DIRECTORY", "/var/log/nvidia-mps");
    return paths;
}

int mps_path_join(char path[MPS_PATH_MAX], const char *dir, const char *name) {
    int length = snprintf(path, MPS_PATH_MAX, "%s/%s", dir, name);
    return length < 0 || length >= MPS_PATH_MAX ? -1 : 0;
}

int mps_control_address(const struct mps_paths *paths, struct sockaddr_un *address) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    int length =
        snprintf(address->sun_path, sizeof address->sun_path, "%s/control", paths->pipe_dir);
    return length < 0 || (size_t)length >= sizeof address->sun_path ? -1 : 0;
}
