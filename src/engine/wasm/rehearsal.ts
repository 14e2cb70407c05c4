/**
 * What a vCPU's thread does while it waits for a guest that comes from elsewhere and stands still meanwhile: it runs a little program of its own, in memory of its own.
 * Then the decoder has its tables, and V8 has compiled the decoder, the interpreter and the translator: 0.1 s and more that the guest's first instructions
 * would take otherwise.
 */

import { FLAT_RING3_CS64, FLAT_RING3_SS64 } from '../../abi/xen.ts';
import { createMachineMemory, type MachineLayout, MFN_BASE, PAGE_SIZE } from '../../machine/memory.ts';
import { createVcpuBlock, NO_ROOT, RDI, RSI, RSP, VCPU } from '../../machine/vcpu-block.ts';
import { EXIT_INTERRUPTED, EXIT_SYSCALL, type ExitKind } from '../engine.ts';
import { COMPONENTS } from './layout.ts';
import { createWasmDomain, type TranslatedCode } from './wasm-domain.ts';
import { type WasmHost, WasmVcpu } from './wasm-vcpu.ts';

/**
 * What kernels and programs do most: bytes, and in words for the reader. The loop goes round so often that it is translated; behind it is what is done
 * once in a while, and a system call is the end.
 */
const PROGRAM = `
41bd28000000          mov r13d, 0x28
b807000000            mov eax, 0x7
31d2                  xor edx, edx
0fc7a600040000        xsavec [rsi+0x400]
0faeae00040000        xrstor [rsi+0x400]
41ffcd                dec r13d
75e6                  jne 6
41bc70170000          mov r12d, 0x1770
4489e0                mov eax, r12d
4889c3                mov rbx, rax
488d4c9810            lea rcx, [rax+rbx*4+0x10]
488d5640              lea rdx, [rsi+0x40]
4801c1                add rcx, rax
83e907                sub ecx, 0x7
4883d100              adc rcx, 0x0
19d2                  sbb edx, edx
81e1ff0f0000          and ecx, 0xfff
83cb01                or ebx, 0x1
4531c0                xor r8d, r8d
4839d9                cmp rcx, rbx
4c0f47c1              cmova r8, rcx
440f45cb              cmovne r9d, ebx
0f94c0                sete al
0fb6c0                movzx eax, al
0f92c1                setb cl
84c9                  test cl, cl
7503                  jne 68
41ffc0                inc r8d
f6460104              test BYTE [rsi+0x1], 0x4
7403                  je 71
41ffc9                dec r9d
488906                mov QWORD [rsi], rax
488b06                mov rax, QWORD [rsi]
c7460805000000        mov DWORD [rsi+0x8], 0x5
48c7461009000000      mov QWORD [rsi+0x10], 0x9
c6461803              mov BYTE [rsi+0x18], 0x3
6644894620            mov WORD [rsi+0x20], r8w
014608                add DWORD [rsi+0x8], eax
48034610              add rax, QWORD [rsi+0x10]
48837e1000            cmp QWORD [rsi+0x10], 0x0
7409                  je a6
395e08                cmp DWORD [rsi+0x8], ebx
7f04                  jg a6
0f1f0400              nop DWORD [rax+rax*1]
0fb65618              movzx edx, BYTE [rsi+0x18]
0fb75620              movzx edx, WORD [rsi+0x20]
480fbe5618            movsx rdx, BYTE [rsi+0x18]
48635608              movsxd rdx, DWORD [rsi+0x8]
48c1e003              shl rax, 0x3
c1ea02                shr edx, 0x2
48d1fb                sar rbx, 1
c1c105                rol ecx, 0x5
b903000000            mov ecx, 0x3
49d3e0                shl r8, cl
48d3eb                shr rbx, cl
480fa4d804            shld rax, rbx, 0x4
480fafc3              imul rax, rbx
6bca0c                imul ecx, edx, 0xc
48f7e3                mul rbx
48f7d8                neg rax
f7d2                  not edx
ba00000000            mov edx, 0x0
b907000000            mov ecx, 0x7
48f7f1                div rcx
4898                  cdqe
99                    cdq
4893                  xchg rbx, rax
0fc8                  bswap eax
0fbae003              bt eax, 0x3
7205                  jb 102
480fbae802            bts rax, 0x2
0fbcc8                bsf ecx, eax
f3480fbcc8            tzcnt rcx, rax
f0ff4628              lock inc DWORD [rsi+0x28]
f04883463001          lock add QWORD [rsi+0x30], 0x1
f0480fb15e38          lock cmpxchg QWORD [rsi+0x38], rbx
f00fc14640            lock xadd DWORD [rsi+0x40], eax
48875e48              xchg QWORD [rsi+0x48], rbx
f0480fba6e5003        lock bts QWORD [rsi+0x50], 0x3
f08366587f            lock and DWORD [rsi+0x58], 0x7f
55                    push rbp
4154                  push r12
6a10                  push 0x10
58                    pop rax
e823010000            call 25d
415c                  pop r12
5d                    pop rbp
4c8d1519010000        lea r10, [rip+0x119]
41ffd2                call r10
9c                    pushf
58                    pop rax
56                    push rsi
57                    push rdi
b908000000            mov ecx, 0x8
31c0                  xor eax, eax
f348ab                rep stos QWORD es:[rdi], rax
b940000000            mov ecx, 0x40
f3a4                  rep movs BYTE es:[rdi], BYTE ds:[rsi]
5f                    pop rdi
5e                    pop rsi
fc                    cld
f30f6f06              movdqu xmm0, XMMWORD [rsi]
660f6fc8              movdqa xmm1, xmm0
660fefd2              pxor xmm2, xmm2
0f114660              movups XMMWORD [rsi+0x60], xmm0
0f28d9                movaps xmm3, xmm1
660f60c2              punpcklbw xmm0, xmm2
660f74ca              pcmpeqb xmm1, xmm2
660fd7c1              pmovmskb eax, xmm1
660f6ee0              movd xmm4, eax
66480f7ee0            movq rax, xmm4
660ffedc              paddd xmm3, xmm4
660fdbd8              pand xmm3, xmm0
660febd9              por xmm3, xmm1
660f70eb1b            pshufd xmm5, xmm3, 0x1b
f2480f2af0            cvtsi2sd xmm6, rax
f20f59f6              mulsd xmm6, xmm6
f20f587660            addsd xmm6, QWORD [rsi+0x60]
f2480f2cc6            cvttsd2si rax, xmm6
488b04ce              mov rax, QWORD [rsi+rcx*8]
8b448e04              mov eax, DWORD [rsi+rcx*4+0x4]
488944ce68            mov QWORD [rsi+rcx*8+0x68], rax
49bbefcdab9078563412  movabs r11, 0x1234567890abcdef
4921c3                and r11, rax
4d85db                test r11, r11
7802                  js 1cc
f390                  pause
a900010000            test eax, 0x100
7500                  jne 1d3
41ffcc                dec r12d
0f854afeffff          jne 26
4883da00              sbb rdx, 0x0
83d100                adc ecx, 0x0
48a5                  movs QWORD es:[rdi], QWORD ds:[rsi]
488d76f8              lea rsi, [rsi-0x8]
660906                or WORD [rsi], ax
660b06                or ax, WORD [rsi]
662b06                sub ax, WORD [rsi]
66830601              add WORD [rsi], 0x1
6625ff7f              and ax, 0x7fff
480fadc2              shrd rdx, rax, cl
31d2                  xor edx, edx
b907000000            mov ecx, 0x7
48f7f9                idiv rcx
480fc8                bswap rax
48c1c005              rol rax, 0x5
c1c903                ror ecx, 0x3
b909000000            mov ecx, 0x9
480fab4e50            bts QWORD [rsi+0x50], rcx
f0480fab4e50          lock bts QWORD [rsi+0x50], rcx
480fb34e50            btr QWORD [rsi+0x50], rcx
480fba6e5004          bts QWORD [rsi+0x50], 0x4
480fba765004          btr QWORD [rsi+0x50], 0x4
0fbdc8                bsr ecx, eax
4819d2                sbb rdx, rdx
875e48                xchg DWORD [rsi+0x48], ebx
865e48                xchg BYTE [rsi+0x48], bl
480fc14640            xadd QWORD [rsi+0x40], rax
0fc14640              xadd DWORD [rsi+0x40], eax
480fb15e38            cmpxchg QWORD [rsi+0x38], rbx
f083462801            lock add DWORD [rsi+0x28], 0x1
0f294670              movaps XMMWORD [rsi+0x70], xmm0
b827000000            mov eax, 0x27
0f05                  syscall
55                    push rbp
4889e5                mov rbp, rsp
53                    push rbx
4883ec18              sub rsp, 0x18
48897de8              mov QWORD [rbp-0x18], rdi
488b45e8              mov rax, QWORD [rbp-0x18]
4839f8                cmp rax, rdi
7502                  jne 275
31c0                  xor eax, eax
4883c418              add rsp, 0x18
5b                    pop rbx
c9                    leave
c3                    ret
`;

const RFLAGS = 0x202;
/** Present, writable, user, accessed, dirty. */
const PTE = 0x67;
const R12 = 12;
/** Frames of the page tables, one of each level; then code, data and stack, mapped at these addresses. */
const [ROOT, L3, L2, L1, FIRST] = [1, 2, 3, 4, 5];
const [CODE_VA, DATA_VA, STACK_VA] = [0x1000, 0x2000, 0x3000];
const FRAMES = FIRST + 3;
const RUNS_MAX = 100;
/** Where the loop begins: its last turn, and what is behind it, with nothing that has been looked up before. */
const LAST_TURN = 0x26;
const TURNS = 500;

/** `layout`: that of the guest's memory; `translated`: what the guest's vCPU begins with, so that the interpreter is the same one. What the program has come to: null if the memory is too small. */
export function rehearse(
  { ramPages, maxPages }: MachineLayout,
  host: WasmHost,
  translated: TranslatedCode | null = null,
): ExitKind | null {
  if (ramPages < FRAMES) return null;
  const machine = createMachineMemory(ramPages, maxPages);
  const entry = (table: number, index: number, frame: number): void => {
    const at = (table * PAGE_SIZE) / 4 + index * 2;
    const mfn = frame + MFN_BASE;
    machine.u32[at] = ((mfn << 12) | PTE) >>> 0;
    machine.u32[at + 1] = mfn >>> 20;
  };
  entry(ROOT, 0, L3);
  entry(L3, 0, L2);
  entry(L2, 0, L1);
  for (const [i, va] of [CODE_VA, DATA_VA, STACK_VA].entries()) entry(L1, va / PAGE_SIZE, FIRST + i);
  const bytes = PROGRAM.match(/^[0-9a-f]+/gm)?.join('') ?? '';
  for (let at = 0; at < bytes.length; at += 2)
    machine.u8[FIRST * PAGE_SIZE + at / 2] = Number.parseInt(bytes.slice(at, at + 2), 16);
  const block = createVcpuBlock(0);
  const word = (at: number, value: number): void => {
    block.u32[at / 4] = value;
  };
  word(VCPU.rip, CODE_VA);
  word(VCPU.rflags, RFLAGS);
  word(VCPU.cs, FLAT_RING3_CS64);
  word(VCPU.ss, FLAT_RING3_SS64);
  word(VCPU.xcr0, COMPONENTS);
  word(VCPU.kernelRoot, ROOT);
  word(VCPU.userRoot, NO_ROOT);
  word(VCPU.gpr + RSI * 8, DATA_VA);
  word(VCPU.gpr + RDI * 8, DATA_VA + PAGE_SIZE / 2);
  word(VCPU.gpr + RSP * 8, STACK_VA + PAGE_SIZE);
  const vcpu = new WasmVcpu(createWasmDomain(machine, 1, undefined, translated), machine, [block], 0, host);
  let exit = EXIT_INTERRUPTED;
  for (let runs = 0; runs < RUNS_MAX && exit === EXIT_INTERRUPTED; runs++) exit = vcpu.run();
  // A guest that goes on comes to a thousand addresses for the first time.
  for (let turn = 0; turn < TURNS && exit === EXIT_SYSCALL; turn++) {
    vcpu.notedCode();
    vcpu.flushTlb();
    word(VCPU.rip, CODE_VA + LAST_TURN);
    word(VCPU.gpr + R12 * 8, 1);
    word(VCPU.gpr + RDI * 8, DATA_VA + PAGE_SIZE / 2);
    exit = vcpu.run();
  }
  vcpu.close();
  return exit;
}
