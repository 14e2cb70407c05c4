/**
 * MMX and SSE to SSE3 in the map 0F. Source: Intel SDM vol. 2, appendix A, tables. The prefix before the colon is
 * mandatory: `np` is none of 66, F2 and F3.
 */

/** Integer operations that exist for MMX registers and, with 66, for XMM registers (SSE2): opcode, name. */
function packedIntegers(): string {
  const operations = `60 punpcklbw Qd, 61 punpcklwd Qd, 62 punpckldq Qd, 63 packsswb, 64 pcmpgtb, 65 pcmpgtw, 66 pcmpgtd,
    67 packuswb, 68 punpckhbw, 69 punpckhwd, 6a punpckhdq, 6b packssdw, 74 pcmpeqb, 75 pcmpeqw, 76 pcmpeqd, d1 psrlw, d2 psrld,
    d3 psrlq, d5 pmullw, d8 psubusb, d9 psubusw, db pand, dc paddusb, dd paddusw, df pandn, e1 psraw, e2 psrad, e5 pmulhw,
    e8 psubsb, e9 psubsw, eb por, ec paddsb, ed paddsw, ef pxor, f1 psllw, f2 pslld, f3 psllq, f5 pmaddwd, f8 psubb, f9 psubw,
    fa psubd, fc paddb, fd paddw, fe paddd`;
  // These came to the MMX registers with SSE and SSE2.
  const later = `da pminub SSE, de pmaxub SSE, e0 pavgb SSE, e3 pavgw SSE, e4 pmulhuw SSE, ea pminsw SSE, ee pmaxsw SSE,
    f6 psadbw SSE, d4 paddq SSE2, f4 pmuludq SSE2, fb psubq SSE2`;
  const rows: string[] = [];
  for (const operation of operations.split(',')) {
    const [opcode, name, memory = 'Qq'] = operation.trim().split(' ');
    rows.push(`np:${opcode} ${name} Pq,${memory} @MMX`, `66:${opcode} ${name} Vx,Wx @SSE2`);
  }
  for (const operation of later.split(',')) {
    const [opcode, name, feature] = operation.trim().split(' ');
    rows.push(`np:${opcode} ${name} Pq,Qq @${feature}`, `66:${opcode} ${name} Vx,Wx @SSE2`);
  }
  return rows.join('\n');
}

/** Arithmetic in the four ways PS, PD, SS, SD; without PD and SD for the approximations. */
function floats(): string {
  const operations = `51 sqrt, 52 rsqrt approximate, 53 rcp approximate, 58 add, 59 mul, 5c sub, 5d min, 5e div, 5f max`;
  return operations
    .split(',')
    .map((operation) => {
      const [opcode, name, approximate] = operation.trim().split(' ');
      const single = `np:${opcode} ${name}ps Vps,Wps @SSE\nf3:${opcode} ${name}ss Vss,Wss @SSE`;
      if (approximate !== undefined) return single;
      return `${single}\n66:${opcode} ${name}pd Vpd,Wpd @SSE2\nf2:${opcode} ${name}sd Vsd,Wsd @SSE2`;
    })
    .join('\n');
}

export const SSE = `
${packedIntegers()}
${floats()}

np:10   movups    Vps,Wps       @SSE
66:10   movupd    Vpd,Wpd       @SSE2
f3:10   movss     Vss,Wss       @SSE
f2:10   movsd     Vsd,Wsd       @SSE2
np:11   movups    Wps,Vps       @SSE
66:11   movupd    Wpd,Vpd       @SSE2
f3:11   movss     Wss,Vss       @SSE
f2:11   movsd     Wsd,Vsd       @SSE2
np:12   movlps    Vq,Mq         @SSE
np:12   movhlps   Vq,Uq         @SSE
66:12   movlpd    Vq,Mq         @SSE2
f3:12   movsldup  Vps,Wps       @SSE3
f2:12   movddup   Vx,Wq         @SSE3
np:13   movlps    Mq,Vq         @SSE
66:13   movlpd    Mq,Vq         @SSE2
np:14   unpcklps  Vps,Wps       @SSE
66:14   unpcklpd  Vpd,Wpd       @SSE2
np:15   unpckhps  Vps,Wps       @SSE
66:15   unpckhpd  Vpd,Wpd       @SSE2
np:16   movhps    Vq,Mq         @SSE
np:16   movlhps   Vq,Uq         @SSE
66:16   movhpd    Vq,Mq         @SSE2
f3:16   movshdup  Vps,Wps       @SSE3
np:17   movhps    Mq,Vq         @SSE
66:17   movhpd    Mq,Vq         @SSE2
np:28   movaps    Vps,Wps       @SSE
66:28   movapd    Vpd,Wpd       @SSE2
np:29   movaps    Wps,Vps       @SSE
66:29   movapd    Wpd,Vpd       @SSE2
np:2a   cvtpi2ps  Vps,Qq        @SSE
66:2a   cvtpi2pd  Vpd,Qq        @SSE2
f3:2a   cvtsi2ss  Vss,Ey        @SSE
f2:2a   cvtsi2sd  Vsd,Ey        @SSE2
np:2b   movntps   Mps,Vps       @SSE
66:2b   movntpd   Mpd,Vpd       @SSE2
np:2c   cvttps2pi Pq,Wq         @SSE
66:2c   cvttpd2pi Pq,Wpd        @SSE2
f3:2c   cvttss2si Gy,Wss        @SSE
f2:2c   cvttsd2si Gy,Wsd        @SSE2
np:2d   cvtps2pi  Pq,Wq         @SSE
66:2d   cvtpd2pi  Pq,Wpd        @SSE2
f3:2d   cvtss2si  Gy,Wss        @SSE
f2:2d   cvtsd2si  Gy,Wsd        @SSE2
np:2e   ucomiss   Vss,Wss       =00m0mm @SSE
66:2e   ucomisd   Vsd,Wsd       =00m0mm @SSE2
np:2f   comiss    Vss,Wss       =00m0mm @SSE
66:2f   comisd    Vsd,Wsd       =00m0mm @SSE2

np:50   movmskps  Gy,Ups        @SSE
66:50   movmskpd  Gy,Upd        @SSE2
np:54   andps     Vps,Wps       @SSE
66:54   andpd     Vpd,Wpd       @SSE2
np:55   andnps    Vps,Wps       @SSE
66:55   andnpd    Vpd,Wpd       @SSE2
np:56   orps      Vps,Wps       @SSE
66:56   orpd      Vpd,Wpd       @SSE2
np:57   xorps     Vps,Wps       @SSE
66:57   xorpd     Vpd,Wpd       @SSE2
np:5a   cvtps2pd  Vpd,Wq        @SSE2
66:5a   cvtpd2ps  Vps,Wpd       @SSE2
f3:5a   cvtss2sd  Vsd,Wss       @SSE2
f2:5a   cvtsd2ss  Vss,Wsd       @SSE2
np:5b   cvtdq2ps  Vps,Wdq       @SSE2
66:5b   cvtps2dq  Vdq,Wps       @SSE2
f3:5b   cvttps2dq Vdq,Wps       @SSE2
66:6c   punpcklqdq  Vx,Wx       @SSE2
66:6d   punpckhqdq  Vx,Wx       @SSE2
np:6e   movd/movq Pq,Ey         @MMX
66:6e   movd/movq Vdq,Ey        @SSE2
np:6f   movq      Pq,Qq         @MMX
66:6f   movdqa    Vx,Wx         @SSE2
f3:6f   movdqu    Vx,Wx         @SSE2

np:70   pshufw    Pq,Qq,Ib      @SSE
66:70   pshufd    Vx,Wx,Ib      @SSE2
f3:70   pshufhw   Vx,Wx,Ib      @SSE2
f2:70   pshuflw   Vx,Wx,Ib      @SSE2
np:71/2 psrlw     Nq,Ib         @MMX
66:71/2 psrlw     Ux,Ib         @SSE2
np:71/4 psraw     Nq,Ib         @MMX
66:71/4 psraw     Ux,Ib         @SSE2
np:71/6 psllw     Nq,Ib         @MMX
66:71/6 psllw     Ux,Ib         @SSE2
np:72/2 psrld     Nq,Ib         @MMX
66:72/2 psrld     Ux,Ib         @SSE2
np:72/4 psrad     Nq,Ib         @MMX
66:72/4 psrad     Ux,Ib         @SSE2
np:72/6 pslld     Nq,Ib         @MMX
66:72/6 pslld     Ux,Ib         @SSE2
np:73/2 psrlq     Nq,Ib         @MMX
66:73/2 psrlq     Ux,Ib         @SSE2
66:73/3 psrldq    Ux,Ib         @SSE2
np:73/6 psllq     Nq,Ib         @MMX
66:73/6 psllq     Ux,Ib         @SSE2
66:73/7 pslldq    Ux,Ib         @SSE2
np:77   emms      -             @MMX
66:7c   haddpd    Vpd,Wpd       @SSE3
f2:7c   haddps    Vps,Wps       @SSE3
66:7d   hsubpd    Vpd,Wpd       @SSE3
f2:7d   hsubps    Vps,Wps       @SSE3
np:7e   movd/movq Ey,Pq         @MMX
66:7e   movd/movq Ey,Vdq        @SSE2
f3:7e   movq      Vq,Wq         @SSE2
np:7f   movq      Qq,Pq         @MMX
66:7f   movdqa    Wx,Vx         @SSE2
f3:7f   movdqu    Wx,Vx         @SSE2

np:c2   cmpps     Vps,Wps,Ib    @SSE
66:c2   cmppd     Vpd,Wpd,Ib    @SSE2
f3:c2   cmpss     Vss,Wss,Ib    @SSE
f2:c2   cmpsd     Vsd,Wsd,Ib    @SSE2
np:c4   pinsrw    Pq,RyMw,Ib    @SSE
66:c4   pinsrw    Vdq,RyMw,Ib   @SSE2
np:c5   pextrw    Gy,Nq,Ib      @SSE
66:c5   pextrw    Gy,Udq,Ib     @SSE2
np:c6   shufps    Vps,Wps,Ib    @SSE
66:c6   shufpd    Vpd,Wpd,Ib    @SSE2
66:d0   addsubpd  Vpd,Wpd       @SSE3
f2:d0   addsubps  Vps,Wps       @SSE3
66:d6   movq      Wq,Vq         @SSE2
f3:d6   movq2dq   Vdq,Nq        @SSE2
f2:d6   movdq2q   Pq,Uq         @SSE2
np:d7   pmovmskb  Gy,Nq         @SSE
66:d7   pmovmskb  Gy,Ux         @SSE2
66:e6   cvttpd2dq Vdq,Wpd       @SSE2
f3:e6   cvtdq2pd  Vpd,Wq        @SSE2
f2:e6   cvtpd2dq  Vdq,Wpd       @SSE2
np:e7   movntq    Mq,Pq         @SSE
66:e7   movntdq   Mx,Vx         @SSE2
f2:f0   lddqu     Vx,Mx         @SSE3
np:f7   maskmovq  DIq,Pq,Nq     @SSE
66:f7   maskmovdqu  DIdq,Vdq,Udq  @SSE2
`;
