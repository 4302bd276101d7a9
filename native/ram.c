/* Guest RAM: private anonymous memory where the program believes that it maps a shared file.
 *
 * QEMU must believe "shared, named file": only then does the migration capability x-ignore-shared leave the RAM out
 * of the device state, while every other RAM block (VGA memory, option ROMs) still travels. The file itself is never
 * touched: it is a sparse memfd that gives the RAM a name.
 *
 *   VMFORK_RAM_FD      the memfd; a mapping of the same (device, inode), by whatever descriptor, is guest RAM
 *   VMFORK_CONTROL_FD  a listening AF_UNIX SOCK_SEQPACKET socket, see vmfork.h
 *   VMFORK_OWNER_UID   the user, beside root and the process's own, whose requests are served
 *   VMFORK_INHERIT     from parent to child only: address, bytes, generation, merging; hexadecimal
 *   VMFORK_ZYGOTE      1: wait before main, and serve forks that go on from there, see zygote.c
 *
 * Without VMFORK_RAM_FD the library does nothing.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

#define EXPORT __attribute__((visibility("default")))

static struct birth born;
static bool active;
static dev_t ram_dev;
static ino_t ram_ino;

static pthread_mutex_t mapping = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint64_t ram_start, ram_end; /* both 0 until the program maps its RAM */
static _Atomic bool huge_pages = true, merging;
static struct range inherited; /* until the program adopts it */
static uint64_t generation;

const struct birth *birth(void) { return &born; }

struct ram ram_now(void) { return (struct ram){{ram_start, ram_end}, generation, merging}; }

/* ---- at birth ---- */

static _Noreturn __attribute__((format(printf, 1, 2))) void die(const char *format, ...) {
    va_list list;
    va_start(list, format);
    fputs("vmfork: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    _exit(126);
}

bool maps_each(maps_visit *visit, void *context) {
    struct maps_scan scan = {.length = 0};
    char piece[4096];
    ssize_t n;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    while ((n = read(fd, piece, sizeof piece)) > 0) maps_feed(&scan, piece, n, visit, context);
    close(fd);
    return n == 0;
}

/* The vDSO cannot be mapped again by a program, so a child keeps its parent's. It and its data are neighbours. */
static void find_vdso(void *context, struct range mapping_, const char *line) {
    struct range *vdso = context;
    if (!strstr(line, " [vdso]") && !strstr(line, " [vvar")) return;
    if (!vdso->end || mapping_.start < vdso->start) vdso->start = mapping_.start;
    if (mapping_.end > vdso->end) vdso->end = mapping_.end;
}

static void read_stat(void) {
    enum { START_BRK = 47 };
    char text[2048];
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    if (n <= 0) die("/proc/self/stat cannot be read: %s", strerror(errno));
    text[n] = 0;
    born.start_brk = stat_field(text, START_BRK);
}

/* getauxval knows this program's own vector; /proc/self/auxv may still show an ancestor's. */
static void read_auxv(void) {
    enum { LAST_TYPE = 63 };
    for (uint64_t type = 1; type <= LAST_TYPE; type++) {
        errno = 0;
        uint64_t value = getauxval(type);
        if ((!value && errno) || type == AT_IGNORE || type == AT_EXECFD || type == AT_BASE_PLATFORM) continue;
        born.auxv[2 * born.auxv_pairs] = type;
        born.auxv[2 * born.auxv_pairs++ + 1] = value;
    }
}

static void read_own_path(void) {
    Dl_info info;
    struct stat file;
    char path[PATH_MAX];
    if (!dladdr(&born, &info) || !realpath(info.dli_fname, path) || stat(path, &file))
        die("the library does not find itself: %s", strerror(errno));
    memcpy(born.library, path, sizeof born.library);
    born.library_dev = file.st_dev, born.library_ino = file.st_ino;
}

static long env_number(const char *name) {
    const char *text = getenv(name);
    char *end;
    if (!text || !*text) die("%s is not set", name);
    long value = strtol(text, &end, 10);
    if (*end || value < 0 || value > INT32_MAX) die("%s is no number: %s", name, text);
    return value;
}

static void read_inheritance(void) {
    const char *text = getenv("VMFORK_INHERIT");
    unsigned long address, bytes, generations, merge;
    if (!text) return;
    if (sscanf(text, "%lx %lx %lx %lx", &address, &bytes, &generations, &merge) != 4)
        die("VMFORK_INHERIT is damaged: %s", text);
    inherited = (struct range){address, address + bytes};
    generation = generations;
    merging = merge != 0;
    huge_pages = false;
    /* Nothing else of a clone's is worth 2 MiB at a touch either: QEMU asks for huge pages for translated code and for
     * its firmware, and each would be cleared whole. Inherited by forks. */
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
}

/* What the one that started this program handed to it, by the environment. */
static void read_handed(void) {
    struct stat file;
    int ram_fd = (int)env_number("VMFORK_RAM_FD");
    born.control_fd = (int)env_number("VMFORK_CONTROL_FD");
    born.owner = (uid_t)env_number("VMFORK_OWNER_UID");
    if (fstat(ram_fd, &file) || !S_ISREG(file.st_mode)) die("VMFORK_RAM_FD=%d is no file", ram_fd);
    ram_dev = file.st_dev, ram_ino = file.st_ino;
    /* Programs that this one starts are neither VMs nor to be loaded with this library. */
    unsetenv("LD_PRELOAD");
    unsetenv("VMFORK_INHERIT");
    fcntl(ram_fd, F_SETFD, FD_CLOEXEC);
    fcntl(born.control_fd, F_SETFD, FD_CLOEXEC);
}

__attribute__((constructor)) static void start(void) {
    if (!getenv("VMFORK_RAM_FD")) return;
    read_own_path();
    read_auxv();
    read_stat();
    if (!maps_each(find_vdso, &born.vdso)) die("/proc/self/maps cannot be read: %s", strerror(errno));
    read_inheritance();
    read_handed();
    active = true;
}

/* A zygote maps no RAM: it keeps what it inherited where it is. */
bool ram_hold(void) {
    ram_end = inherited.end;
    ram_start = inherited.start;
    return active && inherited.end;
}

/* In a child of a zygote: RAM is there to be adopted, as after a leap, and `environ` is the child's own. */
void ram_born_again(void) {
    inherited = (struct range){ram_start, ram_end};
    ram_start = ram_end = 0;
    generation++;
    read_handed();
}

/* The holder asks, to know that it holds something. */
EXPORT int vmfork_version(void) { return active ? VMFORK_VERSION : 0; }

/* ---- mapping ---- */

static void *result(long value) {
    if (value >= 0 || value < -4095) return (void *)value;
    errno = (int)-value;
    return MAP_FAILED;
}

static void *fail(int error) {
    errno = error;
    return MAP_FAILED;
}

static void *map_anonymous(void *address, size_t bytes, int prot, int flags) {
    flags = (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_POPULATE)) | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    return result(raw_syscall(SYS_mmap, (long)address, bytes, prot, flags, -1, 0));
}

struct move {
    struct range from;
    uint64_t to;
    struct range pieces[64];
    unsigned count;
};

static void find_piece(void *context, struct range mapping_, const char *line) {
    struct move *move = context;
    (void)line;
    if (mapping_.end <= move->from.start || mapping_.start >= move->from.end) return;
    if (mapping_.start < move->from.start) mapping_.start = move->from.start;
    if (mapping_.end > move->from.end) mapping_.end = move->from.end;
    if (move->count < 64) move->pieces[move->count] = mapping_;
    move->count++;
}

static bool move_one(const struct move *move, struct range piece) {
    uint64_t bytes = piece.end - piece.start, to = move->to + (piece.start - move->from.start);
    return raw_syscall(SYS_mremap, piece.start, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to, 0) == (long)to;
}

/* Moves page tables, no pages. Linux before 6.17 moves one mapping at a time, and the ancestor may have split its
 * RAM by advice on a part of it. */
static bool move_ram(struct range from, uint64_t to) {
    struct move move = {.from = from, .to = to};
    if (move_one(&move, from)) return true;
    if (!maps_each(find_piece, &move) || move.count > 64) return false;
    for (unsigned i = 0; i < move.count; i++)
        if (!move_one(&move, move.pieces[i])) return false;
    return true;
}

static void *adopt(void *address, size_t bytes, int prot, int flags) {
    struct range from = inherited;
    if (page_up(bytes) != from.end - from.start) {
        fprintf(stderr, "vmfork: %zu bytes of RAM were asked for, %zu were inherited\n", bytes,
                (size_t)(from.end - from.start));
        return fail(EINVAL);
    }
    if (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) {
        if (!move_ram(from, (uint64_t)address)) {
            fprintf(stderr, "vmfork: the inherited RAM could not be moved to %p\n", address);
            return fail(ENOMEM);
        }
        from = (struct range){(uint64_t)address, (uint64_t)address + page_up(bytes)};
    }
    if (mprotect((void *)from.start, from.end - from.start, prot)) return MAP_FAILED;
    inherited = (struct range){0, 0};
    return (void *)from.start;
}

static void *first_mapping(void *address, size_t bytes, int prot, int flags, off_t offset) {
    if (offset) return fail(EINVAL);
    void *p = inherited.end ? adopt(address, bytes, prot, flags) : map_anonymous(address, bytes, prot, flags);
    if (p == MAP_FAILED) return p;
    ram_end = (uint64_t)p + page_up(bytes);
    ram_start = (uint64_t)p;
    if (server_start()) return p;
    fprintf(stderr, "vmfork: no thread could be started: %s\n", strerror(errno));
    return fail(EAGAIN);
}

/* QEMU maps a page of its RAM afresh after a memory error. Any other second mapping would have to show the same
 * bytes as the first, and private memory cannot. */
static void *second_mapping(void *address, size_t bytes, int prot, int flags) {
    uint64_t at = (uint64_t)address;
    if (!(flags & MAP_FIXED) || at < ram_start || at + page_up(bytes) > ram_end) return fail(EBUSY);
    return map_anonymous(address, bytes, prot, flags);
}

static bool is_ram(int fd) {
    struct stat file;
    return active && fd >= 0 && !fstat(fd, &file) && file.st_ino == ram_ino && file.st_dev == ram_dev;
}

EXPORT void *mmap64(void *address, size_t bytes, int prot, int flags, int fd, off_t offset) {
    if ((flags & MAP_ANONYMOUS) || !is_ram(fd)) return result(raw_syscall(SYS_mmap, (long)address, bytes, prot, flags, fd, offset));
    pthread_mutex_lock(&mapping);
    void *p = ram_start ? second_mapping(address, bytes, prot, flags) : first_mapping(address, bytes, prot, flags, offset);
    pthread_mutex_unlock(&mapping);
    return p;
}

EXPORT void *mmap(void *address, size_t bytes, int prot, int flags, int fd, off_t offset) __attribute__((alias("mmap64")));

/* ---- advice ---- */

/* What to do with advice on guest RAM: another advice, or -1 for nothing.
 *
 * QEMU keeps RAM out of forks with DONTFORK, which is the opposite of what is wanted here. REMOVE drops pages of shared
 * memory, and private memory does not know it. (QEMU itself punches a hole into the file, which does no harm, and then
 * says DONTNEED: ram_block_discard_range, 7.2 to 10.) Huge pages: from the first
 * fork on, the first write to one costs its clone 2 MiB, and khugepaged would undo sharing by collapsing. Merging is
 * the daemon's to decide, for it knows no borders between VMs. */
static int advice_for_ram(int advice) {
    switch (advice) {
        case MADV_DONTFORK: return -1;
        case MADV_MERGEABLE: return merging ? advice : -1;
        case MADV_HUGEPAGE: return huge_pages ? advice : -1;
        case MADV_REMOVE: return MADV_DONTNEED;
        default: return advice;
    }
}

EXPORT int madvise(void *address, size_t bytes, int advice) {
    uint64_t at = (uint64_t)address;
    if (ram_end && at < ram_end && at + bytes > ram_start) advice = advice_for_ram(advice);
    if (advice < 0) return 0;
    return result(raw_syscall(SYS_madvise, at, bytes, advice, 0, 0, 0)) == MAP_FAILED ? -1 : 0;
}

static long advise_all(int advice) {
    return raw_syscall(SYS_madvise, ram_start, ram_end - ram_start, advice, 0, 0, 0);
}

/* Unmerging copies every merged page while the kernel holds the address space's lock, which stops the guest at its next
 * fault: piece by piece, it runs in between. Neighbours of like flags become one mapping again. */
static long unmerge_all(void) {
    enum { PIECE = 16 << 20 };
    for (uint64_t at = ram_start; at < ram_end; at += PIECE) {
        uint64_t bytes = ram_end - at < PIECE ? ram_end - at : PIECE;
        long r = raw_syscall(SYS_madvise, at, bytes, MADV_UNMERGEABLE, 0, 0, 0);
        if (r) return r;
    }
    return 0;
}

bool ram_before_fork(struct reason *why) {
    huge_pages = false;
    long r = advise_all(MADV_NOHUGEPAGE); /* EINVAL: a kernel without huge pages */
    if (r && r != -EINVAL) return refuse(why, (int)-r, "guest RAM is no longer mapped as it was");
    return true;
}

bool ram_merge(bool on, struct reason *why) {
    long r = on ? advise_all(MADV_MERGEABLE) : unmerge_all();
    if (r) return refuse(why, (int)-r, on ? "page merging on" : "page merging off");
    merging = on;
    return true;
}
