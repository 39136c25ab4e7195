// From the PVH entry to 64-bit Rust.
//
// The state on entry (docs/misc/pvh.pandoc of Xen):
//   ebx     physical address of struct hvm_start_info
//   cr0     PE set, everything else clear: protected mode without paging
//   cr4     all clear
//   cs      flat 32-bit code; ds, es, ss flat 32-bit data
//   eflags  VM, IF, TF clear
// All else is undefined, the stack pointer included. The loader has cleared .bss.
//
// The state on exit, at rust_entry(start_info, image_base):
//   rdi     physical address of struct hvm_start_info
//   rsi     physical address that the image was loaded at, a multiple of 2 MiB
//   cr3     early_pml4: the image at IMAGE_VMA, each section with its own rights, and
//           one 2 MiB page that maps the image to itself (Rust removes it)
//   IF      clear
//
// Registers that keep their meaning throughout the 32-bit part:
//   ebx     start info
//   ebp     physical address of the image
//
// IMAGE_VMA and the selectors come from Rust (src/xen-kernel-rt/arch/x86_64/entry.rs), the section symbols from linker.ld.

.set PTE_PRESENT,   0x001
.set PTE_WRITE,     0x002
.set PTE_LARGE,     0x080           // in a page directory: maps 2 MiB
.set PTE_NX_HIGH,   0x80000000      // bit 63, as it stands in the upper half of an entry

.set CR0_PE,        0x00000001
.set CR0_WP,        0x00010000      // read-only pages are read-only for us, too
.set CR0_PG,        0x80000000
.set CR4_PAE,       0x00000020
.set MSR_EFER,      0xc0000080
.set EFER_LME,      0x00000100
.set EFER_NXE,      0x00000800

.set PAGE_SHIFT,    12
.set PT_ENTRIES,    512
.set PML4_IMAGE,    511             // index of IMAGE_VMA in each level
.set PDPT_IMAGE,    510

.set EARLY_GDT_LIMIT, 3 * 8 - 1      // three descriptors
.set NOTE_PHYS32_ENTRY, 18          // XEN_ELFNOTE_PHYS32_ENTRY, xen/include/public/elfnote.h

// The note that makes this a PVH kernel: owner, type, and 4 bytes with the physical entry address.
.section .note.Xen, "a", @note
    .balign 4
    .long 4                         // size of the owner's name
    .long 4                         // size of the descriptor
    .long NOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long _start_paddr

.section .text.head, "ax"
.code32
.global _start
.type _start, @function
_start:
    cli
    cld

// Nobody told us where we are. A call pushes the address behind it, but needs a stack: borrow the
// first word of the start info (its magic number) for one push, and put it back.
find_position:
    mov     edx, [ebx]
    lea     esp, [ebx + 4]
    call    position
position:
    pop     ebp
    mov     [ebx], edx
    sub     ebp, offset position - IMAGE_VMA

// From here on [ebp + symbol - IMAGE_VMA] is the physical address of a symbol.
use_own_stack:
    lea     esp, [ebp + stack_top - IMAGE_VMA]

// Three levels down to the one table that maps the image in pages of 4 KiB.
link_image_tables:
    lea     eax, [ebp + early_image_pdpt - IMAGE_VMA + PTE_PRESENT + PTE_WRITE]
    mov     [ebp + early_pml4 - IMAGE_VMA + 8 * PML4_IMAGE], eax
    lea     eax, [ebp + early_image_pd - IMAGE_VMA + PTE_PRESENT + PTE_WRITE]
    mov     [ebp + early_image_pdpt - IMAGE_VMA + 8 * PDPT_IMAGE], eax
    lea     eax, [ebp + early_image_pt - IMAGE_VMA + PTE_PRESENT + PTE_WRITE]
    mov     [ebp + early_image_pd - IMAGE_VMA], eax

// Each section with its rights; the guard page below the stack stays out.
map_sections:
    mov     eax, offset image_start - IMAGE_VMA
    mov     ecx, offset text_end - IMAGE_VMA
    mov     edx, PTE_PRESENT
    xor     esi, esi
    call    map_pages
    mov     eax, offset text_end - IMAGE_VMA
    mov     ecx, offset rodata_end - IMAGE_VMA
    mov     esi, PTE_NX_HIGH
    call    map_pages
    mov     eax, offset rodata_end - IMAGE_VMA
    mov     ecx, offset stack_guard - IMAGE_VMA
    mov     edx, PTE_PRESENT + PTE_WRITE
    call    map_pages
    mov     eax, offset stack_bottom - IMAGE_VMA
    mov     ecx, offset image_end - IMAGE_VMA
    call    map_pages

// The instructions behind the one that switches paging on are fetched from the old, physical
// addresses. The image lies within one aligned 2 MiB, so one large page keeps them valid.
map_identity:
    lea     eax, [ebp + early_identity_pdpt - IMAGE_VMA + PTE_PRESENT + PTE_WRITE]
    mov     [ebp + early_pml4 - IMAGE_VMA], eax
    mov     ecx, ebp
    shr     ecx, 30
    lea     eax, [ebp + early_identity_pd - IMAGE_VMA + PTE_PRESENT + PTE_WRITE]
    mov     [ebp + 8 * ecx + early_identity_pdpt - IMAGE_VMA], eax
    mov     ecx, ebp
    shr     ecx, 21
    and     ecx, PT_ENTRIES - 1
    lea     eax, [ebp + PTE_PRESENT + PTE_WRITE + PTE_LARGE]
    mov     [ebp + 8 * ecx + early_identity_pd - IMAGE_VMA], eax

// The order is the manual's: PAE, tables, long mode and no-execute allowed, then paging on.
enable_paging:
    mov     eax, CR4_PAE
    mov     cr4, eax
    lea     eax, [ebp + early_pml4 - IMAGE_VMA]
    mov     cr3, eax
    mov     ecx, MSR_EFER
    rdmsr
    or      eax, EFER_LME + EFER_NXE
    wrmsr
    mov     eax, CR0_PG + CR0_WP + CR0_PE
    mov     cr0, eax

// Still 32-bit code, now in compatibility mode. A far return into a 64-bit segment leaves it.
enter_long_mode:
    lea     eax, [ebp + early_gdt - IMAGE_VMA]
    sub     esp, 8                  // the operand of lgdt: 2 bytes of limit, 4 of address
    mov     word ptr [esp], EARLY_GDT_LIMIT
    mov     [esp + 2], eax
    lgdt    [esp]
    lea     eax, [ebp + long_mode - IMAGE_VMA]
    push    CODE_SELECTOR
    push    eax
    retf

// Maps the image's bytes eax .. ecx (offsets from its start, whole pages).
// edx: low half of the entries' flags, esi: high half. Changes eax and edi only.
.type map_pages, @function
map_pages:
    cmp     eax, ecx
    jae     map_pages_done
    mov     edi, eax
    shr     edi, PAGE_SHIFT
    lea     edi, [ebp + 8 * edi + early_image_pt - IMAGE_VMA]
    add     eax, ebp
    mov     [edi], eax
    or      [edi], edx
    mov     [edi + 4], esi
    sub     eax, ebp
    add     eax, 1 << PAGE_SHIFT
    jmp     map_pages
map_pages_done:
    ret
.size map_pages, . - map_pages

// 64-bit code at its physical address; a jump through a register goes up to the linked one.
.code64
long_mode:
    movabs  rax, offset jump_high
    jmp     rax

jump_high:
    mov     eax, DATA_SELECTOR
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    xor     eax, eax
    mov     fs, eax
    mov     gs, eax
    movabs  rsp, offset stack_top

// The stack is 16-byte aligned before the call, as the C calling convention wants it.
call_rust:
    mov     edi, ebx
    mov     esi, ebp
    xor     ebp, ebp
    call    {rust_entry}
    ud2
.size _start, . - _start

// Null, 64-bit code, data. The accessed bits are set, so the processor has no reason to write here.
.section .rodata.early_gdt, "a"
    .balign 8
early_gdt:
    .quad   0
    .quad   0x00af9b000000ffff
    .quad   0x00cf93000000ffff


.section .bss.early_tables, "aw", @nobits
    .balign 4096
.global early_pml4
early_pml4:             .skip 4096
early_image_pdpt:       .skip 4096
early_image_pd:         .skip 4096
early_image_pt:         .skip 4096
early_identity_pdpt:    .skip 4096
early_identity_pd:      .skip 4096
