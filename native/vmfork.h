/* The wire between the daemon and the library inside a VM's process.
 *
 * An AF_UNIX SOCK_SEQPACKET socket: one packet is one message, so nothing is ever half received. Integers are in
 * host order (both ends are on one machine). A request is a vmfork_request and its body; an answer is a
 * vmfork_reply and, when `error` is not 0, the reason as `length` bytes of text.
 *
 *   QUERY              -> QUERY  values: RAM address, RAM bytes, generation, forks so far, flags, pid
 *   MERGE value=0|1    -> MERGE  values: flags
 *   FORK  body, fds    -> FORKED values: pid, nanoseconds of the fork; the child's pidfd by SCM_RIGHTS
 *                      -> LEAPT  values: nanoseconds from the fork until the child left for its program
 *
 * FORKED comes as early as can be (the VM is stopped meanwhile); LEAPT follows unless FORKED carries an error.
 * The body of FORK is NUL-terminated strings: name, argv[argc], env[envc]. argv[0] is the absolute path of the
 * program. The descriptors become 0, 1, 2, 3... of the child, in order; everything else is closed.
 */
#ifndef VMFORK_H
#define VMFORK_H

#include <stdint.h>

#define VMFORK_MAGIC 0x4b464d56u /* "VMFK" */
#define VMFORK_VERSION 1

enum vmfork_verb { VMFORK_QUERY = 1, VMFORK_FORK = 2, VMFORK_MERGE = 3 };
enum vmfork_answer { VMFORK_REFUSED = 0, VMFORK_IS = 1, VMFORK_FORKED = 2, VMFORK_MERGED = 3, VMFORK_LEAPT = 4 };
enum vmfork_flag { VMFORK_MERGING = 1, VMFORK_ZYGOTES = 2 /* its forks know VMFORK_ZYGOTE */ };

enum {
    VMFORK_MAX_PACKET = 128 << 10, /* a SEQPACKET is bounded by the sender's buffer: 208 KiB by default */
    VMFORK_MAX_ARGS = 1024,
    VMFORK_MAX_ENV = 256,
    VMFORK_MAX_FDS = 128,  /* the kernel passes at most 253 in one message */
    VMFORK_MAX_NAME = 15,  /* what the kernel keeps of a process's name */
    VMFORK_MAX_REASON = 512,
};

struct vmfork_request {
    uint32_t magic;
    uint16_t version, verb;
    uint32_t length; /* bytes of the body that follows */
    uint32_t value;
    uint32_t argc, envc, fdc;
    uint32_t reserved; /* 0 */
};

struct vmfork_reply {
    uint32_t magic;
    uint16_t version, kind;
    int32_t error; /* errno, 0 for success */
    uint32_t length;
    uint64_t values[6];
};

#endif
