/* From a packet to a request, or to the reason why it is none. Pure. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

bool refuse(struct reason *why, int error, const char *format, ...) {
    va_list list;
    va_start(list, format);
    int n = vsnprintf(why->text, sizeof why->text, format, list);
    va_end(list);
    why->error = error < 0 ? EINVAL : error;
    if (error > 0 && n >= 0 && (size_t)n < sizeof why->text)
        snprintf(why->text + n, sizeof why->text - n, ": %s", strerror(error));
    return false;
}

/* The next NUL-terminated string of the body, or NULL at its end. */
static const char *take(const char **at, const char *end) {
    const char *string = *at, *zero = memchr(string, 0, end - string);
    if (!zero) return NULL;
    *at = zero + 1;
    return string;
}

static bool parse_fork(const struct vmfork_request *head, const char *at, const char *end, size_t fds,
                       struct request *out, struct reason *why) {
    if (head->argc < 1 || head->argc > VMFORK_MAX_ARGS)
        return refuse(why, -1, "%u arguments where 1 to %d are possible", head->argc, VMFORK_MAX_ARGS);
    if (head->envc > VMFORK_MAX_ENV)
        return refuse(why, -1, "%u environment strings where %d are possible", head->envc, VMFORK_MAX_ENV);
    if (head->fdc < 3 || head->fdc > VMFORK_MAX_FDS)
        return refuse(why, -1, "%u descriptors where 3 to %d are possible", head->fdc, VMFORK_MAX_FDS);
    if (head->fdc != fds) return refuse(why, -1, "%u descriptors announced, %zu came", head->fdc, fds);

    out->argc = head->argc, out->envc = head->envc, out->fdc = head->fdc;
    out->name = take(&at, end);
    if (!out->name) return refuse(why, -1, "the request ends before its name");
    if (!*out->name || strlen(out->name) > VMFORK_MAX_NAME)
        return refuse(why, -1, "the name has %zu bytes where 1 to %d are possible", strlen(out->name), VMFORK_MAX_NAME);
    for (unsigned i = 0; i < out->argc; i++)
        if (!(out->argv[i] = take(&at, end))) return refuse(why, -1, "the request ends before argument %u", i);
    for (unsigned i = 0; i < out->envc; i++)
        if (!(out->env[i] = take(&at, end))) return refuse(why, -1, "the request ends before environment string %u", i);
    if (at != end) return refuse(why, -1, "%zu bytes follow the request", (size_t)(end - at));
    if (out->argv[0][0] != '/') return refuse(why, -1, "the program is not an absolute path");
    return true;
}

bool request_parse(const void *packet, size_t length, size_t fds, struct request *out, struct reason *why) {
    struct vmfork_request head;
    if (length < sizeof head) return refuse(why, -1, "a packet of %zu bytes is no request", length);
    memcpy(&head, packet, sizeof head);
    if (head.magic != VMFORK_MAGIC) return refuse(why, -1, "this is no request: it starts with 0x%08x", head.magic);
    if (head.version != VMFORK_VERSION)
        return refuse(why, -1, "protocol version %u was asked for, %d is spoken here", head.version, VMFORK_VERSION);
    if (head.length != length - sizeof head)
        return refuse(why, -1, "a body of %u bytes announced, %zu came", head.length, length - sizeof head);

    const char *body = (const char *)packet + sizeof head;
    out->verb = head.verb, out->value = head.value;
    out->argc = out->envc = out->fdc = 0;
    if (head.verb == VMFORK_FORK) return parse_fork(&head, body, body + head.length, fds, out, why);
    if (head.verb != VMFORK_QUERY && head.verb != VMFORK_MERGE)
        return refuse(why, -1, "verb %u is not known", head.verb);
    if (fds || head.length) return refuse(why, -1, "verb %u takes no body and no descriptors", head.verb);
    if (head.verb == VMFORK_MERGE && head.value > 1) return refuse(why, -1, "merge is 0 or 1, not %u", head.value);
    return true;
}
