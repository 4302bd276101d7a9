/* Holds a moment's RAM: maps it, does nothing, and lets the library serve forks of it. Ended by a signal. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int main(void) {
    const char *fd = getenv("VMFORK_RAM_FD");
    int (*version)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "vmfork_version");
    struct stat file;
    if (!fd || !version || !version()) {
        fputs("vmfork-holder: runs under the vmfork library only; alone it would hold nothing\n", stderr);
        return 2;
    }
    if (fstat(atoi(fd), &file)) return perror("vmfork-holder: VMFORK_RAM_FD"), 1;
    if (mmap(NULL, (size_t)file.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(fd), 0) == MAP_FAILED)
        return perror("vmfork-holder: mmap"), 1;
    for (;;) pause();
}
