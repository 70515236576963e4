/* dlsym, as it is exported. The C library finds out by the return address who asks, and RTLD_NEXT
 * means "behind that library". A wrapper in C would make every caller look like this library, so
 * that a program that chains a function of its own to the next one calls itself for ever. Hence:
 * ask symbols_answer, and unless it has the address, jump to the real function with everything as
 * the caller left it. */

#ifndef XCUDA_UNDER_TEST

    .text
    .globl dlsym
    .type dlsym, %function
    .hidden symbols_answer

#if defined(__x86_64__)

    .p2align 4
dlsym:
    .cfi_startproc
    endbr64
    pushq %rdi
    .cfi_adjust_cfa_offset 8
    pushq %rsi
    .cfi_adjust_cfa_offset 8
    subq $8, %rsp
    .cfi_adjust_cfa_offset 8
    call symbols_answer
    addq $8, %rsp
    .cfi_adjust_cfa_offset -8
    popq %rsi
    .cfi_adjust_cfa_offset -8
    popq %rdi
    .cfi_adjust_cfa_offset -8
    testq %rdx, %rdx
    jnz 1f
    ret
1:  jmp *%rdx
    .cfi_endproc

#elif defined(__aarch64__)

    .p2align 4
dlsym:
    .cfi_startproc
    hint #34 /* bti c */
    stp x29, x30, [sp, #-32]!
    .cfi_def_cfa_offset 32
    .cfi_offset 29, -32
    .cfi_offset 30, -24
    stp x0, x1, [sp, #16]
    mov x29, sp
    bl symbols_answer
    mov x2, x0
    mov x16, x1
    ldp x0, x1, [sp, #16]
    ldp x29, x30, [sp], #32
    .cfi_restore 29
    .cfi_restore 30
    .cfi_def_cfa_offset 0
    cbnz x16, 1f
    mov x0, x2
    ret
1:  br x16
    .cfi_endproc

#else
#error "dlsym has no thunk for this processor"
#endif

    .size dlsym, . - dlsym

#endif

    .section .note.GNU-stack, "", %progbits
