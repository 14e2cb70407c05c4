/**
 * The two-byte map 0F without its MMX and SSE instructions (opcode-map-sse.ts). Source: Intel SDM vol. 2, appendix A, tables A-3
 * and A-6, and the instructions' own pages; AMD APM vol. 3 for SVM, MONITORX, CLZERO and RDPRU.
 */

import { conditional } from './opcode-map-one-byte.ts';

export const TWO_BYTE = `
${conditional('40', 'cmov', 'Gv,Ev @CMOV')}
${conditional('80', 'j', 'Jz f64')}
${conditional('90', 'set', 'Eb')}

00/0    sldt      RvMw          umip
00/1    str       RvMw          umip
00/2    lldt      Ew            cpl0
00/3    ltr       Ew            cpl0
00/4    verr      Ew            =..m...
00/5    verw      Ew            =..m...
01/0    sgdt      Ms            f64 umip
01/1    sidt      Ms            f64 umip
01/2    lgdt      Ms            f64 cpl0
01/3    lidt      Ms            f64 cpl0
01/4    smsw      RvMw          umip
01/6    lmsw      Ew            cpl0
01/7    invlpg    M             cpl0
np:01/0:1  vmcall    -          =00m00m @VMX ud
np:01/0:2  vmlaunch  -          =00m00m @VMX ud
np:01/0:3  vmresume  -          =00m00m @VMX ud
np:01/0:4  vmxoff    -          =00m00m @VMX ud
np:01/1:0  monitor   -          @MONITOR ud
np:01/1:1  mwait     -          @MONITOR ud
np:01/1:2  clac      -          =......+A0 @SMAP ud
np:01/1:3  stac      -          =......+A1 @SMAP ud
np:01/2:0  xgetbv    -          @XSAVE
np:01/2:1  xsetbv    -          @XSAVE cpl0
np:01/2:4  vmfunc    -          =mmmmmm @VMX ud
01/3:0  vmrun     -             =tttttt+dt+it+At @SVM ud
01/3:1  vmmcall   -             @SVM ud
01/3:2  vmload    -             @SVM ud
01/3:3  vmsave    -             @SVM ud
01/3:4  stgi      -             @SVM ud
01/3:5  clgi      -             @SVM ud
01/3:6  skinit    -             =mmmmmm+dm+im+Am @SVM ud
01/3:7  invlpga   -             @SVM ud
np:01/5:0  serialize  -         @SERIALIZE
np:01/5:6  rdpkru    -          @PKU
np:01/5:7  wrpkru    -          @PKU
01/7:0  swapgs    -             o64 cpl0
01/7:1  rdtscp    -             @RDTSCP tsd
np:01/7:2  monitorx  -          @MONITORX
np:01/7:3  mwaitx    -          @MONITORX
01/7:4  clzero    -             @CLZERO
np:01/7:5  rdpru     -          =00000m @RDPRU tsd
02      lar       Gv,Ew         =..m...
03      lsl       Gv,Ew         =..m...
05      syscall   -             =bbbbbb+db+ib+Tb+Ab
06      clts      -             cpl0
07      sysret/sysretq  -       =mmmmmm+dm+im+Tm+Am y cpl0
08      invd      -             cpl0
09      wbinvd    -             cpl0
f3:09   wbnoinvd  -             @WBNOINVD cpl0
0b      ud2       -             ud
# A prefetch with a register, or a hint that the CPU does not know, does nothing.
0d      nop       Ev,Gv
0d/0    prefetch  Mb            @PRFCHW
0d/1    prefetchw Mb            @PRFCHW
0d/2    prefetchwt1  Mb         @PREFETCHWT1
18      nop       Ev,Gv
18/0    prefetchnta  Mb
18/1    prefetcht0   Mb
18/2    prefetcht1   Mb
18/3    prefetcht2   Mb
19-1e   nop       Ev,Gv
f3:1e/7:2  endbr64  -
f3:1e/7:3  endbr32  -
1f      nop       Ev,Gv
1f/0    nop       Ev
20      mov       Rm,Cy         =?????? m64 cpl0
21      mov       Rm,Dy         =?????? m64 cpl0
22      mov       Cy,Rm         =?????? m64 cpl0
23      mov       Dy,Rm         =?????? m64 cpl0
30      wrmsr     -             cpl0
31      rdtsc     -             tsd
32      rdmsr     -             cpl0
33      rdpmc     -             pce
34      sysenter  -             =......+i0 @SEP
35      sysexit/sysexitq  -     y @SEP cpl0

np:78   vmread    Ey,Gy         =00m00m m64 @VMX ud
np:79   vmwrite   Gy,Ey         =00m00m m64 @VMX ud

a0      push      FS            d64
a1      pop       FS            d64
a2      cpuid     -
a3      bt        Ev,Gv         =??.??m
a4      shld      Ev,Gv,Ib      =?mm?mm maybe
a5      shld      Ev,Gv,CL      =?mm?mm maybe
a8      push      GS            d64
a9      pop       GS            d64
aa      rsm       -             =mmmmmm+dm+im+Tm+Am ud
ab      bts       Ev,Gv         =??.??m lock
ac      shrd      Ev,Gv,Ib      =?mm?mm maybe
ad      shrd      Ev,Gv,CL      =?mm?mm maybe
np:ae/0 fxsave/fxsave64    Mfx     y @FXSR
np:ae/1 fxrstor/fxrstor64  Mfx     y @FXSR
np:ae/2 ldmxcsr   Md            @SSE
np:ae/3 stmxcsr   Md            @SSE
np:ae/4 xsave/xsave64      Mxsave  y @XSAVE
np:ae/5 xrstor/xrstor64    Mxsave  y @XSAVE
np:ae/6 xsaveopt/xsaveopt64  Mxsave  y @XSAVEOPT
np:ae/7 clflush   Mb            @CLFSH
66:ae/6 clwb      Mb            @CLWB
66:ae/7 clflushopt  Mb          @CLFLUSHOPT
np:ae/5:0-7  lfence  -          @SSE2
np:ae/6:0-7  mfence  -          @SSE2
np:ae/7:0-7  sfence  -          @SSE
f3:ae/0 rdfsbase  Ry            @FSGSBASE o64
f3:ae/1 rdgsbase  Ry            @FSGSBASE o64
f3:ae/2 wrfsbase  Ry            @FSGSBASE o64
f3:ae/3 wrgsbase  Ry            @FSGSBASE o64
af      imul      Gv,Ev         =m????m
b0      cmpxchg   Eb,Gb         =mmmmmm lock
b1      cmpxchg   Ev,Gv         =mmmmmm lock
b2      lss       Gv,Mp
b3      btr       Ev,Gv         =??.??m lock
b4      lfs       Gv,Mp
b5      lgs       Gv,Mp
b6      movzx     Gv,Eb
b7      movzx     Gv,Ew
f3:b8   popcnt    Gv,Ev         =00m000 @POPCNT
b9      ud1       Gv,Ev         ud
ba/4    bt        Ev,Ib         =??.??m
ba/5    bts       Ev,Ib         =??.??m lock
ba/6    btr       Ev,Ib         =??.??m lock
ba/7    btc       Ev,Ib         =??.??m lock
bb      btc       Ev,Gv         =??.??m lock
bc      bsf       Gv,Ev         =??m???
f3:bc   tzcnt     Gv,Ev         =??m??m @BMI1
bd      bsr       Gv,Ev         =??m???
f3:bd   lzcnt     Gv,Ev         =??m??m @LZCNT
be      movsx     Gv,Eb
bf      movsx     Gv,Ew
c0      xadd      Eb,Gb         =mmmmmm lock
c1      xadd      Ev,Gv         =mmmmmm lock
np:c3   movnti    My,Gy         @SSE2
c7/1    cmpxchg8b/cmpxchg16b  M2y  =..m... lock
np:c7/3 xrstors/xrstors64  Mxsave  y @XSAVES cpl0
np:c7/4 xsavec/xsavec64    Mxsave  y @XSAVEC
np:c7/5 xsaves/xsaves64    Mxsave  y @XSAVES cpl0
np:c7/6 vmptrld   Mq            =00m00m @VMX ud
66:c7/6 vmclear   Mq            =00m00m @VMX ud
f3:c7/6 vmxon     Mq            =00m00m @VMX ud
np:c7/7 vmptrst   Mq            =000000 @VMX ud
np,66:c7/6  rdrand  Rv          =00000m @RDRAND
np,66:c7/7  rdseed  Rv          =00000m @RDSEED
f3:c7/7 rdpid     Ry            @RDPID m64
c8-cf   bswap     Zv
ff      ud0       Gv,Ev         ud
`;
