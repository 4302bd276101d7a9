/* Runs the library's pure functions over cases from standard input, built with sanitizers. A case is a letter, a number
 * and a count (uint32 each) and so many bytes, copied to a block of exactly that size, so that one byte too far is
 * caught. One line of answer for each:
 *
 *   r  request that came with `number` descriptors     -> verb value argc envc fdc name argv... env... (hex), or no REASON
 *   e  ELF header                                      -> interpreter OFFSET BYTES, or no; program ..., or no
 *   s  stack of `number` bytes for the strings given   -> what a program would find on it, or no REASON
 *   g  gaps below `number` pages, ranges as uint64     -> START-END... in hex
 *   m  /proc/PID/maps, fed in pieces of `number` bytes -> START-END NAME...
 *   t  /proc/PID/stat, field `number`                  -> VALUE
 */
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static void print_hex(const char *string) {
    putchar(' ');
    for (; *string; string++) printf("%02x", (unsigned char)*string);
    putchar('.');
}

static bool print_no(const struct reason *why) {
    printf("no %d %.*s", why->error, (int)sizeof why->text, why->text);
    return false;
}

static void try_request(const char *bytes, size_t count, unsigned number) {
    static struct request r;
    struct reason why;
    if (!request_parse(bytes, count, number, &r, &why)) return (void)print_no(&why);
    printf("%u %u %u %u %u", r.verb, r.value, r.argc, r.envc, r.fdc);
    if (r.verb != VMFORK_FORK) return;
    print_hex(r.name);
    for (unsigned i = 0; i < r.argc; i++) print_hex(r.argv[i]);
    for (unsigned i = 0; i < r.envc; i++) print_hex(r.env[i]);
}

static void try_elf(const char *bytes, size_t count) {
    struct reason why;
    struct elf elf;
    uint64_t offset, size;
    if (!elf_find_interpreter((const uint8_t *)bytes, count, "it", &offset, &size, &why)) print_no(&why);
    else printf("interpreter %lu %lu", offset, size);
    printf("; ");
    if (!elf_parse((const uint8_t *)bytes, count, "it", &elf, &why)) return (void)print_no(&why);
    for (unsigned i = 0; i < elf.count; i++) {
        struct segment s = elf.segments[i];
        if (s.start < elf.low || s.mem_end > elf.high || s.file_end > s.mem_end || s.start > s.file_end) abort();
    }
    printf("program %lx %lx %lx %lx %u", elf.low, elf.high, elf.entry, elf.phdr, elf.count);
}

/* As ld.so reads it: everything is found by walking up from the stack pointer. */
static void print_stack(const struct stack *s, const char *low, const char *top) {
    const uint64_t *word = (const uint64_t *)s->pointer;
    if (s->pointer % 16 || s->pointer < (uint64_t)low || s->env_end > (uint64_t)top) abort();
    uint64_t argc = *word++;
    printf("%lu", argc);
    for (uint64_t i = 0; i < argc; i++) print_hex((const char *)*word++);
    if (*word++) abort();
    for (; *word; word++) print_hex((const char *)*word);
    word++;
    if ((uint64_t)word != s->auxv) abort();
    for (; word[0] != AT_NULL; word += 2) {
        if (word[0] == AT_EXECFN || word[0] == AT_PLATFORM) printf(" %lu=%s", word[0], (const char *)word[1]);
        else if (word[0] == AT_RANDOM) printf(" %lu=%02x", word[0], *(const uint8_t *)word[1]);
        else printf(" %lu=%lu", word[0], word[1]);
    }
    if ((uint64_t)(word + 2) != s->auxv + s->auxv_bytes || (const char *)(word + 2) > top) abort();
    printf(" | ");
    for (const char *c = (const char *)s->arg_start; c < (const char *)s->env_end; c++) putchar(*c ? *c : '~');
}

/* The strings up to an empty one are arguments, the rest is environment. */
static void try_stack(const char *bytes, size_t count, unsigned number) {
    enum { MOST = 64 };
    const char *argv[MOST], *env[MOST], *const more[] = {"MORE=1"};
    size_t argc = 0, envc = 0;
    bool in_env = false;
    for (const char *s = bytes; s < bytes + count; s += strlen(s) + 1)
        if (!*s) in_env = true;
        else if (in_env && envc < MOST) env[envc++] = s;
        else if (!in_env && argc < MOST) argv[argc++] = s;
    const uint64_t auxv[] = {AT_PAGESZ, 4096, AT_RANDOM, 1, AT_PLATFORM, 1, AT_EXECFN, 1};
    struct initial initial = {.interpreter = "/ld.so", .argv = {argv, argc}, .env = {env, envc}, .more_env = {more, 1},
                              .auxv = auxv, .auxv_pairs = 4, .random = {0xab}};
    struct reason why;
    struct stack out;
    number &= ~15u;
    char *low = malloc(number ? number : 1);
    if (stack_build(low, low + number, &initial, &out, &why)) print_stack(&out, low, low + number);
    else print_no(&why);
    free(low);
}

static void try_gaps(const char *bytes, size_t count, unsigned number) {
    size_t kept = count / sizeof(struct range);
    struct range *keep = malloc(count ? count : 1), *out = malloc((kept + 1) * sizeof *out);
    memcpy(keep, bytes, kept * sizeof *keep);
    size_t n = gaps(keep, kept, (uint64_t)number * ARCH_PAGE, out);
    for (size_t i = 0; i < n; i++) printf("%lx-%lx ", out[i].start, out[i].end);
    free(keep), free(out);
}

static void print_mapping(void *context, struct range mapping, const char *line) {
    (void)context;
    const char *name = strchr(line, '[');
    printf("%lx-%lx %s ", mapping.start, mapping.end, name ? name : "");
}

static void try_maps(const char *bytes, size_t count, unsigned number) {
    struct maps_scan scan = {.length = 0};
    for (size_t at = 0, n; at < count; at += n) {
        n = number && count - at > number ? number : count - at;
        maps_feed(&scan, bytes + at, n, print_mapping, NULL);
    }
}

int main(void) {
    uint32_t head[3];
    while (fread(head, sizeof head, 1, stdin) == 1) {
        char *bytes = malloc(head[2] ? head[2] : 1);
        if (head[2] && fread(bytes, head[2], 1, stdin) != 1) return 1;
        switch (head[0]) {
            case 'r': try_request(bytes, head[2], head[1]); break;
            case 'e': try_elf(bytes, head[2]); break;
            case 's': try_stack(bytes, head[2], head[1]); break;
            case 'g': try_gaps(bytes, head[2], head[1]); break;
            case 'm': try_maps(bytes, head[2], head[1]); break;
            case 't': printf("%lu", stat_field(bytes, head[1])); break;
            default: return 1;
        }
        putchar('\n');
        free(bytes);
    }
    fflush(stdout);
    return 0;
}
