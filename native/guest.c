/* What a shell script cannot do for a clone's identity, as one small program that runs inside the guest:
 *
 *     random [FILE]       mix hexadecimal digits from standard input into the kernel's pool, reseed its generator, and
 *                         write the seed for the next boot anew, if there is such a file
 *     clock SEC NSEC      move the wall clock by so much
 *     tcp                 end all TCP connections that leave the machine; prints how many
 *     remove FILE...      remove files, those that are there: rm takes four times as long under emulation
 *     nap SEC             wait, for the same reason
 *
 * Static and without a C library, so that it runs on any Linux guest of this architecture, whatever is installed there.
 * Exit status 0: done; 1: the kernel refused; 2: wrong usage.
 */
#include <linux/fcntl.h>
#include <linux/in.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/random.h>
#include <linux/sock_diag.h>
#include <linux/timex.h>
#include <stddef.h>
#include <sys/syscall.h>

#ifndef RNDRESEEDCRNG
#define RNDRESEEDCRNG _IO('R', 0x07)
#endif
#define AF_INET 2
#define AF_INET6 10
#define AF_NETLINK 16
#define SOCK_RAW 3

/* Kernel's names of TCP states: all but TIME_WAIT (6), CLOSE (7), LISTEN (10) and NEW_SYN_RECV (12) have a program that
 * would wait. */
#define STATES_WANTED (0xfff & ~(1 << 6 | 1 << 7 | 1 << 10))

__asm__(".globl _start\n_start: mov %rsp, %rdi\nandq $-16, %rsp\ncall start\n");

static long call(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

#define CALL3(number, a, b, c) call(number, (long)(a), (long)(b), (long)(c), 0, 0, 0)

/* The compiler makes calls of these out of plain assignments. */
void *memset(void *to, int value, size_t size)
{
    for (size_t i = 0; i < size; i++)
        ((volatile unsigned char *)to)[i] = (unsigned char)value;
    return to;
}

void *memcpy(void *to, const void *from, size_t size)
{
    for (size_t i = 0; i < size; i++)
        ((volatile unsigned char *)to)[i] = ((const unsigned char *)from)[i];
    return to;
}

static int equal(const void *a, const void *b, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (((const unsigned char *)a)[i] != ((const unsigned char *)b)[i])
            return 0;
    return 1;
}

/* Random numbers */

static int digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int reseed(const char *next_boot)
{
    char text[512];
    unsigned char seed[512];
    size_t size = 0;
    long got = CALL3(SYS_read, 0, text, sizeof text);
    for (long i = 0; i + 1 < got && digit(text[i]) >= 0 && digit(text[i + 1]) >= 0; i += 2)
        seed[size++] = (unsigned char)(digit(text[i]) << 4 | digit(text[i + 1]));
    if (size < 32)
        return 2;
    long fd = CALL3(SYS_open, "/dev/urandom", O_RDWR, 0);
    if (fd < 0 || CALL3(SYS_write, fd, seed, size) != (long)size)
        return 1;
    /* Without this the kernel takes the new pool into use at its next turn only, up to a minute later. */
    if (CALL3(SYS_ioctl, fd, RNDRESEEDCRNG, 0) != 0)
        return 1;
    long saved = next_boot ? CALL3(SYS_open, next_boot, O_WRONLY, 0) : -1;
    if (saved >= 0 && CALL3(SYS_read, fd, seed, sizeof seed) == (long)sizeof seed)
        CALL3(SYS_write, saved, seed, sizeof seed);
    return 0;
}

/* Clock */

static int number(const char *text, long *value)
{
    long sign = *text == '-' ? -1 : 1, result = 0;
    if (sign < 0)
        text++;
    if (!*text)
        return 0;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || result > 1L << 48)
            return 0;
        result = result * 10 + (*text - '0');
    }
    *value = sign * result;
    return 1;
}

static int move_clock(const char *seconds, const char *nanoseconds)
{
    struct __kernel_timex change;
    long sec = 0, nsec = 0;
    if (!number(seconds, &sec) || !number(nanoseconds, &nsec))
        return 2;
    memset(&change, 0, sizeof change);
    change.modes = ADJ_SETOFFSET | ADJ_NANO;
    change.time.tv_sec = sec;
    change.time.tv_usec = nsec;
    return CALL3(SYS_adjtimex, &change, 0, 0) < 0;
}

/* TCP connections */

struct question {
    struct nlmsghdr head;
    struct inet_diag_req_v2 body;
};

static long ask(long fd, unsigned short type, unsigned short flags, const struct inet_diag_req_v2 *body)
{
    struct question question;
    memset(&question, 0, sizeof question);
    question.head.nlmsg_len = sizeof question;
    question.head.nlmsg_type = type;
    question.head.nlmsg_flags = NLM_F_REQUEST | flags;
    question.body = *body;
    return CALL3(SYS_write, fd, &question, sizeof question);
}

/* Loopback, and between two addresses of this machine's that are the same: these ends were cloned together. */
static int stays_inside(const struct inet_diag_msg *found)
{
    static const unsigned char mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    static const unsigned char one[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
    const unsigned char *source = (const unsigned char *)found->id.idiag_src;
    if (found->idiag_family == AF_INET)
        return source[0] == 127 || equal(source, found->id.idiag_dst, 4);
    return equal(source, one, 16) || (equal(source, mapped, 12) && source[12] == 127) ||
           equal(source, found->id.idiag_dst, 16);
}

static int destroy(long fd, const struct inet_diag_msg *found)
{
    static struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
        char rest[512];
    } answer;
    struct inet_diag_req_v2 body;
    memset(&body, 0, sizeof body);
    body.sdiag_family = found->idiag_family;
    body.sdiag_protocol = IPPROTO_TCP;
    body.id = found->id;
    if (ask(fd, SOCK_DESTROY, NLM_F_ACK, &body) < 0 || CALL3(SYS_read, fd, &answer, sizeof answer) <= 0)
        return -1;
    return answer.head.nlmsg_type == NLMSG_ERROR ? answer.error.error : -1;
}

/* Those of one address family: how many were ended, or -1. */
static long end_connections(unsigned char family)
{
    static char page[32768] __attribute__((aligned(8)));
    long list = CALL3(SYS_socket, AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG);
    long kill = CALL3(SYS_socket, AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG);
    struct inet_diag_req_v2 body;
    memset(&body, 0, sizeof body);
    body.sdiag_family = family;
    body.sdiag_protocol = IPPROTO_TCP;
    body.idiag_states = STATES_WANTED;
    if (list < 0 || kill < 0 || ask(list, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &body) < 0)
        return -1;
    for (long ended = 0;;) {
        long got = CALL3(SYS_read, list, page, sizeof page);
        if (got <= 0)
            return -1;
        for (struct nlmsghdr *head = (struct nlmsghdr *)page; NLMSG_OK(head, got); head = NLMSG_NEXT(head, got)) {
            if (head->nlmsg_type == NLMSG_DONE)
                return ended;
            if (head->nlmsg_type == NLMSG_ERROR)
                return -1;
            struct inet_diag_msg *found = NLMSG_DATA(head);
            if (stays_inside(found))
                continue;
            int error = destroy(kill, found);
            if (error == 0)
                ended++;
            else if (error != -2) /* ENOENT: it ended by itself meanwhile */
                return -1;
        }
    }
}

static void print(long value)
{
    char text[24];
    size_t at = sizeof text;
    text[--at] = '\n';
    do
        text[--at] = (char)('0' + value % 10);
    while (value /= 10);
    CALL3(SYS_write, 1, text + at, sizeof text - at);
}

/* Whether a table in /proc has a connection: what lists them exactly is a module, whose loading takes long. */
static int any_in(const char *table)
{
    static char text[4096];
    long fd = CALL3(SYS_open, table, O_RDONLY, 0), got;
    int field = 0;
    char before = ' ';
    while (fd >= 0 && (got = CALL3(SYS_read, fd, text, sizeof text)) > 0)
        for (long i = 0; i < got; before = text[i++]) {
            if (text[i] == '\n')
                field = 0;
            else if (text[i] != ' ' && (before == ' ' || before == '\n'))
                field++;
            else if (field == 4 && before == '0' && text[i] != 'A' && text[i] != '6' && text[i] != '7')
                return 1; /* the fourth field is the state, in two hexadecimal digits; 0A is LISTEN */
        }
    return 0;
}

static int end_all(void)
{
    if (!any_in("/proc/net/tcp") && !any_in("/proc/net/tcp6")) {
        print(0);
        return 0;
    }
    long ended = end_connections(AF_INET);
    if (ended < 0)
        return 1;
    long more = end_connections(AF_INET6); /* a kernel may be without */
    print(ended + (more > 0 ? more : 0));
    return 0;
}

static int remove_all(char **names)
{
    int status = 0;
    for (; *names; names++) {
        long error = CALL3(SYS_unlink, *names, 0, 0);
        if (error != 0 && error != -2) /* ENOENT */
            status = 1;
    }
    return status;
}

static int nap(const char *seconds)
{
    long wait[2] = {0, 0}; /* struct timespec */
    if (!number(seconds, &wait[0]) || wait[0] < 0)
        return 2;
    return CALL3(SYS_nanosleep, wait, 0, 0) != 0;
}

static int run(long argc, char **argv)
{
    if ((argc == 2 || argc == 3) && equal(argv[1], "random", 7))
        return reseed(argc == 3 ? argv[2] : 0);
    if (argc == 4 && equal(argv[1], "clock", 6))
        return move_clock(argv[2], argv[3]);
    if (argc == 2 && equal(argv[1], "tcp", 4))
        return end_all();
    if (argc >= 3 && equal(argv[1], "remove", 7))
        return remove_all(argv + 2);
    if (argc == 3 && equal(argv[1], "nap", 4))
        return nap(argv[2]);
    return 2;
}

__attribute__((used)) void start(long *stack)
{
    CALL3(SYS_exit_group, run(stack[0], (char **)(stack + 1)), 0, 0);
    __builtin_unreachable();
}
