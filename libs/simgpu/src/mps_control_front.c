#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "mps_control.h"

static int complain(const char *text) {
    fprintf(stderr, "%s\n", text);
    return 1;
}

static int connect_to_daemon(void) {
    struct mps_paths paths = mps_paths_from_environment();
    struct sockaddr_un address;
    if (mps_control_address(&paths, &address) != 0)
        return -1;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static bool send_line(int daemon, const char *line, size_t length) {
    char packet[MPS_LINE_MAX + 1];
    if (length > MPS_LINE_MAX)
        return false;
    packet[0] = MPS_COMMAND;
    memcpy(packet + 1, line, length);
    return send(daemon, packet, length + 1, MSG_NOSIGNAL) == (ssize_t)(length + 1);
}

int mps_front_end(void) {
    static char answer[MPS_PACKET_MAX];
    int daemon = connect_to_daemon();
    if (daemon < 0)
        return complain("Cannot find MPS control daemon process");
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    int status = 0;
    while (status == 0 && (length = getline(&line, &room, stdin)) >= 0) {
        if (length > 0 && line[length - 1] == '\n')
            length--;
        if (!send_line(daemon, line, (size_t)length)) {
            status = complain("Cannot send command to MPS control daemon process");
            break;
        }
        ssize_t bytes = recv(daemon, answer, sizeof answer, 0);
        if (bytes <= 0) /* another front end is being served, or the daemon died */
            status = complain("Cannot send command to MPS control daemon process");
        else if (answer[0] == MPS_QUITTED)
            break;
        else
            fwrite(answer + 1, 1, (size_t)bytes - 1, stdout);
        fflush(stdout);
    }
    free(line);
    close(daemon);
    return status;
}
