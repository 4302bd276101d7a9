/* The thread that serves requests. One poll loop: a packet is there whole or not at all, and answers that do not fit
 * into a peer's buffer close it, so nobody can hold up the others. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

enum { MAX_PEERS = 16, THREAD_STACK = 256 << 10, EMFILE_PAUSE_MS = 100 };

struct peer {
    int fd;
    uint64_t used_ns;
};

struct server {
    struct peer peers[MAX_PEERS];
    unsigned count;
    uint64_t forks;
    bool can_fork;
    struct request request;
    char packet[VMFORK_MAX_PACKET];
};

static struct server server; /* its thread's alone; too large for that thread's stack */

/* ---- answers ---- */

static bool send_reply(int fd, struct vmfork_reply reply, const char *text, int pidfd) {
    reply.magic = VMFORK_MAGIC, reply.version = VMFORK_VERSION, reply.length = (uint32_t)strlen(text);
    struct iovec parts[] = {{&reply, sizeof reply}, {(void *)text, reply.length}};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (pidfd >= 0) {
        message.msg_control = control.bytes, message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &pidfd, sizeof pidfd);
    }
    return sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0;
}

static bool send_reason(int fd, enum vmfork_answer kind, const struct reason *why) {
    return send_reply(fd, (struct vmfork_reply){.kind = kind, .error = why->error}, why->text, -1);
}

static bool serve_query(int fd) {
    struct ram ram = ram_now();
    struct vmfork_reply reply = {.kind = VMFORK_IS,
                                 .values = {ram.range.start, ram.range.end - ram.range.start, ram.generation, server.forks,
                                            VMFORK_ZYGOTES | (ram.merging ? VMFORK_MERGING : 0), (uint64_t)getpid()}};
    return send_reply(fd, reply, "", -1);
}

static bool serve_merge(int fd, const struct request *request) {
    struct reason why;
    if (!ram_merge(request->value, &why)) return send_reason(fd, VMFORK_MERGED, &why);
    return send_reply(fd, (struct vmfork_reply){.kind = VMFORK_MERGED, .values = {request->value ? VMFORK_MERGING : 0}}, "", -1);
}

static bool serve_fork(int fd, const struct request *request, const int *fds) {
    struct forked forked;
    struct reason why;
    uint64_t leap_ns;
    bool zygote = zygote_is_fit();
    if (!zygote && !server.can_fork) {
        refuse(&why, -1, "the restartable sequence of this libc cannot be unregistered");
        return send_reason(fd, VMFORK_FORKED, &why);
    }
    if (!(zygote ? zygote_fork : fork_start)(request, fds, &forked, &why)) return send_reason(fd, VMFORK_FORKED, &why);
    server.forks++;
    struct vmfork_reply reply = {.kind = VMFORK_FORKED, .values = {(uint64_t)forked.pid, forked.fork_ns}};
    bool told = send_reply(fd, reply, "", forked.pidfd);
    if (!told) syscall(SYS_pidfd_send_signal, forked.pidfd, SIGKILL, NULL, 0); /* nobody would ever know of it */
    close(forked.pidfd);
    bool left = fork_confirm(&forked, &leap_ns, &why);
    if (!told) return false;
    if (!left) return send_reason(fd, VMFORK_LEAPT, &why);
    return send_reply(fd, (struct vmfork_reply){.kind = VMFORK_LEAPT, .values = {leap_ns}}, "", -1);
}

/* ---- requests ---- */

/* The descriptors that came with a packet. Whatever came is closed by the caller, wanted or not. */
static size_t take_descriptors(struct msghdr *message, int *fds, size_t most) {
    size_t n = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count && n < most; i++) memcpy(&fds[n++], CMSG_DATA(c) + i * sizeof(int), sizeof(int));
    }
    return n;
}

static bool serve_packet(int fd, const struct msghdr *message, size_t length, const int *fds, size_t fdc) {
    struct reason why;
    if (message->msg_flags & MSG_TRUNC) {
        refuse(&why, EMSGSIZE, "a request has at most %d bytes", VMFORK_MAX_PACKET);
        return send_reason(fd, VMFORK_REFUSED, &why);
    }
    if (message->msg_flags & MSG_CTRUNC) {
        refuse(&why, EMFILE, "not all descriptors could be received");
        return send_reason(fd, VMFORK_REFUSED, &why);
    }
    struct request *request = &server.request;
    if (!request_parse(server.packet, length, fdc, request, &why)) return send_reason(fd, VMFORK_REFUSED, &why);
    switch (request->verb) {
        case VMFORK_QUERY: return serve_query(fd);
        case VMFORK_MERGE: return serve_merge(fd, request);
        default: return serve_fork(fd, request, fds);
    }
}

/* False when the peer is to be closed. */
static bool serve_peer(int fd) {
    enum { KERNEL_MAX_FDS = 253 };
    int fds[KERNEL_MAX_FDS];
    union {
        char bytes[CMSG_SPACE(KERNEL_MAX_FDS * sizeof(int)) + CMSG_SPACE(64)];
        struct cmsghdr align;
    } control;
    struct iovec part = {server.packet, sizeof server.packet};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t length = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (length < 0) return errno == EAGAIN || errno == EINTR;
    size_t fdc = take_descriptors(&message, fds, KERNEL_MAX_FDS);
    bool keep = length > 0 && serve_packet(fd, &message, (size_t)length, fds, fdc);
    for (size_t i = 0; i < fdc; i++) close(fds[i]);
    return keep;
}

/* ---- peers ---- */

static bool allowed(int fd, struct reason *why) {
    struct ucred who;
    socklen_t size = sizeof who;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size)) return refuse(why, errno, "who are you");
    if (who.uid == 0 || who.uid == getuid() || who.uid == birth()->owner) return true;
    return refuse(why, EPERM, "user %u is not the owner of this VM", who.uid);
}

static void drop_peer(unsigned i) {
    close(server.peers[i].fd);
    server.peers[i] = server.peers[--server.count];
}

static void drop_idlest(void) {
    unsigned idlest = 0;
    for (unsigned i = 1; i < server.count; i++)
        if (server.peers[i].used_ns < server.peers[idlest].used_ns) idlest = i;
    drop_peer(idlest);
}

/* False when the listener is of no use any more. */
static bool accept_peer(int listener) {
    struct reason why;
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS))
        return poll(NULL, 0, EMFILE_PAUSE_MS) >= 0; /* the caller stays in the queue: do not spin */
    if (fd < 0) return errno != EBADF && errno != EINVAL && errno != ENOTSOCK && errno != EOPNOTSUPP;
    if (!allowed(fd, &why)) {
        send_reason(fd, VMFORK_REFUSED, &why);
        close(fd);
        return true;
    }
    if (server.count == MAX_PEERS) drop_idlest();
    server.peers[server.count++] = (struct peer){fd, now_ns()};
    return true;
}

static void serve_ready(const struct pollfd *ready, unsigned count) {
    for (unsigned i = count; i-- > 0;) { /* downwards: drop_peer moves the last one */
        if (!ready[i].revents) continue;
        server.peers[i].used_ns = now_ns();
        if (!serve_peer(server.peers[i].fd)) drop_peer(i);
    }
}

void server_run(void) {
    int listener = birth()->control_fd;
    server.can_fork = zygote_is_fit() || forget_rseq();
    fcntl(listener, F_SETFL, fcntl(listener, F_GETFL) | O_NONBLOCK);
    for (;;) {
        struct pollfd waiting[1 + MAX_PEERS] = {{.fd = listener, .events = POLLIN}};
        unsigned count = server.count;
        for (unsigned i = 0; i < count; i++) waiting[1 + i] = (struct pollfd){.fd = server.peers[i].fd, .events = POLLIN};
        if (poll(waiting, 1 + count, -1) < 0 && errno != EINTR) break;
        serve_ready(waiting + 1, count);
        if (waiting[0].revents && !accept_peer(listener)) break;
    }
    fprintf(stderr, "vmfork: no more forks can be served: %s\n", strerror(errno));
}

void server_forget(void) { server.count = 0, server.forks = 0; }

static void *serve(void *unused) {
    prctl(PR_SET_NAME, "vmfork");
    server_run();
    return unused;
}

/* Signals are the program's business: its thread is none of its own, so nothing may be delivered there. */
bool server_start(void) {
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;
    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, THREAD_STACK);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, &attributes, serve, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    errno = error;
    return error == 0;
}
