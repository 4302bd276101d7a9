/* vmfork_leap(ranges, count, stack pointer, entry): munmap each range, then enter the program.
 *
 * It unmaps its caller's stack, heap and code, so it works in registers alone and lies in a page of its own, which is
 * kept. Registers at the entry are as after execve: rdx is 0, "nothing to call at exit". A mapping that cannot be
 * dropped ends the child with status 126: better no VM than one that carries its ancestor's secrets. */
#ifndef __x86_64__
#error "vmfork: this is the x86-64 leap"
#endif

        .section .text.vmfork_leap, "ax", @progbits
        .balign 4096
        .globl  vmfork_leap
        .hidden vmfork_leap
        .type   vmfork_leap, @function
vmfork_leap:
        mov     %rdi, %r12
        mov     %rsi, %r13
        mov     %rdx, %r14
        mov     %rcx, %r15
1:      test    %r13, %r13
        jz      2f
        mov     (%r12), %rdi            /* start */
        mov     8(%r12), %rsi           /* end */
        sub     %rdi, %rsi
        mov     $11, %eax               /* munmap */
        syscall
        test    %rax, %rax
        jnz     3f
        add     $16, %r12
        dec     %r13
        jmp     1b
2:      mov     %r14, %rsp
        mov     %r15, %rax
        xor     %ebx, %ebx
        xor     %ecx, %ecx
        xor     %edx, %edx
        xor     %esi, %esi
        xor     %edi, %edi
        xor     %ebp, %ebp
        xor     %r8d, %r8d
        xor     %r9d, %r9d
        xor     %r10d, %r10d
        xor     %r11d, %r11d
        xor     %r12d, %r12d
        xor     %r13d, %r13d
        xor     %r14d, %r14d
        xor     %r15d, %r15d
        cld
        jmp     *%rax
3:      mov     $126, %edi
        mov     $231, %eax              /* exit_group */
        syscall
        hlt
        .size   vmfork_leap, . - vmfork_leap
        .balign 4096

        .section .note.GNU-stack, "", @progbits
