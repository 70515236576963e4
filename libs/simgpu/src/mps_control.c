/* nvidia-cuda-mps-control: stands in for NVIDIA's, before simulated devices. */
#include <stdio.h>
#include <string.h>

#include "mps_control.h"

static const char help[] =
    "MPS control of the simulated GPU.\n"
    "\n"
    "  nvidia-cuda-mps-control -d    start the daemon in the background\n"
    "  nvidia-cuda-mps-control -f    start it in the foreground, logging to standard output\n"
    "  nvidia-cuda-mps-control       bring it commands, one per line of standard input\n"
    "\n"
    "CUDA_MPS_PIPE_DIRECTORY (/tmp/nvidia-mps), CUDA_MPS_LOG_DIRECTORY (/var/log/nvidia-mps),\n"
    "CUDA_VISIBLE_DEVICES and MUXFLOW_SIMGPU are honoured. The commands are those of NVIDIA's\n"
    "manual page of the same name.\n";

int main(int count, char **arguments) {
    if (count == 1)
        return mps_front_end();
    if (count == 2 && strcmp(arguments[1], "-d") == 0)
        return mps_daemon_main(false);
    if (count == 2 && strcmp(arguments[1], "-f") == 0)
        return mps_daemon_main(true);
    if (strcmp(arguments[1], "-h") == 0 || strcmp(arguments[1], "--help") == 0) {
        fputs(help, stdout);
        return 0;
    }
    return 1;
}
