/* A zygote: the program over forked RAM, dynamically linked and with its constructors run, that waits before main.
 *
 * Linking QEMU takes a fifth of its start, and leaves 5 MiB that are the same in every process. A zygote does it once;
 * each of its forks goes on to main with arguments, environment and descriptors of its own, and shares the rest.
 *
 * It is a plain fork, not a leap, so the child must be what a child of fork(3) is. fork(3) itself cannot be used, for
 * the child has to be the daemon's (CLONE_PARENT). So the zygote has one thread (constructors that begin others only
 * leave a note: QEMU's call_rcu), the handlers of pthread_atfork are kept and called here (GnuTLS forgets its random
 * numbers in one, QEMU begins its thread anew in another), and the kernel is told of the child's thread id and robust
 * list. The address space is laid out as the zygote's; the stack's canary is the child's own. */
#include <dlfcn.h>
#include <errno.h>
#include <linux/sched.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

#define EXPORT __attribute__((visibility("default")))

enum { MAX_HANDLERS = 64, MAX_HELD = 8 };

typedef int main_function(int, char **, char **);
typedef int start_function(main_function *, int, char **, void (*)(void), void (*)(void), void (*)(void), void *);
typedef int thread_function(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
typedef int atfork_function(void (*)(void), void (*)(void), void (*)(void), void *);

struct handlers {
    void (*prepare)(void), (*parent)(void), (*child)(void);
};

struct held_thread {
    void *(*run)(void *);
    void *argument;
};

/* Arguments and environment of a child: pointers, then all strings in the order in which /proc shows them. */
struct calling {
    size_t bytes;
    char **argv, **env;
    int argc;
    struct stack shown;
};

static enum { UNKNOWN, ORDINARY, ZYGOTE, BORN } role; /* ORDINARY and BORN: nothing here does anything any more */
static struct {
    main_function *main;
    const char *program;
    struct handlers handlers[MAX_HANDLERS];
    struct held_thread held[MAX_HELD];
    unsigned handler_count, held_count, begun;
    pid_t *thread_id; /* where libc keeps it */
    void *robust_list;
    size_t robust_bytes;
    bool fit;
} zygote;

static bool waits(void) {
    if (role == UNKNOWN) role = getenv("VMFORK_ZYGOTE") && getenv("VMFORK_RAM_FD") ? ZYGOTE : ORDINARY;
    return role == ZYGOTE;
}

bool zygote_is_fit(void) { return role == ZYGOTE && zygote.fit; }

/* ---- before main ---- */

EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    static thread_function *real;
    if (waits()) {
        if (zygote.held_count < MAX_HELD) zygote.held[zygote.held_count] = (struct held_thread){run, argument};
        zygote.held_count++;
        *thread = pthread_self();
        return 0;
    }
    if (!real) real = (thread_function *)dlsym(RTLD_NEXT, "pthread_create");
    zygote.begun++;
    return real(thread, attributes, run, argument);
}

EXPORT int __register_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void), void *object) {
    atfork_function *real = (atfork_function *)dlsym(RTLD_NEXT, "__register_atfork");
    if (waits()) {
        if (zygote.handler_count < MAX_HANDLERS)
            zygote.handlers[zygote.handler_count] = (struct handlers){prepare, parent, child};
        zygote.handler_count++;
    }
    return real(prepare, parent, child, object);
}

/* Whether a child can be made what a child of fork(3) is: else this serves ordinary forks, as a holder does. */
static bool look_at_oneself(void) {
    if (prctl(PR_GET_TID_ADDRESS, &zygote.thread_id) || !zygote.thread_id || *zygote.thread_id != gettid()) return false;
    if (syscall(SYS_get_robust_list, 0, &zygote.robust_list, &zygote.robust_bytes)) return false;
    return zygote.handler_count <= MAX_HANDLERS && zygote.held_count <= MAX_HELD;
}

/* What QEMU does in main before it looks at its arguments, and that they do not change: it describes to itself the 1,500
 * types of things that it can make. Both functions are there for its modules, and doing it again is nothing to them. */
static void describe_types(void) {
    enum { MODULE_INIT_QOM = 3 };
    void (*call_init)(int) = (void (*)(int))dlsym(RTLD_DEFAULT, "module_call_init");
    void *(*get_list)(const char *, bool) = (void *(*)(const char *, bool))dlsym(RTLD_DEFAULT, "object_class_get_list");
    if (!call_init || !get_list) return;
    call_init(MODULE_INIT_QOM);
    get_list("machine", false);
}

static int wait_before_main(int argc, char **argv, char **env) {
    struct reason why;
    (void)argc, (void)env;
    zygote.program = argv[0];
    if (!ram_hold()) return fputs("vmfork: a zygote that was not forked holds nothing\n", stderr), 126;
    if (!ram_before_fork(&why)) return fprintf(stderr, "vmfork: %s\n", why.text), 126;
    zygote.fit = look_at_oneself();
    if (zygote.fit) describe_types();
    server_run();
    return 1;
}

/* A program that was linked before glibc 2.34 brings its own `init`, which the newer function does not call. */
EXPORT int __libc_start_main(main_function *main, int argc, char **argv, void (*init)(void), void (*fini)(void),
                             void (*rtld_fini)(void), void *stack_end) {
    static const char name[] = "__libc_start_main";
    start_function *real = (start_function *)(init ? dlvsym(RTLD_NEXT, name, "GLIBC_2.2.5") : dlsym(RTLD_NEXT, name));
    if (waits()) zygote.main = main, main = wait_before_main;
    return real(main, argc, argv, init, fini, rtld_fini, stack_end);
}

/* ---- what the child is called with ---- */

static size_t bytes_of(const char *const *strings, unsigned count) {
    size_t n = 0;
    for (unsigned i = 0; i < count; i++) n += strlen(strings[i]) + 1;
    return n;
}

static char *copy(char *at, const char *const *strings, unsigned count, char **pointers) {
    for (unsigned i = 0; i < count; i++) {
        size_t n = strlen(strings[i]) + 1;
        pointers[i] = memcpy(at, strings[i], n);
        at += n;
    }
    pointers[count] = NULL;
    return at;
}

static bool calling_open(const struct request *request, struct calling *calling, struct reason *why) {
    size_t pointers = (request->argc + request->envc + 2) * sizeof(char *);
    calling->bytes = page_up(pointers + bytes_of(request->argv, request->argc) + bytes_of(request->env, request->envc));
    void *block = mmap(NULL, calling->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return refuse(why, errno, "arguments for the child");
    calling->argc = (int)request->argc;
    calling->argv = block;
    calling->env = calling->argv + request->argc + 1;
    char *strings = (char *)block + pointers;
    char *middle = copy(strings, request->argv, request->argc, calling->argv);
    char *end = copy(middle, request->env, request->envc, calling->env);
    calling->shown = (struct stack){.pointer = (uint64_t)__builtin_frame_address(0), .arg_start = (uint64_t)strings,
                                    .arg_end = (uint64_t)middle, .env_start = (uint64_t)middle, .env_end = (uint64_t)end};
    return true;
}

/* ---- the child ---- */

static void begin_held_threads(void) {
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_t thread;
    if (zygote.begun >= zygote.held_count) return; /* a handler has done it */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (unsigned i = 0; i < zygote.held_count; i++)
        if (pthread_create(&thread, &attributes, zygote.held[i].run, zygote.held[i].argument)) _exit(126);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Frames above this one keep the zygote's canary, and none of them is returned to. */
static _Noreturn __attribute__((noinline)) void call_main(const struct calling *calling, uint64_t canary) {
    arch_set_canary(canary);
    exit(zygote.main(calling->argc, calling->argv, calling->env));
}

static _Noreturn void born(const struct calling *calling, const char *name, int *fds, unsigned count, int report) {
    struct report ready = {STEP_LEAP, 0};
    uint64_t canary = 0, leap = (uint64_t)zygote.main;
    long r;
    raw_syscall(SYS_set_robust_list, (long)zygote.robust_list, zygote.robust_bytes, 0, 0, 0, 0);
    if ((r = place_descriptors(fds, count, report)) < 0) give_up(report, STEP_DESCRIPTORS, r);
    describe((struct range){page_down(leap), page_down(leap) + ARCH_PAGE}, &calling->shown, name);
    if ((r = reset_signals()) < 0) give_up(report, STEP_SIGNALS, r);
    environ = calling->env;
    server_forget();
    ram_born_again();
    role = BORN;
    for (unsigned i = 0; i < zygote.handler_count; i++)
        if (zygote.handlers[i].child) zygote.handlers[i].child();
    begin_held_threads();
    if (getrandom(&canary, sizeof canary, GRND_NONBLOCK) != sizeof canary) give_up(report, STEP_SIGNALS, -errno);
    raw_syscall(SYS_write, report, (long)&ready, sizeof ready, 0, 0, 0);
    raw_syscall(SYS_close, report, 0, 0, 0, 0, 0);
    call_main(calling, canary);
}

/* ---- the zygote ---- */

/* The id where libc keeps it is the child's from the start, and cleared at its end, as fork(3) has it. */
static long fork_plainly(int *pidfd) {
    long flags = CLONE_PARENT | CLONE_PIDFD | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD;
    return raw_syscall(SYS_clone, flags, 0, (long)pidfd, (long)zygote.thread_id, 0, 0);
}

static long fork_between_handlers(int *pidfd) {
    for (unsigned i = zygote.handler_count; i-- > 0;)
        if (zygote.handlers[i].prepare) zygote.handlers[i].prepare();
    long pid = fork_plainly(pidfd);
    for (unsigned i = 0; pid && i < zygote.handler_count; i++)
        if (zygote.handlers[i].parent) zygote.handlers[i].parent();
    return pid;
}

bool zygote_fork(const struct request *request, const int *given, struct forked *out, struct reason *why) {
    struct calling calling;
    int ends[2], fds[VMFORK_MAX_FDS];
    char name[VMFORK_MAX_NAME + 1] = "";
    memcpy(fds, given, request->fdc * sizeof *fds);
    memcpy(name, request->name, strlen(request->name));
    if (strcmp(request->argv[0], zygote.program)) return refuse(why, -1, "this is a zygote of %s", zygote.program);
    if (!calling_open(request, &calling, why)) return false;
    bool ok = report_pipe(ends, why);
    if (ok) {
        out->since_ns = now_ns();
        long pid = fork_between_handlers(&out->pidfd);
        if (pid == 0) born(&calling, name, fds, request->fdc, ends[1]);
        out->fork_ns = now_ns() - out->since_ns;
        out->pid = (pid_t)pid, out->report = ends[0];
        close(ends[1]);
        if (pid < 0) close(ends[0]), ok = refuse(why, (int)-pid, "fork");
    }
    munmap(calling.argv, calling.bytes);
    return ok;
}
