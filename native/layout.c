/* What a fresh program needs in memory, computed: ELF headers, initial stack, what to drop. Pure. */
#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"

/* ---- ELF ---- */

/* The program headers, checked to lie inside `head`; NULL and a reason otherwise. */
static const uint8_t *elf_headers(const uint8_t *head, size_t length, const char *path, Elf64_Ehdr *e,
                                  struct reason *why) {
    if (length < sizeof *e) return refuse(why, -1, "%s is too short for a program", path), NULL;
    memcpy(e, head, sizeof *e);
    if (memcmp(e->e_ident, ELFMAG, SELFMAG) != 0) return refuse(why, -1, "%s is no ELF file", path), NULL;
    if (e->e_ident[EI_CLASS] != ELFCLASS64 || e->e_ident[EI_DATA] != ELFDATA2LSB || e->e_machine != ARCH_ELF_MACHINE)
        return refuse(why, -1, "%s is built for another machine than %s", path, ARCH_PLATFORM), NULL;
    if (e->e_phentsize != sizeof(Elf64_Phdr) || e->e_phoff > length ||
        (uint64_t)e->e_phnum * sizeof(Elf64_Phdr) > length - e->e_phoff)
        return refuse(why, -1, "%s has its program headers out of reach", path), NULL;
    return head + e->e_phoff;
}

static Elf64_Phdr header_at(const uint8_t *headers, unsigned i) {
    Elf64_Phdr p;
    memcpy(&p, headers + i * sizeof p, sizeof p);
    return p;
}

bool elf_find_interpreter(const uint8_t *head, size_t length, const char *path, uint64_t *offset, uint64_t *bytes,
                          struct reason *why) {
    Elf64_Ehdr e;
    const uint8_t *headers = elf_headers(head, length, path, &e, why);
    if (!headers) return false;
    for (unsigned i = 0; i < e.e_phnum; i++) {
        Elf64_Phdr p = header_at(headers, i);
        if (p.p_type != PT_INTERP) continue;
        *offset = p.p_offset, *bytes = p.p_filesz;
        return true;
    }
    return refuse(why, -1, "%s is static: it has no dynamic linker that could load this library into it", path);
}

static int prot_of(uint32_t flags) {
    return (flags & PF_R ? PROT_READ : 0) | (flags & PF_W ? PROT_WRITE : 0) | (flags & PF_X ? PROT_EXEC : 0);
}

static bool add_segment(struct elf *elf, const Elf64_Phdr *p) {
    enum { LIMIT = 1 << 30 }; /* far above any dynamic linker, far below any overflow */
    if (elf->count == ELF_MAX_SEGMENTS || p->p_vaddr > LIMIT || p->p_memsz > LIMIT || p->p_filesz > p->p_memsz) return false;
    if ((p->p_vaddr - p->p_offset) % ARCH_PAGE) return false;
    if (elf->count && page_down(p->p_vaddr) < elf->high) return false;
    struct segment *s = &elf->segments[elf->count++];
    *s = (struct segment){.start = p->p_vaddr, .file_end = p->p_vaddr + p->p_filesz, .mem_end = p->p_vaddr + p->p_memsz,
                          .offset = page_down(p->p_offset), .prot = prot_of(p->p_flags)};
    if (elf->count == 1) elf->low = page_down(s->start);
    elf->high = page_up(s->mem_end);
    return true;
}

bool elf_parse(const uint8_t *head, size_t length, const char *path, struct elf *out, struct reason *why) {
    Elf64_Ehdr e;
    const uint8_t *headers = elf_headers(head, length, path, &e, why);
    if (!headers) return false;
    if (e.e_type != ET_DYN) return refuse(why, -1, "%s is not position-independent", path);
    *out = (struct elf){.entry = e.e_entry, .phnum = e.e_phnum};
    for (unsigned i = 0; i < e.e_phnum; i++) {
        Elf64_Phdr p = header_at(headers, i);
        if (p.p_type != PT_LOAD) continue;
        if (!add_segment(out, &p)) return refuse(why, -1, "%s has segments that cannot be mapped", path);
        if (e.e_phoff >= p.p_offset && e.e_phoff < p.p_offset + p.p_filesz) out->phdr = p.p_vaddr + e.e_phoff - p.p_offset;
    }
    if (!out->count || !out->phdr || out->entry < out->low || out->entry >= out->high)
        return refuse(why, -1, "%s has no place to start at", path);
    return true;
}

/* ---- the initial stack ---- */

static size_t bytes_of(struct strings s) {
    size_t n = 0;
    for (size_t i = 0; i < s.count; i++) n += strlen(s.items[i]) + 1;
    return n;
}

/* Copies the strings upwards from `at`, their addresses into `words`. */
static char *put(char *at, struct strings s, uint64_t **words) {
    for (size_t i = 0; i < s.count; i++) {
        size_t n = strlen(s.items[i]) + 1;
        *(*words)++ = (uint64_t)memcpy(at, s.items[i], n);
        at += n;
    }
    return at;
}

bool stack_build(char *low, char *top, const struct initial *initial, struct stack *out, struct reason *why) {
    const struct strings linker = {&initial->interpreter, 1};
    const struct strings platform = {(const char *const[]){ARCH_PLATFORM}, 1};
    size_t bytes = bytes_of(initial->argv) + bytes_of(initial->env) + bytes_of(initial->more_env) + bytes_of(linker) +
                   bytes_of(platform) + sizeof initial->random;
    size_t words = 1 + 1 + initial->argv.count + 1 + initial->env.count + initial->more_env.count + 1 +
                   2 * (initial->auxv_pairs + 1);
    size_t room = top - low;
    if (bytes + 8 * words + 32 > room) return refuse(why, E2BIG, "arguments and environment");

    char *at = top - bytes; /* the strings, upwards and in the order in which /proc shows them */
    uint64_t *word = (uint64_t *)(((uint64_t)at - 8 * words) & ~15ul), unused[1], *scrap = unused;
    out->pointer = (uint64_t)word;
    *word++ = initial->argv.count + 1;
    uint64_t *argv0 = word++;
    out->arg_start = (uint64_t)at;
    at = put(at, initial->argv, &word);
    *word++ = 0;
    out->arg_end = out->env_start = (uint64_t)at;
    at = put(put(at, initial->env, &word), initial->more_env, &word);
    *word++ = 0;
    out->env_end = *argv0 = (uint64_t)at;
    at = put(at, linker, &argv0);
    uint64_t platform_at = (uint64_t)at, random_at = (uint64_t)(at = put(at, platform, &scrap));
    memcpy(at, initial->random, sizeof initial->random);

    out->auxv = (uint64_t)word;
    for (size_t i = 0; i < initial->auxv_pairs; i++) {
        uint64_t type = initial->auxv[2 * i], value = initial->auxv[2 * i + 1];
        if (type == AT_RANDOM) value = random_at;
        if (type == AT_PLATFORM) value = platform_at;
        if (type == AT_EXECFN) value = out->arg_start;
        *word++ = type, *word++ = value;
    }
    *word++ = AT_NULL, *word++ = 0;
    out->auxv_bytes = (uint64_t)word - out->auxv;
    return true;
}

/* ---- what to drop ---- */

static int by_start(const void *a, const void *b) {
    const struct range *x = a, *y = b;
    return (x->start > y->start) - (x->start < y->start);
}

size_t gaps(struct range *keep, size_t kept, uint64_t top, struct range *out) {
    size_t n = 0;
    uint64_t at = 0;
    qsort(keep, kept, sizeof *keep, by_start);
    for (size_t i = 0; i < kept && keep[i].start < top; i++) {
        if (keep[i].start >= keep[i].end || keep[i].end <= at) continue;
        if (keep[i].start > at) out[n++] = (struct range){at, keep[i].start};
        at = keep[i].end;
    }
    if (at < top) out[n++] = (struct range){at, top};
    return n;
}

/* ---- /proc ---- */

static void maps_line(struct maps_scan *scan, maps_visit *visit, void *context) {
    char *dash, *rest;
    scan->line[scan->length] = 0;
    scan->length = 0;
    struct range mapping = {.start = strtoull(scan->line, &dash, 16)};
    if (*dash != '-') return;
    mapping.end = strtoull(dash + 1, &rest, 16);
    if (*rest == ' ' && mapping.start < mapping.end) visit(context, mapping, scan->line);
}

void maps_feed(struct maps_scan *scan, const char *bytes, size_t count, maps_visit *visit, void *context) {
    for (size_t i = 0; i < count; i++)
        if (bytes[i] == '\n')
            maps_line(scan, visit, context);
        else if (scan->length < sizeof scan->line - 1)
            scan->line[scan->length++] = bytes[i];
}

uint64_t stat_field(const char *text, unsigned number) {
    const char *at = strrchr(text, ')'); /* field 2 ends here */
    for (unsigned field = 2; at && field < number; field++)
        if ((at = strchr(at + 1, ' ')) == NULL) return 0;
    return at && number > 2 ? strtoull(at + 1, NULL, 10) : 0;
}
