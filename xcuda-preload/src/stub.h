/* The exported functions of launches with arguments on the stack, for hooks.py to instantiate. A
 * compiler moves such arguments to registers and back before it jumps on, which is half of what
 * counting a launch may cost. Here they stay. */
#ifndef XCUDA_STUB_H
#define XCUDA_STUB_H

/* Whether there are stubs: not under a sanitizer's eyes, nor for other processors. */
#if defined(__x86_64__) && !defined(XCUDA_UNDER_TEST)
#define STUBS 1
#else
#define STUBS 0
#endif

#define STUB_STREAMS    64 /* BEACON_STREAMS */
#define STUB_SHIFT      5  /* log2 of a record's size */
#define STUB_LAUNCHED   8  /* offset in a record, and in a slot of the page */
#define STUB_BEACON_BIT 64 /* ATTENTION_BEACON */

#ifdef __ASSEMBLER__
/* clang-format off */

    .hidden attention
    .hidden self
    .hidden beacon_streams
    .hidden beacon_slot
    .hidden hook_real

/* What `observed` of hooks.py says in C, with the registers that a callee may change and no argument
 * uses.
 *
 *   name    of the function
 *   index   of its hook
 *   stream  where the argument lies, from the stack pointer
 *   own     1: NULL is the thread's own stream */
    .macro STUB name, index, stream, own
    .text
    .globl \name
    .type \name, %function
    .hidden gated_\name
    .hidden slow_\name
    .p2align 4
\name:
    .cfi_startproc
    endbr64
    testl $STUB_BEACON_BIT, attention(%rip)
    jz gated_\name
    movq \stream(%rsp), %rax
    .if \own
    movq self@gottpoff(%rip), %r10
    addq %fs:0, %r10
    testq %rax, %rax
    cmovzq %r10, %rax
    .endif
    movq %rax, %r10
    movq %rax, %r11
    shrq $5, %r10
    shrq $12, %r11
    xorl %r11d, %r10d
    andl $(STUB_STREAMS - 1), %r10d
    shll $STUB_SHIFT, %r10d
    leaq beacon_streams(%rip), %r11
    addq %r11, %r10
    cmpq %rax, (%r10)
    jne slow_\name
    lock addq $1, STUB_LAUNCHED(%r10)
    movq beacon_slot(%rip), %r11
    lock addq $1, STUB_LAUNCHED(%r11)
    jmpq *(hook_real + 8 * \index)(%rip)
    .cfi_endproc
    .size \name, . - \name
    .endm

/* clang-format on */
#endif

#endif
