/* Connects to a fork socket and prints the text of the first answer that comes unasked, or "silence". */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char answer[4096];
    int s = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    if (argc < 2) return 1;
    strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
    if (connect(s, (struct sockaddr *)&address, sizeof address)) return perror("connect"), 1;
    if (poll(&(struct pollfd){.fd = s, .events = POLLIN}, 1, 500) == 0) return puts("silence"), 0;
    ssize_t n = recv(s, answer, sizeof answer, 0);
    if (n > 64) printf("%.*s\n", (int)n - 64, answer + 64);
    return 0;
}
