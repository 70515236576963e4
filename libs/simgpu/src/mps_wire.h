/* Packets over <pipe directory>/control (SOCK_SEQPACKET) between the control daemon and its front
 * end, and over a socket pair between the daemon and its server. NVIDIA's wire is private to its
 * programs, and so is this one: what others rely on is the text of commands and answers. */
#ifndef SIMGPU_MPS_WIRE_H
#define SIMGPU_MPS_WIRE_H

enum {
    MPS_PACKET_MAX = 65536,
    MPS_LINE_MAX = 4096, /* a longer command is refused */
};

/* The first byte of a packet; text follows where it says so. */
enum mps_packet {
    MPS_COMMAND = 'C', /* front end to daemon: one line */
    MPS_ANSWER = 'A',  /* daemon to front end: what to print, often nothing */
    MPS_QUITTED = 'Q', /* daemon to front end: all servers have ended, and so do I */
    MPS_READY = 'R',   /* server to daemon: I serve */
    MPS_STOP = 'S',    /* daemon to server: stop, whoever is there */
};

/* Descriptors that the server finds open. */
enum { MPS_SERVER_CHANNEL = 3, MPS_SERVER_LOG = 4 };

#endif
