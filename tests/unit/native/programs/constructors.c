/* What QEMU and its libraries do before main, in small: a thread begun by a constructor and begun anew by a handler
 * after a fork, and a thread that nobody begins anew. Linked into the guest program. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static volatile int renewed, lasting, forks;

static void *note(void *flag) {
    ++*(volatile int *)flag;
    return NULL;
}

static void begin(volatile int *flag) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, note, (void *)flag)) abort();
}

static void after_fork(void) {
    forks++;
    if (getenv("BEGIN_ANEW")) begin(&renewed);
}

__attribute__((constructor)) static void before_main(void) {
    pthread_atfork(NULL, NULL, after_fork);
    begin(&lasting);
}

/* How often the handler ran, and how many threads of either kind did. */
void tell_constructors(void) {
    for (int i = 0; i < 2000 && !renewed && !lasting; i++) usleep(1000);
    usleep(20000);
    printf("%d %d %d\n", forks, renewed, lasting);
}
