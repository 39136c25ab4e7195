// The way from one image to another and back.
//
// This code is copied to a page of its own, the bridge (src/xen-kernel-rt/handover), which both images' page tables map
// at its physical address: it runs wherever it is put, with paging on and off. Both directions are
// taken with interrupts off.
//
// BRIDGE_* are offsets in that page, from Rust.

.set BRIDGE_CODE32, 0x08            // selectors in the bridge's own table
.set BRIDGE_DATA32, 0x10

.set BRIDGE_CR0_PG, 0x80000000
.set BRIDGE_CR0_PE, 0x00000001
.set BRIDGE_MSR_EFER, 0xc0000080
.set BRIDGE_EFER_LME_NXE, 0x00000900

.section .rodata.bridge, "a"
.balign 16
.global bridge_code
bridge_code:

// Enters the new image as Xen would: 32-bit code, no paging, ebx = start info.
// rdi: the bridge's address in the old image's direct map, where it can be written.
// Returns to its caller by way of bridge_back, or never.
.code64
    mov     rax, cr0
    mov     [rdi + BRIDGE_CR0], rax
    mov     rax, cr3
    mov     [rdi + BRIDGE_CR3], rax
    mov     rax, cr4
    mov     [rdi + BRIDGE_CR4], rax
    mov     [rdi + BRIDGE_RSP], rsp
    mov     ebx, [rdi + BRIDGE_START_INFO]
    mov     esi, [rdi + BRIDGE_ENTRY]
    lgdt    [rdi + BRIDGE_GDT_POINTER]
    lea     rax, [rip + bridge_32]
    push    BRIDGE_CODE32
    push    rax
    retfq

// Compatibility mode. Without paging there is no long mode either.
.code32
bridge_32:
    mov     eax, BRIDGE_DATA32
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    mov     eax, cr0
    and     eax, ~BRIDGE_CR0_PG
    mov     cr0, eax
    mov     ecx, BRIDGE_MSR_EFER
    rdmsr
    and     eax, ~BRIDGE_EFER_LME_NXE
    wrmsr
    xor     eax, eax
    mov     cr4, eax
    mov     eax, BRIDGE_CR0_PE
    mov     cr0, eax
    jmp     esi

// Goes back to the old image, as if the call that left it had returned.
// rdi: the bridge's physical address. The caller is 64-bit code of the new image.
.code64
.global bridge_back
bridge_back:
    mov     rax, [rdi + BRIDGE_CR4]
    mov     cr4, rax
    mov     rax, [rdi + BRIDGE_CR3]
    mov     cr3, rax
    mov     rax, [rdi + BRIDGE_CR0]
    mov     cr0, rax
    mov     rsp, [rdi + BRIDGE_RSP]
    ret

.global bridge_code_end
bridge_code_end:
