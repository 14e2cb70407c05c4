/**
 * The one-byte opcode map. Source: Intel SDM vol. 2, appendix A, tables A-2 and A-6, and the instructions' own pages; flags from
 * vol. 1, appendix A. How a row reads is said in opcode-map.ts.
 */

/** o no b ae e ne be a s ns p np l ge le g, and the flags that each tests. Source: SDM vol. 1, appendix B. */
export const CONDITIONS: readonly (readonly [name: string, flags: string])[] = [
  ['o', '=t.....'],
  ['no', '=t.....'],
  ['b', '=.....t'],
  ['ae', '=.....t'],
  ['e', '=..t...'],
  ['ne', '=..t...'],
  ['be', '=..t..t'],
  ['a', '=..t..t'],
  ['s', '=.t....'],
  ['ns', '=.t....'],
  ['p', '=....t.'],
  ['np', '=....t.'],
  ['l', '=tt....'],
  ['ge', '=tt....'],
  ['le', '=ttt...'],
  ['g', '=ttt...'],
];

/** Sixteen rows, one a condition, from `opcode` on: `conditional('70', 'j', 'Jb f64')`. */
export function conditional(opcode: string, stem: string, rest: string): string {
  const first = Number.parseInt(opcode, 16);
  return CONDITIONS.map(([name, flags], i) => `${(first + i).toString(16)} ${stem}${name} ${rest} ${flags}`).join('\n');
}

/** ADD to CMP: opcodes 00-3f in steps of eight and the immediate group 1. */
function arithmetic(): string {
  const operations = [
    'add =mmmmmm lock',
    'or =0mm?m0 lock',
    'adc =mmmmmb lock',
    'sbb =mmmmmb lock',
    'and =0mm?m0 lock',
    'sub =mmmmmm lock',
    'xor =0mm?m0 lock',
    'cmp =mmmmmm',
  ];
  return operations
    .map((operation, i) => {
      const [name, flags, lock = ''] = operation.split(' ');
      const opcode = (column: number) => (8 * i + column).toString(16).padStart(2, '0');
      return `
        ${opcode(0)}    ${name}  Eb,Gb    ${flags} ${lock}
        ${opcode(1)}    ${name}  Ev,Gv    ${flags} ${lock}
        ${opcode(2)}    ${name}  Gb,Eb    ${flags}
        ${opcode(3)}    ${name}  Gv,Ev    ${flags}
        ${opcode(4)}    ${name}  AL,Ib    ${flags}
        ${opcode(5)}    ${name}  rAX,Iz   ${flags}
        80/${i}         ${name}  Eb,Ib    ${flags} ${lock}
        81/${i}         ${name}  Ev,Iz    ${flags} ${lock}
        82/${i}         ${name}  Eb,Ib    ${flags} ${lock} i64
        83/${i}         ${name}  Ev,sIb   ${flags} ${lock}`;
    })
    .join('\n');
}

/** Group 2. A count of zero leaves all flags as they are; only the forms by one have no such case. */
function shifts(): string {
  const operations = [
    'rol =m....m =?....m',
    'ror =m....m =?....m',
    'rcl =m....b =?....b',
    'rcr =m....b =?....b',
    'shl =mmm?mm =?mm?mm',
    'shr =mmm?mm =?mm?mm',
    // The SDM leaves /6 empty; every CPU takes it as /4.
    'shl =mmm?mm =?mm?mm',
    'sar =0mm?mm =?mm?mm',
  ];
  return operations
    .map((operation, i) => {
      const [name, one, many] = operation.split(' ');
      return `
        c0/${i}  ${name}  Eb,Ib   ${many} maybe
        c1/${i}  ${name}  Ev,Ib   ${many} maybe
        d0/${i}  ${name}  Eb,One  ${one}
        d1/${i}  ${name}  Ev,One  ${one}
        d2/${i}  ${name}  Eb,CL   ${many} maybe
        d3/${i}  ${name}  Ev,CL   ${many} maybe`;
    })
    .join('\n');
}

export const ONE_BYTE = `
${arithmetic()}
${shifts()}
${conditional('70', 'j', 'Jb f64')}

06      push      ES            d64 i64
07      pop       ES            d64 i64
0e      push      CS            d64 i64
16      push      SS            d64 i64
17      pop       SS            d64 i64
1e      push      DS            d64 i64
1f      pop       DS            d64 i64
27      daa       -             =?mmbmb i64
2f      das       -             =?mmbmb i64
37      aaa       -             =???b?m i64
3f      aas       -             =???b?m i64
40-47   inc       Zv            =mmmmm. i64
48-4f   dec       Zv            =mmmmm. i64
50-57   push      Zv            d64
58-5f   pop       Zv            d64
60      pusha/pushad  -         z i64
61      popa/popad    -         z i64
62      bound     Gv,Ma         i64
63      arpl      Ew,Gw         =..m... i64
63      movsxd    Gv,Ez         o64
68      push      Iz            d64
69      imul      Gv,Ev,Iz      =m????m
6a      push      sIb           d64
6b      imul      Gv,Ev,sIb     =m????m
6c      insb      Yb,DX         =......+dt iopl
6d      insw/insd Yz,DX         =......+dt iopl
6e      outsb     DX,Xb         =......+dt iopl
6f      outsw/outsd  DX,Xz      =......+dt iopl

84      test      Eb,Gb         =0mm?m0
85      test      Ev,Gv         =0mm?m0
86      xchg      Eb,Gb         lock
87      xchg      Ev,Gv         lock
88      mov       Eb,Gb
89      mov       Ev,Gv
8a      mov       Gb,Eb
8b      mov       Gv,Ev
8c      mov       RvMw,Sw
8d      lea       Gv,M
8e      mov       Sw,Ew
8f/0    pop       Ev            d64
90      nop       -             nop
f3:90   pause     -
91-97   xchg      Zv,rAX
98      cbw/cwde/cdqe  -        v
99      cwd/cdq/cqo    -        v
9a      call      Ap            z i64
9b      wait      -
9c      pushf/pushfd/pushfq  -  =tttttt+dt+it+Tt+At d64
9d      popf/popfd/popfq     -  =mmmmmm+dm+im+Tm+Am d64
9e      sahf      -             =.mmmmm @LAHF
9f      lahf      -             =.ttttt @LAHF

a0      mov       AL,Ob
a1      mov       rAX,Ov
a2      mov       Ob,AL
a3      mov       Ov,rAX
a4      movsb     Yb,Xb         =......+dt
a5      movsw/movsd/movsq  Yv,Xv  =......+dt
a6      cmpsb     Xb,Yb         =mmmmmm+dt
a7      cmpsw/cmpsd/cmpsq  Xv,Yv  =mmmmmm+dt
a8      test      AL,Ib         =0mm?m0
a9      test      rAX,Iz        =0mm?m0
aa      stosb     Yb,AL         =......+dt
ab      stosw/stosd/stosq  Yv,rAX  =......+dt
ac      lodsb     AL,Xb         =......+dt
ad      lodsw/lodsd/lodsq  rAX,Xv  =......+dt
ae      scasb     AL,Yb         =mmmmmm+dt
af      scasw/scasd/scasq  rAX,Yv  =mmmmmm+dt
b0-b7   mov       Zb,Ib
b8-bf   mov       Zv,Iv

c2      ret       Iw            f64
c3      ret       -             f64
c4      les       Gz,Mp         i64
c5      lds       Gz,Mp         i64
c6/0    mov       Eb,Ib
c7/0    mov       Ev,Iz
c8      enter     Iw,Ib         d64
c9      leave     -             d64
ca      retf      Iw            v
cb      retf      -             v
cc      int3      -
cd      int       Ib
ce      into      -             =t..... i64
cf      iret/iretd/iretq  -     =mmmmmm+dm+im+Tm+Am v
d4      aam       Ib            =?mm?m? i64
d5      aad       Ib            =?mm?m? i64
d6      salc      -             =.....t i64
d7      xlatb     BAb

e0      loopne    Jb            =..t... f64
e1      loope     Jb            =..t... f64
e2      loop      Jb            f64
e3      jcxz/jecxz/jrcxz  Jb    f64 a
e4      in        AL,Ib         =...... iopl
e5      in        eAX,Ib        =...... iopl
e6      out       Ib,AL         =...... iopl
e7      out       Ib,eAX        =...... iopl
e8      call      Jz            f64
e9      jmp       Jz            f64
ea      jmp       Ap            z i64
eb      jmp       Jb            f64
ec      in        AL,DX         =...... iopl
ed      in        eAX,DX        =...... iopl
ee      out       DX,AL         =...... iopl
ef      out       DX,eAX        =...... iopl
f1      int1      -
f4      hlt       -             cpl0
f5      cmc       -             =.....b
f6/0    test      Eb,Ib         =0mm?m0
f6/1    test      Eb,Ib         =0mm?m0
f6/2    not       Eb            lock
f6/3    neg       Eb            =mmmmmm lock
f6/4    mul       Eb            =m????m
f6/5    imul      Eb            =m????m
f6/6    div       Eb            =??????
f6/7    idiv      Eb            =??????
f7/0    test      Ev,Iz         =0mm?m0
f7/1    test      Ev,Iz         =0mm?m0
f7/2    not       Ev            lock
f7/3    neg       Ev            =mmmmmm lock
f7/4    mul       Ev            =m????m
f7/5    imul      Ev            =m????m
f7/6    div       Ev            =??????
f7/7    idiv      Ev            =??????
f8      clc       -             =.....0
f9      stc       -             =.....1
fa      cli       -             =......+i0 iopl
fb      sti       -             =......+i1 iopl
fc      cld       -             =......+d0
fd      std       -             =......+d1
fe/0    inc       Eb            =mmmmm. lock
fe/1    dec       Eb            =mmmmm. lock
ff/0    inc       Ev            =mmmmm. lock
ff/1    dec       Ev            =mmmmm. lock
ff/2    call      Ev            f64
ff/3    call      Mp            v
ff/4    jmp       Ev            f64
ff/5    jmp       Mp            v
ff/6    push      Ev            d64
`;
