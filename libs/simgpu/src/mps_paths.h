/* Where the parts of MPS meet: files of the pipe directory and the log directory. */
#ifndef SIMGPU_MPS_PATHS_H
#define SIMGPU_MPS_PATHS_H

#include <sys/un.h>

enum { MPS_PATH_MAX = 512 };

struct mps_paths {
    char pipe_dir[MPS_PATH_MAX];
    char log_dir[MPS_PATH_MAX];
};

/* From CUDA_MPS_PIPE_DIRECTORY and CUDA_MPS_LOG_DIRECTORY, else NVIDIA's defaults. */
struct mps_paths mps_paths_from_environment(void);

/* Joins; -1 when the result does not fit. */
int mps_path_join(char path[MPS_PATH_MAX], const char *dir, const char *name);

/* Where the control daemon listens. -1 when the path is too long for a socket. */
int mps_control_address(const struct mps_paths *paths, struct sockaddr_un *address);

#endif
