// Where the processor goes on an exception or an event.
//
// An exception is the end: each stub brings the stack into the form of `Frame` (src/xen-kernel-rt/arch/x86_64/traps.rs)
// and calls Rust, which reports and shuts the domain down. Nothing returns.
//
// An event needs no work here: the main loop looks at the event words itself. It ends `sleep_until_event`, and that is all,
// but for the timer of the watch (src/xen-kernel-rt/watch.rs), which Rust looks at if it interrupts something else. Xen repeats the
// interrupt as long as its word says that events are pending and interrupts are on, so the handler clears that. And
// Xen interrupts for no event whose bit of the selector word is set already: so that the timer always does, the handler takes
// that word away and keeps it for the main loop (src/xen-kernel-rt/events/two_level.rs). Before the watch has begun, and in programs
// without one, the handler returns with interrupts off instead.

// Bit n is set if exception n has no error code: all but 8, 10 to 14, 17, 21, 29 and 30.
.set NO_ERROR_CODE, 0x9fdd82ff

.set RFLAGS_IF,     0x200
.set FRAME_RIP,     0               // what an interrupt pushes, from the stack pointer up:
.set FRAME_RFLAGS,  16              // rip, cs, rflags, rsp, ss
.set PENDING,       2048            // offset of `evtchn_pending` in `struct shared_info`

.section .text.traps, "ax"

// `sti` takes effect behind the next instruction, so an event that is pending already ends the
// `hlt` at once. That holds only if nothing comes between the two: an exit to the hypervisor
// there may lose the delay, and the interrupt then arrives ahead of `hlt`, which with interrupts off
// would stop the vCPU for good. Hence the handler steps over a `hlt` that it would return to.
.global sleep_until_event
.type sleep_until_event, @function
sleep_until_event:
    sti
asleep:
    hlt
awake:
    cli
    ret
.size sleep_until_event, . - sleep_until_event

// Any other place is returned to as it is. That includes the first instruction of this handler: QEMU's
// emulation of SVM (7.2) now and then delivers an injected interrupt twice, one inside the other.
.global event_upcall
.type event_upcall, @function
event_upcall:
    cmp     qword ptr [rip + {trial}], 0
    jne     trial_upcall
    cmp     qword ptr [rsp + FRAME_RIP], offset asleep
    jne     look
    mov     qword ptr [rsp + FRAME_RIP], offset awake
look:
    cmp     qword ptr [rip + {shared}], 0
    je      leave_interrupts_off
    push    rax
    push    rcx
    mov     rax, [rip + {shared}]
    mov     byte ptr [rax], 0               // vcpu_info[0].evtchn_upcall_pending
    xor     ecx, ecx
    xchg    rcx, [rax + 8]                  // .evtchn_pending_sel
    or      [rip + {taken}], rcx
    mov     rcx, [rip + {timer}]
    bt      qword ptr [rax + PENDING], rcx
    jc      timer_upcall
no_hang:
    pop     rcx
    pop     rax
    iretq
leave_interrupts_off:
    and     qword ptr [rsp + FRAME_RFLAGS], ~RFLAGS_IF
    iretq

// Whoever sleeps has nothing to be watched, and takes the timer's news itself.
timer_upcall:
    cmp     qword ptr [rsp + 16 + FRAME_RIP], offset awake
    je      no_hang
    cld
    push    rdx
    push    rsi
    push    rdi
    push    r8
    push    r9
    push    r10
    push    r11
    call    {watch}                         // the stack is aligned, as below
    test    al, al
    pop     r11
    pop     r10
    pop     r9
    pop     r8
    pop     rdi
    pop     rsi
    pop     rdx
    jz      no_hang
    pop     rcx
    pop     rax
    push    0
    push    {hang}
    jmp     exception
.size event_upcall, . - event_upcall

// On trial (src/xen-kernel-rt/handover) interrupts are on, and the timer's ends the trial. Rust says so by not returning.
// Nine registers and the processor's five words leave the stack aligned for the call.
.type trial_upcall, @function
trial_upcall:
    cld
    push    rax
    push    rcx
    push    rdx
    push    rsi
    push    rdi
    push    r8
    push    r9
    push    r10
    push    r11
    call    {tick}
    pop     r11
    pop     r10
    pop     r9
    pop     r8
    pop     rdi
    pop     rsi
    pop     rdx
    pop     rcx
    pop     rax
    iretq
.size trial_upcall, . - trial_upcall

// One stub of 16 bytes per exception, so that stub n stands at exception_stubs + 16 * n.
.balign 16
.global exception_stubs
.type exception_stubs, @function
exception_stubs:
.set vector, 0
.rept 32
    .balign 16
    // The processor pushes an error code for these (Intel SDM volume 3, table 6-1); for the others
    // a zero takes its place.
    .if (1 << vector) & NO_ERROR_CODE
    push    0
    .endif
    push    vector
    jmp     exception
    .set vector, vector + 1
.endr
.balign 16
.size exception_stubs, . - exception_stubs

.type exception, @function
exception:
    cld
    push    rax
    push    rbx
    push    rcx
    push    rdx
    push    rsi
    push    rdi
    push    rbp
    push    r8
    push    r9
    push    r10
    push    r11
    push    r12
    push    r13
    push    r14
    push    r15
    mov     rdi, rsp
    and     rsp, ~15
    xor     ebp, ebp
    call    {report}
    ud2
.size exception, . - exception
