/* The exported functions of launches in assembler, for hooks.py to instantiate: what the compiler
 * spends on moving arguments out of the way and back is more than what there is to be done. Here
 * they stay where they are. */
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

/* Offsets in struct thread, struct lane, struct estimate and CUlaunchConfig. */
#define STUB_SELF_NAMES       0
#define STUB_SELF_LANES       64
#define STUB_SELF_LIVES       128
#define STUB_LANE_LAUNCHING   0
#define STUB_LANE_ONCE        0x40000000 /* LANE_ONCE */
#define STUB_LANE_LAUNCHES    4
#define STUB_LANE_OPEN_TO     8
#define STUB_LANE_DEVICE_WORD 16
#define STUB_LANE_JOB_WORD    24
#define STUB_LANE_CREDIT      32
#define STUB_LANE_MEAN        40
#define STUB_LANE_WORKS       48
#define STUB_ESTIMATE_WORK    0
#define STUB_ESTIMATE_COST    8
#define STUB_ESTIMATE_MEAN    16
#define STUB_ESTIMATE_SHIFT   6 /* log2 of its size */
#define STUB_PLACE_SHIFT      52
#define STUB_CONFIG_STREAM    32

#if defined(__ASSEMBLER__) && STUBS
/* clang-format off */

    .hidden attention
    .hidden self
    .hidden beacon_streams
    .hidden beacon_slot
    .hidden gate_device_word
    .hidden gate_job_word
    .hidden estimates
    .hidden launch_failed
    .hidden hook_real

    .section .rodata.cst8, "aM", %progbits, 8
    .p2align 3
.Lfactor_1:
    .quad 0x9e3779b97f4a7c15
.Lfactor_2:
    .quad 0xd6e8feb86659fd93
.Lfactor_3:
    .quad 0x4d0a2bbe35b3010f

    .section .data.rel.ro.local, "aw", %progbits
    .p2align 3
.Lestimates:
    .quad estimates

/* Registers: a callee may change %rax, %r10 and %r11, and no argument uses them.
 *
 *   name    of the function
 *   stream  where the argument is
 *   own     1: NULL is the thread's own stream */

    .macro FUNCTION name
    .text
    .globl \name
    .type \name, %function
    .hidden slow_\name
    .p2align 4
\name:
    .cfi_startproc
    .endm

    .macro END name
    .cfi_endproc
    .size \name, . - \name
    .endm

/* CUlaunchConfig may be missing, and with it the stream. */
    .macro STREAM name, stream
    .ifc \stream, STUB_CONFIG
    testq %rdi, %rdi
    jz slow_\name
    movq STUB_CONFIG_STREAM(%rdi), %rax
    .else
    movq \stream, %rax
    .endif
    .endm

/* What `observed` of hooks.py says in C. */
    .macro OBSERVE name, index, stream, own
    STREAM \name, \stream
    .if \own
    movq self@gottpoff(%rip), %r10
    addq %fs:0, %r10
    testq %rax, %rax
    cmovzq %r10, %rax
    .endif
    movq %rax, %r10
    shrq $7, %r10
    xorl %eax, %r10d
    andl $((STUB_STREAMS - 1) << STUB_SHIFT), %r10d
    leaq beacon_streams(%rip), %r11
    addq %r11, %r10
    cmpq %rax, (%r10)
    jne slow_\name
    lock addq $1, STUB_LAUNCHED(%r10)
    movq beacon_slot(%rip), %r11
    lock addq $1, STUB_LAUNCHED(%r11)
    jmpq *(hook_real + 8 * \index)(%rip)
    .endm

/* A launch of which only the beacon's part is here. */
    .macro STUB name, index, stream, own
    FUNCTION \name
    .hidden gated_\name
    testl $STUB_BEACON_BIT, attention(%rip)
    jz gated_\name
    OBSERVE \name, \index, \stream, \own
    END \name
    .endm

    .macro WORK_KERNEL
    imull $0x297a2d39, %ecx, %eax
    addl %edx, %eax
    imull $0x2c1b3c6d, %eax, %eax
    addl %esi, %eax
    imulq .Lfactor_2(%rip), %rax
    xorq %rdi, %rax
    imulq .Lfactor_1(%rip), %rax
    .endm

    .macro WORK_CONFIGURED
    imull $0x297a2d39, 8(%rdi), %eax
    addl 4(%rdi), %eax
    imull $0x2c1b3c6d, %eax, %eax
    addl (%rdi), %eax
    imulq .Lfactor_2(%rip), %rax
    xorq %rsi, %rax
    imulq .Lfactor_1(%rip), %rax
    .endm

    .macro WORK_GRAPH
    movq .Lfactor_3(%rip), %rax
    imulq %rdi, %rax
    orq $1, %rax
    .endm

    .macro WORK_SIZED kind, bytes, times
    .if \times == 1
    cvtsi2sdq \bytes, %xmm0
    .else
    imulq $\times, \bytes, %rax
    cvtsi2sdq %rax, %xmm0
    .endif
    movq %xmm0, %rax
    shrq $49, %rax
    leaq \kind(, %rax, 4), %rax
    imulq .Lfactor_3(%rip), %rax
    orq $1, %rax
    .endm

/* A launch of which the short way is here, too: what launch_enter says in C.
 *
 *   stack  number of arguments on the stack, which the driver must find there, too. Where it is
 *          odd, the lane is kept in the place of the last one, which is ours; where it is even, in
 *          a place of its own: so the stack pointer is aligned.
 *   work   one of WORK_... */
    .macro LAUNCH name, index, stream, own, stack, work:vararg
    FUNCTION \name
    cmpl $0, attention(%rip)
    jne 9f
    STREAM \name, \stream
    .if \own
    addq $2, %rax
    .endif
    imull $0x9e3779b1, %eax, %r10d
    shrl $29, %r10d
    movq self@gottpoff(%rip), %r11
    cmpq %rax, %fs:STUB_SELF_NAMES(%r11, %r10, 8)
    jne slow_\name
    movq %fs:STUB_SELF_LIVES(%r11, %r10, 8), %rax
    movq %fs:STUB_SELF_LANES(%r11, %r10, 8), %r10
    lock addl $STUB_LANE_ONCE, STUB_LANE_LAUNCHING(%r10)
    js 8f
    cmpq %rax, STUB_LANE_OPEN_TO(%r10)
    jne 8f
    movq gate_device_word(%rip), %rax
    movq (%rax), %rax
    cmpq %rax, STUB_LANE_DEVICE_WORD(%r10)
    jne 8f
    movq gate_job_word(%rip), %rax
    movq (%rax), %rax
    cmpq %rax, STUB_LANE_JOB_WORD(%r10)
    jne 8f
    \work
    movq %rax, %r11
    shrq $(STUB_PLACE_SHIFT - STUB_ESTIMATE_SHIFT), %r11
    andl $(((1 << (64 - STUB_PLACE_SHIFT)) - 1) << STUB_ESTIMATE_SHIFT), %r11d
    addq .Lestimates(%rip), %r11
    cmpq %rax, STUB_ESTIMATE_WORK(%r11)
    jne 8f
    addq %rax, STUB_LANE_WORKS(%r10)
    movq STUB_ESTIMATE_COST(%r11), %rax
    subq %rax, STUB_LANE_CREDIT(%r10)
    js 7f
    movq STUB_ESTIMATE_MEAN(%r11), %rax
    addq %rax, STUB_LANE_MEAN(%r10)
    addl $1, STUB_LANE_LAUNCHES(%r10)
    .if (\stack) & 1
    .rept \stack
    pushq (8 * \stack)(%rsp)
    .cfi_adjust_cfa_offset 8
    .endr
    movq %r10, (16 * \stack)(%rsp)
    call *(hook_real + 8 * \index)(%rip)
    movq (16 * \stack)(%rsp), %r10
    subl $STUB_LANE_ONCE, STUB_LANE_LAUNCHING(%r10)
    addq $(8 * \stack), %rsp
    .cfi_adjust_cfa_offset -(8 * \stack)
    .else
    pushq %r10
    .cfi_adjust_cfa_offset 8
    .rept \stack
    pushq (8 * \stack + 8)(%rsp)
    .cfi_adjust_cfa_offset 8
    .endr
    call *(hook_real + 8 * \index)(%rip)
    .if \stack
    addq $(8 * \stack), %rsp
    .cfi_adjust_cfa_offset -(8 * \stack)
    .endif
    popq %r10
    .cfi_adjust_cfa_offset -8
    subl $STUB_LANE_ONCE, STUB_LANE_LAUNCHING(%r10)
    .endif
    testl %eax, %eax
    jnz 6f
    ret
6:  movl $\index, %edi
    movl %eax, %esi
    jmp launch_failed
7:  addq %rax, STUB_LANE_CREDIT(%r10)
    movq STUB_ESTIMATE_WORK(%r11), %rax
    subq %rax, STUB_LANE_WORKS(%r10)
8:  subl $STUB_LANE_ONCE, STUB_LANE_LAUNCHING(%r10)
    jmp slow_\name
9:  testl $STUB_BEACON_BIT, attention(%rip)
    jz slow_\name
    OBSERVE \name, \index, \stream, \own
    END \name
    .endm

/* clang-format on */
#endif

#endif
