/* Packets between the control daemon and those who talk to it, over <pipe directory>/control
 * (SOCK_SEQPACKET). NVIDIA's own wire is private to its daemon, its front end and its driver; so is
 * this one. */
#ifndef SIMGPU_MPS_WIRE_H
#define SIMGPU_MPS_WIRE_H

enum { MPS_PACKET_MAX = 65536 };

/* The first byte of a packet. */
enum mps_packet {
    MPS_COMMAND = 'C', /* front end → daemon: one command line */
    MPS_ANSWER = 'A',  /* daemon → front end: the text to print, often none */
    MPS_EXITED = 'X',  /* daemon → front end: the answer to quit, when every server has ended */
    MPS_CLIENT = 'K',  /* driver → daemon: start or name the server for my uid */
    MPS_SERVER = 'S',  /* daemon → driver: its pid, in decimal */
    MPS_REFUSED = 'R', /* daemon → driver: no server can be had */
    MPS_READY = 'Y',   /* server → daemon: it has started */
};

#endif
