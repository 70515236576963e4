/* dlsym, dlvsym and dlopen, as they are exported. The C library finds out by the return address who
 * asks: RTLD_NEXT means "behind that library", and a library is looked for where that one says. A
 * wrapper in C would make every caller look like this library, so that a program that chains a
 * function of its own to the next one calls itself for ever. Hence: ask symbols_answer, and unless it
 * has the address, jump to the real function with everything as the caller left it, but for the flags
 * of dlopen. */

#ifndef XCUDA_UNDER_TEST

    .macro EXPORTED name
    .size \name, . - \name
    .globl own_\name
    .hidden own_\name
    .set own_\name, \name
    .endm

#if defined(__x86_64__)

/* Three arguments are kept: that dlsym has two does no harm. */
    .macro THUNK name, answer
    .text
    .globl \name
    .type \name, %function
    .hidden \answer
    .p2align 4
\name:
    .cfi_startproc
    endbr64
    pushq %rdi
    .cfi_adjust_cfa_offset 8
    pushq %rsi
    .cfi_adjust_cfa_offset 8
    pushq %rdx
    .cfi_adjust_cfa_offset 8
    call \answer
    movq %rdx, %r11
    popq %rdx
    .cfi_adjust_cfa_offset -8
    popq %rsi
    .cfi_adjust_cfa_offset -8
    popq %rdi
    .cfi_adjust_cfa_offset -8
    testq %r11, %r11
    jnz 1f
    ret
1:  jmp *%r11
    .cfi_endproc
    EXPORTED \name
    .endm

    .text
    .globl dlopen
    .type dlopen, %function
    .hidden symbols_load
    .p2align 4
dlopen:
    .cfi_startproc
    endbr64
    pushq %rdi
    .cfi_adjust_cfa_offset 8
    movl %esi, %edi
    call symbols_load
    popq %rdi
    .cfi_adjust_cfa_offset -8
    movl %eax, %esi
    jmp *%rdx
    .cfi_endproc

#elif defined(__aarch64__)

    .macro THUNK name, answer
    .text
    .globl \name
    .type \name, %function
    .hidden \answer
    .p2align 4
\name:
    .cfi_startproc
    hint #34 /* bti c */
    stp x29, x30, [sp, #-48]!
    .cfi_def_cfa_offset 48
    .cfi_offset 29, -48
    .cfi_offset 30, -40
    stp x0, x1, [sp, #16]
    str x2, [sp, #32]
    mov x29, sp
    bl \answer
    mov x3, x0
    mov x16, x1
    ldp x0, x1, [sp, #16]
    ldr x2, [sp, #32]
    ldp x29, x30, [sp], #48
    .cfi_restore 29
    .cfi_restore 30
    .cfi_def_cfa_offset 0
    cbnz x16, 1f
    mov x0, x3
    ret
1:  br x16
    .cfi_endproc
    EXPORTED \name
    .endm

    .text
    .globl dlopen
    .type dlopen, %function
    .hidden symbols_load
    .p2align 4
dlopen:
    .cfi_startproc
    hint #34 /* bti c */
    stp x29, x30, [sp, #-32]!
    .cfi_def_cfa_offset 32
    .cfi_offset 29, -32
    .cfi_offset 30, -24
    str x0, [sp, #16]
    mov x29, sp
    mov w0, w1
    bl symbols_load
    mov x16, x1
    mov w1, w0
    ldr x0, [sp, #16]
    ldp x29, x30, [sp], #32
    .cfi_restore 29
    .cfi_restore 30
    .cfi_def_cfa_offset 0
    br x16
    .cfi_endproc

#else
#error "dlsym has no thunk for this processor"
#endif

    EXPORTED dlopen
    THUNK dlsym, symbols_answer
    THUNK dlvsym, symbols_answer_versioned

#endif

    .section .note.GNU-stack, "", %progbits
