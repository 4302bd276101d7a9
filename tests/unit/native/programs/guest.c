/* A stand-in for QEMU: maps its RAM as a shared file at a fixed place inside a reservation, as QEMU does, then answers
 * commands, one a line, on its standard input and output (see main). */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned char *ram;
static size_t size;
static volatile unsigned long hammered;

void tell_constructors(void) __attribute__((weak)); /* constructors.c */

static void *hammer(void *unused) {
    for (unsigned n = 1;; n++) {
        char *p = malloc(1 + n * 7919 % 300000); /* arenas, and mmap for the large ones */
        FILE *f = n % 64 ? NULL : fopen("/dev/null", "w");
        p[0] = 1;
        if (f) fprintf(f, "%u", n), fclose(f);
        free(p);
        hammered++;
    }
    return unused;
}

static int count_maps(void) {
    int lines = 0, c;
    FILE *f = fopen("/proc/self/maps", "r");
    while ((c = getc(f)) != EOF) lines += c == '\n';
    fclose(f);
    return lines;
}

static unsigned long sum(void) {
    unsigned long total = 0;
    for (size_t i = 0; i < size; i++) total += ram[i];
    return total;
}

static int map_ram(const char *path) {
    struct stat file;
    int fd = open(path, O_RDWR);
    if (fd < 0 || fstat(fd, &file)) return 0;
    size = file.st_size;
    char *room = mmap(NULL, size + (2 << 20), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    room = (char *)(((uintptr_t)room + (2 << 20) - 1) & ~(uintptr_t)((2 << 20) - 1));
    ram = mmap(room, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    if (ram == MAP_FAILED) return 0;
    madvise(ram, size, MADV_DONTFORK);
    madvise(ram, size, MADV_HUGEPAGE);
    return mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED; /* a second view cannot be given */
}

int main(int argc, char **argv) {
    char line[256], word[32], path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%s", getenv("VMFORK_RAM_FD"));
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!map_ram(path)) return perror("map"), 3;
    printf("ready %d %s\n", argc, argv[argc - 1]);
    while (fgets(line, sizeof line, stdin)) {
        unsigned long a = 0, b = 0;
        sscanf(line, "%31s %lu %lu", word, &a, &b);
        if (!strcmp(word, "put")) ram[a] = (unsigned char)b, puts("ok");
        else if (!strcmp(word, "get")) printf("%u\n", ram[a]);
        else if (!strcmp(word, "sum")) printf("%lu\n", sum());
        else if (!strcmp(word, "fill")) {
            for (size_t i = 0; i < size; i += 4096) ram[i]++;
            puts("ok");
        } else if (!strcmp(word, "discard")) printf("%d\n", madvise(ram + a, 4096, MADV_REMOVE));
        else if (!strcmp(word, "poison")) printf("%d\n", mmap(ram + a, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, atoi(getenv("VMFORK_RAM_FD")), a) == ram + a);
        else if (!strcmp(word, "split")) printf("%d\n", mprotect(ram + a, 4096, PROT_READ));
        else if (!strcmp(word, "unmap")) printf("%d\n", munmap(ram + a, 4096));
        else if (!strcmp(word, "heap")) printf("%d\n", sbrk((long)a) != (void *)-1);
        else if (!strcmp(word, "brk")) printf("%lx\n", (unsigned long)sbrk(0));
        else if (!strcmp(word, "maps")) printf("%d\n", count_maps());
        else if (!strcmp(word, "many-maps")) {
            for (unsigned long i = 0; i < a; i++) /* alternating rights keep neighbours apart */
                mmap(NULL, 4096, i % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            puts("ok");
        } else if (!strcmp(word, "hammer")) {
            pthread_t t;
            while (a--) pthread_create(&t, NULL, hammer, NULL);
            puts("ok");
        } else if (!strcmp(word, "hammered")) printf("%lu\n", hammered);
        else if (!strcmp(word, "env")) puts(getenv("GREETING") ? getenv("GREETING") : "");
        else if (!strcmp(word, "preload")) puts(getenv("LD_PRELOAD") ? "set" : "unset");
        else if (!strcmp(word, "constructors")) tell_constructors();
        else if (!strcmp(word, "canary")) {
            unsigned long canary;
            __asm__("mov %%fs:0x28, %0" : "=r"(canary));
            printf("%lx\n", canary);
        } else if (!strcmp(word, "self")) printf("%d %d %d\n", getpid(), gettid(), raise(0));
        else if (!strcmp(word, "exit")) return (int)a;
        else printf("what? %s\n", word);
    }
    return 0;
}
