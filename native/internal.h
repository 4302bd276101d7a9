/* What the parts of the library know of each other. Pure functions (no system calls) are marked so and are tested
 * under sanitizers by tests/unit/native. */
#ifndef VMFORK_INTERNAL_H
#define VMFORK_INTERNAL_H

#if !defined(__x86_64__) || !defined(__LP64__)
#error "vmfork: only x86-64 is supported so far; another architecture needs its own native/arch_*.h and leap_*.S"
#endif

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "arch_x86_64.h"
#include "vmfork.h"

struct range {
    uint64_t start, end;
};

static inline uint64_t page_up(uint64_t n) { return (n + ARCH_PAGE - 1) & ~(ARCH_PAGE - 1); }
static inline uint64_t page_down(uint64_t n) { return n & ~(ARCH_PAGE - 1); }

/* A refusal: an errno and the sentence that goes with it. */
struct reason {
    int error;
    char text[VMFORK_MAX_REASON];
};

/* Writes "<text>: <strerror>" (or the text alone for error < 0, then EINVAL). Always returns false. */
bool refuse(struct reason *why, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- request.c: pure ---- */

struct request {
    unsigned verb, value;
    unsigned argc, envc, fdc;
    const char *name;
    const char *argv[VMFORK_MAX_ARGS];
    const char *env[VMFORK_MAX_ENV];
};

/* Strings point into `packet`, which must outlive `out`. `fds` is how many descriptors came along. */
bool request_parse(const void *packet, size_t length, size_t fds, struct request *out, struct reason *why);

/* ---- layout.c: pure ---- */

enum { ELF_MAX_SEGMENTS = 16, ELF_HEAD = 4096 };

struct segment {
    uint64_t start, file_end, mem_end, offset;
    int prot;
};

struct elf {
    uint64_t low, high; /* page-aligned span of all segments */
    uint64_t entry, phdr, phnum;
    unsigned count;
    struct segment segments[ELF_MAX_SEGMENTS];
};

/* `head` is the first `length` bytes of the file. */
bool elf_parse(const uint8_t *head, size_t length, const char *path, struct elf *out, struct reason *why);
/* Where in the file the path of the program's interpreter stands. */
bool elf_find_interpreter(const uint8_t *head, size_t length, const char *path, uint64_t *offset, uint64_t *bytes,
                          struct reason *why);

struct strings {
    const char *const *items;
    size_t count;
};

struct initial {
    const char *interpreter; /* argv[0] of ld.so; the program's own argv follows it */
    struct strings argv, env, more_env;
    const uint64_t *auxv; /* type, value pairs, without AT_NULL */
    size_t auxv_pairs;
    uint8_t random[16];
};

struct stack {
    uint64_t pointer;
    uint64_t arg_start, arg_end, env_start, env_end; /* what /proc/PID/cmdline and environ show */
    uint64_t auxv, auxv_bytes;
};

/* The initial stack of the System V ABI, written below `top` and not below `low`. */
bool stack_build(char *low, char *top, const struct initial *initial, struct stack *out, struct reason *why);

/* The gaps that `keep` leaves in [0, top): sorts and merges `keep`; at most kept + 1 ranges come out. */
size_t gaps(struct range *keep, size_t kept, uint64_t top, struct range *out);

/* One mapping of /proc/PID/maps at a time, from bytes in pieces of any size. */
struct maps_scan {
    char line[160]; /* the range and a short name in brackets; longer lines are file paths, of no interest */
    size_t length;
};
typedef void maps_visit(void *context, struct range mapping, const char *line);
void maps_feed(struct maps_scan *scan, const char *bytes, size_t count, maps_visit *visit, void *context);

/* Field `number` (from 1) of /proc/PID/stat; 0 when there is none. The name in brackets may hold anything. */
uint64_t stat_field(const char *text, unsigned number);

/* ---- ram.c ---- */

struct birth { /* read before main: after -runas or -chroot /proc is out of reach */
    char library[4096];
    dev_t library_dev;
    ino_t library_ino;
    struct range vdso;
    uint64_t start_brk;
    uint64_t auxv[128];
    size_t auxv_pairs;
    int control_fd;
    uid_t owner;
};

struct ram {
    struct range range;
    uint64_t generation;
    bool merging;
};

const struct birth *birth(void);
struct ram ram_now(void);
bool ram_before_fork(struct reason *why); /* RAM is all there; no huge pages from here on */
bool ram_merge(bool on, struct reason *why);
bool maps_each(maps_visit *visit, void *context);
bool ram_hold(void);      /* in a zygote; false when there is none */
void ram_born_again(void);

/* ---- fork.c ---- */

/* What the child says before it leaps, or of what kept it from leaping. */
struct report {
    int step, error;
};
enum step { STEP_LEAP, STEP_DESCRIPTORS, STEP_SIGNALS };

struct forked {
    pid_t pid;
    int pidfd;
    uint64_t fork_ns;
    int report; /* read end: what became of the child */
    uint64_t since_ns;
};

uint64_t now_ns(void);
bool forget_rseq(void); /* for the calling thread, once */
/* Forks. The caller closes pidfd, and calls fork_confirm, which closes report. */
bool fork_start(const struct request *request, const int *fds, struct forked *out, struct reason *why);
bool fork_confirm(struct forked *forked, uint64_t *leap_ns, struct reason *why);

/* A pipe whose write end lies above every descriptor that the child will be given. */
bool report_pipe(int ends[2], struct reason *why);

/* The child's part; raw system calls only, and negative errors. */
long place_descriptors(int *fds, unsigned count, int report);
long reset_signals(void);
void describe(struct range code, const struct stack *stack, const char *name);
_Noreturn void give_up(int report, enum step step, long error);

/* ---- zygote.c ---- */

/* Whether this program waits before main, and can be forked there. */
bool zygote_is_fit(void);
/* As fork_start. Returns in the parent only. */
bool zygote_fork(const struct request *request, const int *fds, struct forked *out, struct reason *why);

/* ---- server.c ---- */

bool server_start(void);
void server_run(void);   /* in this thread; returns when nothing more can be served */
void server_forget(void); /* in a child: of its parent's connections */

#endif
