/* All that is x86-64 in the library, with leap_x86_64.S. Another architecture is another such pair. */
#ifndef VMFORK_ARCH_H
#define VMFORK_ARCH_H

#include <elf.h>
#include <stdint.h>

#define ARCH_ELF_MACHINE EM_X86_64
#define ARCH_PLATFORM "x86_64"
#define ARCH_PAGE 4096ul
#define ARCH_TOP 0x7ffffffff000ul /* end of user space with four-level tables; more is given only on request */

/* A system call without libc: no errno (it lives in memory that is about to go), no cancellation point. */
static inline long raw_syscall(long number, long a, long b, long c, long d, long e, long f) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* Shadow stacks are per thread and go with the mappings: the fresh ld.so starts without one, as after execve. */
static inline void arch_forget_thread(void) {
    enum { SYSCALL_ARCH_PRCTL = 158, SHSTK_DISABLE = 0x5002, SHSTK = 1 };
    raw_syscall(SYSCALL_ARCH_PRCTL, SHSTK_DISABLE, SHSTK, 0, 0, 0, 0);
}

/* What stack protectors compare with: in the thread's control block, its lowest byte 0 so that no string passes it. */
static inline void arch_set_canary(uint64_t random) {
    __asm__ volatile("mov %0, %%fs:0x28" : : "r"(random & ~0xfful) : "memory");
}

#endif
