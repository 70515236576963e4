/* Lines of control.log and server.log, in the form of NVIDIA's: [time part pid] text. */
#ifndef SIMGPU_MPS_LOG_H
#define SIMGPU_MPS_LOG_H

/* Lines go to `fd` from now on, as those of `part` ("Control", "Server"); -1 drops them. */
void mps_log_to(int fd, const char *part);

void mps_log(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
