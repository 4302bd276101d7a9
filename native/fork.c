/* From a running program to a fork of it that runs another program over the same guest RAM.
 *
 * execve(2) would drop the RAM, so the child enters a fresh dynamic linker by itself. Everything that can fail is
 * done in the parent, where it is reported at leisure: a second ld.so is mapped and the initial stack is built
 * before the fork. The child is left with descriptors, signals and a jump. It was forked from a process with many
 * threads, so the locks of libc may be held for ever: it makes raw system calls only. */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

extern void vmfork_leap(const struct range *drop, size_t count, uint64_t pointer, uint64_t entry);

enum { STACK_MIN = 8 << 20, STACK_MAX = 64 << 20, MAX_DROP = 8, CONFIRM_MS = 10000 };

/* What the child needs, made by the parent. */
struct image {
    struct range linker, stack; /* mapped; the lowest page of the stack is its guard */
    uint64_t entry;
    struct stack initial;
    struct range *drop; /* in the stack's mapping, so that it outlives everything that it names */
    size_t drops;
};

static const char *const step_names[] = {"leap", "placing its descriptors", "resetting its signals"};

uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- parent: the image ---- */

/* Reads up to `bytes` from `offset`; how many came, or -1. */
static ssize_t read_at(int fd, void *to, size_t bytes, off_t offset) {
    size_t got = 0;
    while (got < bytes) {
        ssize_t n = pread(fd, (char *)to + got, bytes - got, offset + (off_t)got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) break;
        got += (size_t)n;
    }
    return (ssize_t)got;
}

/* Opens a program or dynamic linker and reads its head. The caller closes; -1 and a reason. */
static int open_elf(const char *path, uint8_t head[ELF_HEAD], size_t *length, struct reason *why) {
    struct stat file;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return refuse(why, errno, "%s cannot be opened", path), -1;
    if (fstat(fd, &file) == 0 && S_ISREG(file.st_mode)) {
        ssize_t n = read_at(fd, head, ELF_HEAD, 0);
        if (n >= 0) return *length = (size_t)n, fd;
        refuse(why, errno, "%s cannot be read", path);
    } else
        refuse(why, -1, "%s is no regular file", path);
    close(fd);
    return -1;
}

static bool find_linker(const char *program, char linker[PATH_MAX], struct reason *why) {
    uint8_t head[ELF_HEAD];
    size_t length;
    uint64_t offset, bytes;
    int fd = open_elf(program, head, &length, why);
    if (fd < 0) return false;
    bool ok = !access(program, X_OK) || refuse(why, errno, "%s cannot be run", program);
    ok = ok && elf_find_interpreter(head, length, program, &offset, &bytes, why);
    if (ok && (bytes < 2 || bytes > PATH_MAX || read_at(fd, linker, bytes, (off_t)offset) != (ssize_t)bytes ||
               linker[bytes - 1] || linker[0] != '/'))
        ok = refuse(why, -1, "%s names no dynamic linker", program);
    close(fd);
    return ok;
}

static bool map_file(uint64_t at, uint64_t bytes, int prot, int fd, uint64_t offset) {
    return mmap((void *)at, bytes, prot, MAP_PRIVATE | MAP_FIXED, fd, (off_t)offset) != MAP_FAILED;
}

static uint64_t map_fresh(uint64_t at, uint64_t bytes, int prot, int fixed) {
    void *p = mmap((void *)at, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
    return p == MAP_FAILED ? 0 : (uint64_t)p;
}

/* As the kernel maps it. The tail of the last file page must be zero: ld.so's first allocations are made there. */
static bool map_segment(const struct segment *s, uint64_t base, int fd) {
    uint64_t start = base + page_down(s->start), file_end = base + s->file_end, file_pages = page_up(file_end);
    uint64_t mem_pages = page_up(base + s->mem_end);
    if (s->file_end > s->start && !map_file(start, file_end - start, s->prot, fd, s->offset)) return false;
    if (s->file_end == s->start) file_pages = start;
    if ((s->prot & PROT_WRITE) && file_pages > file_end) memset((void *)file_end, 0, file_pages - file_end);
    return mem_pages <= file_pages || map_fresh(file_pages, mem_pages - file_pages, s->prot, MAP_FIXED);
}

static bool map_linker(const char *path, struct image *image, struct elf *elf, struct reason *why) {
    uint8_t head[ELF_HEAD];
    size_t length;
    int fd = open_elf(path, head, &length, why);
    if (fd < 0) return false;
    bool ok = elf_parse(head, length, path, elf, why);
    if (ok) {
        uint64_t at = map_fresh(0, elf->high - elf->low, PROT_NONE, 0);
        ok = at != 0;
        if (ok) image->linker = (struct range){at, at + elf->high - elf->low};
        for (unsigned i = 0; ok && i < elf->count; i++) ok = map_segment(&elf->segments[i], at - elf->low, fd);
        if (!ok) refuse(why, errno, "%s cannot be mapped", path);
    }
    close(fd);
    return ok;
}

static bool map_stack(struct image *image, struct reason *why) {
    struct rlimit limit;
    uint64_t bytes = STACK_MIN;
    if (!getrlimit(RLIMIT_STACK, &limit) && limit.rlim_cur > STACK_MIN)
        bytes = limit.rlim_cur == RLIM_INFINITY ? STACK_MIN : limit.rlim_cur > STACK_MAX ? STACK_MAX : page_up(limit.rlim_cur);
    uint64_t at = map_fresh(0, bytes + ARCH_PAGE, PROT_READ | PROT_WRITE, 0);
    if (!at) return refuse(why, errno, "a stack for the child");
    image->stack = (struct range){at, at + bytes + ARCH_PAGE};
    if (mprotect((void *)at, ARCH_PAGE, PROT_NONE)) return refuse(why, errno, "a guard for the child's stack");
    return true;
}

static uint64_t changed(uint64_t type, uint64_t value, uint64_t base, const struct elf *elf) {
    switch (type) {
        case AT_PHDR: return base + elf->phdr;
        case AT_PHNUM: return elf->phnum;
        case AT_ENTRY: return base + elf->entry; /* ld.so's own: it takes itself for the program, and loads argv[1] */
        case AT_BASE: return 0;
        case AT_UID: return getuid();
        case AT_EUID: return geteuid();
        case AT_GID: return getgid();
        case AT_EGID: return getegid();
        default: return value;
    }
}

/* The library must come along, or the child would run on empty memory: ld.so only warns when it finds none. */
static bool own_environment(char preload[], size_t preload_size, char inherit[], size_t inherit_size, struct reason *why) {
    const struct birth *b = birth();
    struct ram ram = ram_now();
    struct stat file;
    if (stat(b->library, &file)) return refuse(why, errno, "the library %s", b->library);
    if (file.st_dev != b->library_dev || file.st_ino != b->library_ino)
        return refuse(why, -1, "the library %s was replaced since this VM started", b->library);
    if (access(b->library, R_OK)) return refuse(why, errno, "the library %s", b->library);
    snprintf(preload, preload_size, "LD_PRELOAD=%s", b->library);
    snprintf(inherit, inherit_size, "VMFORK_INHERIT=%lx %lx %lx %x", ram.range.start, ram.range.end - ram.range.start,
             ram.generation + 1, ram.merging);
    return true;
}

static size_t without_own(const struct request *request, const char **env) {
    size_t n = 0;
    for (unsigned i = 0; i < request->envc; i++)
        if (strncmp(request->env[i], "LD_PRELOAD=", 11) && strncmp(request->env[i], "VMFORK_INHERIT=", 15))
            env[n++] = request->env[i];
    return n;
}

static bool build_stack(const struct request *request, const char *linker, const struct elf *elf, struct image *image,
                        struct reason *why) {
    static const char *env[VMFORK_MAX_ENV];
    static uint64_t auxv[128];
    static char preload[PATH_MAX + 16], inherit[128];
    const struct birth *b = birth();
    const char *const own[] = {preload, inherit};
    if (!own_environment(preload, sizeof preload, inherit, sizeof inherit, why)) return false;
    uint64_t base = image->linker.start - elf->low;
    for (size_t i = 0; i < b->auxv_pairs; i++) {
        auxv[2 * i] = b->auxv[2 * i];
        auxv[2 * i + 1] = changed(b->auxv[2 * i], b->auxv[2 * i + 1], base, elf);
    }
    struct initial initial = {.interpreter = linker, .argv = {request->argv, request->argc},
                              .env = {env, without_own(request, env)}, .more_env = {own, 2}, .auxv = auxv,
                              .auxv_pairs = b->auxv_pairs};
    if (getrandom(initial.random, sizeof initial.random, 0) != sizeof initial.random)
        return refuse(why, errno, "random bytes for the child");
    char *low = (char *)image->stack.start + ARCH_PAGE + MAX_DROP * sizeof(struct range);
    image->entry = base + elf->entry;
    return stack_build(low, (char *)image->stack.end, &initial, &image->initial, why);
}

static void plan_drops(struct image *image) {
    uint64_t leap = (uint64_t)vmfork_leap;
    struct range keep[] = {ram_now().range, image->linker, image->stack, {leap, leap + ARCH_PAGE}, birth()->vdso};
    image->drop = (struct range *)(image->stack.start + ARCH_PAGE);
    image->drops = gaps(keep, sizeof keep / sizeof *keep, ARCH_TOP, image->drop);
}

static void image_close(struct image *image) {
    if (image->linker.end) munmap((void *)image->linker.start, image->linker.end - image->linker.start);
    if (image->stack.end) munmap((void *)image->stack.start, image->stack.end - image->stack.start);
}

static bool image_open(const struct request *request, struct image *image, struct reason *why) {
    char linker[PATH_MAX];
    struct elf elf;
    *image = (struct image){.entry = 0};
    if (find_linker(request->argv[0], linker, why) && map_linker(linker, image, &elf, why) && map_stack(image, why) &&
        build_stack(request, linker, &elf, image, why)) {
        plan_drops(image);
        return true;
    }
    image_close(image);
    return false;
}

/* ---- child: raw system calls only ---- */

_Noreturn void give_up(int report, enum step step, long error) {
    struct report said = {step, (int)-error};
    raw_syscall(SYS_write, report, (long)&said, sizeof said, 0, 0, 0);
    for (;;) raw_syscall(SYS_exit_group, 127, 0, 0, 0, 0, 0);
}

/* The handed descriptors become 0, 1, 2...; all others close, but for the report, which is above them all. */
long place_descriptors(int *fds, unsigned count, int report) {
    long r;
    for (unsigned i = 0; i < count; i++) {
        if (fds[i] >= VMFORK_MAX_FDS) continue;
        if ((r = raw_syscall(SYS_fcntl, fds[i], F_DUPFD, VMFORK_MAX_FDS, 0, 0, 0)) < 0) return r;
        fds[i] = (int)r;
    }
    for (unsigned i = 0; i < count; i++)
        if ((r = raw_syscall(SYS_dup3, fds[i], i, 0, 0, 0, 0)) < 0) return r;
    if ((r = raw_syscall(SYS_close_range, count, report - 1, 0, 0, 0, 0)) < 0) return r;
    return raw_syscall(SYS_close_range, report + 1, ~0u, 0, 0, 0, 0);
}

/* No setsid here: QEMU's filter kills for it with elevateprivileges=deny. */
long reset_signals(void) {
    struct {
        void *handler;
        unsigned long flags;
        void *restorer;
        unsigned long mask;
    } normal = {0};
    stack_t none = {.ss_flags = SS_DISABLE};
    uint64_t nothing_blocked = 0;
    for (int s = 1; s <= 64; s++) /* KILL and STOP say EINVAL */
        raw_syscall(SYS_rt_sigaction, s, (long)&normal, 0, 8, 0, 0);
    raw_syscall(SYS_sigaltstack, (long)&none, 0, 0, 0, 0, 0);
    return raw_syscall(SYS_rt_sigprocmask, SIG_SETMASK, (long)&nothing_blocked, 0, 8, 0, 0);
}

/* Best effort: /proc/PID/cmdline, environ, auxv show the child's own. A kernel without CONFIG_CHECKPOINT_RESTORE
 * refuses. `code` is any of its mappings. */
void describe(struct range code, const struct stack *s, const char *name) {
    const struct birth *b = birth();
    uint64_t brk = raw_syscall(SYS_brk, 0, 0, 0, 0, 0, 0);
    struct prctl_mm_map map = {.start_code = code.start, .end_code = code.end,
                               .start_data = code.end, .end_data = code.end,
                               .start_brk = b->start_brk ? b->start_brk : brk, .brk = brk, .start_stack = s->pointer,
                               .arg_start = s->arg_start, .arg_end = s->arg_end, .env_start = s->env_start,
                               .env_end = s->env_end, .auxv = (void *)s->auxv, .auxv_size = s->auxv_bytes, .exe_fd = ~0u};
    if (raw_syscall(SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, (long)&map, sizeof map, 0, 0) == -EINVAL) {
        map.auxv = NULL, map.auxv_size = 0; /* this kernel keeps fewer entries */
        raw_syscall(SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, (long)&map, sizeof map, 0, 0);
    }
    raw_syscall(SYS_prctl, PR_SET_NAME, (long)name, 0, 0, 0, 0);
}

static _Noreturn void child(const struct image *image, const char *name, int *fds, unsigned count, int report) {
    struct report ready = {STEP_LEAP, 0};
    long r = place_descriptors(fds, count, report);
    if (r < 0) give_up(report, STEP_DESCRIPTORS, r);
    /* The heap starts where every generation's did, instead of creeping upwards by one heap each. */
    if (birth()->start_brk) raw_syscall(SYS_brk, birth()->start_brk, 0, 0, 0, 0, 0);
    describe(image->linker, &image->initial, name);
    if ((r = reset_signals()) < 0) give_up(report, STEP_SIGNALS, r);
    arch_forget_thread();
    raw_syscall(SYS_write, report, (long)&ready, sizeof ready, 0, 0, 0);
    raw_syscall(SYS_close, report, 0, 0, 0, 0, 0);
    vmfork_leap(image->drop, image->drops, image->initial.pointer, image->entry);
    for (;;) raw_syscall(SYS_exit_group, 127, 0, 0, 0, 0, 0);
}

/* ---- parent: the fork ---- */

/* A child would keep the registration, at an address that is gone: the kernel kills for that. libc does not tell the
 * length that it registered (it changed over time), so try; wrong ones are refused. */
bool forget_rseq(void) {
    extern const ptrdiff_t __rseq_offset __attribute__((weak));
    extern const unsigned __rseq_size __attribute__((weak));
    enum { UNREGISTER = 1, SIGNATURE = 0x53053053, LONGEST = 4096 };
    if (!&__rseq_offset || !&__rseq_size || !__rseq_size) return true;
    char *area = (char *)__builtin_thread_pointer() + __rseq_offset;
    for (unsigned length = 32; length <= LONGEST; length += 4)
        if (!raw_syscall(SYS_rseq, (long)area, length, UNREGISTER, SIGNATURE, 0, 0)) return true;
    return false;
}

/* A pipe whose write end lies above every descriptor that the child will be given. */
bool report_pipe(int ends[2], struct reason *why) {
    if (pipe2(ends, O_CLOEXEC)) return refuse(why, errno, "a pipe to hear of the child");
    int high = fcntl(ends[1], F_DUPFD_CLOEXEC, VMFORK_MAX_FDS + 1);
    int error = errno;
    close(ends[1]);
    if (high < 0) close(ends[0]);
    ends[1] = high;
    return high >= 0 || refuse(why, error, "a descriptor above %d for the child's report", VMFORK_MAX_FDS);
}

/* CLONE_PARENT: the child is a sibling, for QEMU never reaps. Raw, so that no atfork handler of the program runs. */
static long fork_sibling(int *pidfd) {
    return raw_syscall(SYS_clone, CLONE_PARENT | CLONE_PIDFD | SIGCHLD, 0, (long)pidfd, 0, 0, 0);
}

bool fork_start(const struct request *request, const int *given, struct forked *out, struct reason *why) {
    struct image image;
    int ends[2], fds[VMFORK_MAX_FDS];
    char name[VMFORK_MAX_NAME + 1] = "";
    memcpy(fds, given, request->fdc * sizeof *fds);
    memcpy(name, request->name, strlen(request->name));
    if (!image_open(request, &image, why)) return false;
    bool ok = ram_before_fork(why) && report_pipe(ends, why);
    if (ok) {
        out->since_ns = now_ns();
        long pid = fork_sibling(&out->pidfd);
        if (pid == 0) child(&image, name, fds, request->fdc, ends[1]);
        out->fork_ns = now_ns() - out->since_ns;
        out->pid = (pid_t)pid, out->report = ends[0];
        close(ends[1]);
        if (pid < 0) close(ends[0]), ok = refuse(why, (int)-pid, "fork");
    }
    image_close(&image);
    return ok;
}

bool fork_confirm(struct forked *forked, uint64_t *leap_ns, struct reason *why) {
    struct report report;
    struct pollfd waiting = {.fd = forked->report, .events = POLLIN};
    int ready = poll(&waiting, 1, CONFIRM_MS);
    ssize_t n = ready > 0 ? read(forked->report, &report, sizeof report) : 0;
    close(forked->report);
    *leap_ns = now_ns() - forked->since_ns;
    if (ready <= 0) return refuse(why, ETIMEDOUT, "the child %d", forked->pid);
    if (n != sizeof report) return refuse(why, -1, "the child %d was killed before it could start its program", forked->pid);
    if (report.step != STEP_LEAP) return refuse(why, report.error, "the child failed at %s", step_names[report.step]);
    return true;
}
