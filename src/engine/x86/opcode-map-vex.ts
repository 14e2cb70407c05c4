/**
 * The maps of VEX: AVX, AVX2, FMA, F16C, BMI1 and BMI2. Source: Intel SDM vol. 2, appendix A, tables A-3 to A-6, and the
 * instructions' own pages for L and W. The prefix before the colon is VEX.pp.
 *
 * `@AVX+AVX2`: the 128-bit form came with AVX, the 256-bit form with AVX2.
 */

interface Listed {
  readonly opcode: string;
  readonly name: string;
  readonly rest: string;
}

/** Rows that differ in opcode and name only, as `opcode name [rest],`. */
function listed(list: string, row: (entry: Listed) => string): string {
  return list
    .split(',')
    .map((text) => {
      const [opcode, name, ...rest] = text.trim().split(/\s+/);
      return row({ opcode, name, rest: rest.join(' ') });
    })
    .join('\n');
}

const INTEGERS_0F = `60 punpcklbw, 61 punpcklwd, 62 punpckldq, 63 packsswb, 64 pcmpgtb, 65 pcmpgtw, 66 pcmpgtd, 67 packuswb,
  68 punpckhbw, 69 punpckhwd, 6a punpckhdq, 6b packssdw, 6c punpcklqdq, 6d punpckhqdq, 74 pcmpeqb, 75 pcmpeqw, 76 pcmpeqd,
  d4 paddq, d5 pmullw, d8 psubusb, d9 psubusw, da pminub, db pand, dc paddusb, dd paddusw, de pmaxub, df pandn, e0 pavgb,
  e3 pavgw, e4 pmulhuw, e5 pmulhw, e8 psubsb, e9 psubsw, ea pminsw, eb por, ec paddsb, ed paddsw, ee pmaxsw, ef pxor,
  f4 pmuludq, f5 pmaddwd, f6 psadbw, f8 psubb, f9 psubw, fa psubd, fb psubq, fc paddb, fd paddw, fe paddd`;

/** Shifts whose count is the low quadword of an XMM register or of 16 bytes of memory. */
const SHIFTS = 'd1 psrlw, d2 psrld, d3 psrlq, e1 psraw, e2 psrad, f1 psllw, f2 pslld, f3 psllq';
const SHIFTS_IMMEDIATE = `71/2 psrlw, 71/4 psraw, 71/6 psllw, 72/2 psrld, 72/4 psrad, 72/6 pslld, 73/2 psrlq, 73/3 psrldq,
  73/6 psllq, 73/7 pslldq`;

const INTEGERS_0F38 = `00 pshufb, 01 phaddw, 02 phaddd, 03 phaddsw, 04 pmaddubsw, 05 phsubw, 06 phsubd, 07 phsubsw, 08 psignb,
  09 psignw, 0a psignd, 0b pmulhrsw, 28 pmuldq, 29 pcmpeqq, 2b packusdw, 37 pcmpgtq, 38 pminsb, 39 pminsd, 3a pminuw,
  3b pminud, 3c pmaxsb, 3d pmaxsd, 3e pmaxuw, 3f pmaxud, 40 pmulld`;

const EXTENSIONS = `20 pmovsxbw Wh, 21 pmovsxbd Wf, 22 pmovsxbq We, 23 pmovsxwd Wh, 24 pmovsxwq Wf, 25 pmovsxdq Wh,
  30 pmovzxbw Wh, 31 pmovzxbd Wf, 32 pmovzxbq We, 33 pmovzxwd Wh, 34 pmovzxwq Wf, 35 pmovzxdq Wh`;

const FOUR_WAYS = '58 add, 59 mul, 5c sub, 5d min, 5e div, 5f max';
const FUSED_PACKED = '6 fmaddsub, 7 fmsubadd, 8 fmadd, a fmsub, c fnmadd, e fnmsub';
const FUSED_SCALAR = '9 fmadd, b fmsub, d fnmadd, f fnmsub';

function fused(): string {
  const orders: readonly (readonly [high: string, order: string])[] = [
    ['9', '132'],
    ['a', '213'],
    ['b', '231'],
  ];
  return orders
    .map(
      ([high, order]) => `
        ${listed(FUSED_PACKED, ({ opcode, name }) => `66:${high}${opcode} v${name}${order}ps Vps,Hps,Wps w0\n66:${high}${opcode} v${name}${order}pd Vpd,Hpd,Wpd w1`)}
        ${listed(FUSED_SCALAR, ({ opcode, name }) => `66:${high}${opcode} v${name}${order}ss Vss,Hss,Wss w0\n66:${high}${opcode} v${name}${order}sd Vsd,Hsd,Wsd w1`)}`,
    )
    .join('\n');
}

export const VEX_0F = `
@AVX+AVX2
${listed(INTEGERS_0F, ({ opcode, name }) => `66:${opcode} v${name} Vx,Hx,Wx`)}
${listed(SHIFTS, ({ opcode, name }) => `66:${opcode} v${name} Vx,Hx,Wdq`)}
${listed(SHIFTS_IMMEDIATE, ({ opcode, name }) => `66:${opcode} v${name} Hx,Ux,Ib`)}
66:70   vpshufd   Vx,Wx,Ib
f3:70   vpshufhw  Vx,Wx,Ib
f2:70   vpshuflw  Vx,Wx,Ib
66:d7   vpmovmskb Gy,Ux

@AVX
${listed(FOUR_WAYS, ({ opcode, name }) => `np:${opcode} v${name}ps Vps,Hps,Wps\n66:${opcode} v${name}pd Vpd,Hpd,Wpd\nf3:${opcode} v${name}ss Vss,Hss,Wss\nf2:${opcode} v${name}sd Vsd,Hsd,Wsd`)}
np:10   vmovups   Vps,Wps
66:10   vmovupd   Vpd,Wpd
f3:10   vmovss    Vss,Md
f3:10   vmovss    Vss,Hss,Uss
f2:10   vmovsd    Vsd,Mq
f2:10   vmovsd    Vsd,Hsd,Usd
np:11   vmovups   Wps,Vps
66:11   vmovupd   Wpd,Vpd
f3:11   vmovss    Md,Vss
f3:11   vmovss    Uss,Hss,Vss
f2:11   vmovsd    Mq,Vsd
f2:11   vmovsd    Usd,Hsd,Vsd
np:12   vmovlps   Vq,Hq,Mq      l0
np:12   vmovhlps  Vq,Hq,Uq      l0
66:12   vmovlpd   Vq,Hq,Mq      l0
f3:12   vmovsldup Vps,Wps
f2:12   vmovddup  Vdq,Wq        l0
f2:12   vmovddup  Vqq,Wqq       l1
np:13   vmovlps   Mq,Vq         l0
66:13   vmovlpd   Mq,Vq         l0
np:14   vunpcklps Vps,Hps,Wps
66:14   vunpcklpd Vpd,Hpd,Wpd
np:15   vunpckhps Vps,Hps,Wps
66:15   vunpckhpd Vpd,Hpd,Wpd
np:16   vmovhps   Vq,Hq,Mq      l0
np:16   vmovlhps  Vq,Hq,Uq      l0
66:16   vmovhpd   Vq,Hq,Mq      l0
f3:16   vmovshdup Vps,Wps
np:17   vmovhps   Mq,Vq         l0
66:17   vmovhpd   Mq,Vq         l0
np:28   vmovaps   Vps,Wps
66:28   vmovapd   Vpd,Wpd
np:29   vmovaps   Wps,Vps
66:29   vmovapd   Wpd,Vpd
f3:2a   vcvtsi2ss Vss,Hss,Ey
f2:2a   vcvtsi2sd Vsd,Hsd,Ey
np:2b   vmovntps  Mps,Vps
66:2b   vmovntpd  Mpd,Vpd
f3:2c   vcvttss2si  Gy,Wss
f2:2c   vcvttsd2si  Gy,Wsd
f3:2d   vcvtss2si Gy,Wss
f2:2d   vcvtsd2si Gy,Wsd
np:2e   vucomiss  Vss,Wss       =00m0mm
66:2e   vucomisd  Vsd,Wsd       =00m0mm
np:2f   vcomiss   Vss,Wss       =00m0mm
66:2f   vcomisd   Vsd,Wsd       =00m0mm
np:50   vmovmskps Gy,Ups
66:50   vmovmskpd Gy,Upd
np:51   vsqrtps   Vps,Wps
66:51   vsqrtpd   Vpd,Wpd
f3:51   vsqrtss   Vss,Hss,Wss
f2:51   vsqrtsd   Vsd,Hsd,Wsd
np:52   vrsqrtps  Vps,Wps
f3:52   vrsqrtss  Vss,Hss,Wss
np:53   vrcpps    Vps,Wps
f3:53   vrcpss    Vss,Hss,Wss
np:54   vandps    Vps,Hps,Wps
66:54   vandpd    Vpd,Hpd,Wpd
np:55   vandnps   Vps,Hps,Wps
66:55   vandnpd   Vpd,Hpd,Wpd
np:56   vorps     Vps,Hps,Wps
66:56   vorpd     Vpd,Hpd,Wpd
np:57   vxorps    Vps,Hps,Wps
66:57   vxorpd    Vpd,Hpd,Wpd
np:5a   vcvtps2pd Vpd,Wh
66:5a   vcvtpd2ps Vdq,Wpd
f3:5a   vcvtss2sd Vsd,Hsd,Wss
f2:5a   vcvtsd2ss Vss,Hss,Wsd
np:5b   vcvtdq2ps Vps,Wx
66:5b   vcvtps2dq Vx,Wps
f3:5b   vcvttps2dq  Vx,Wps
66:6e   vmovd/vmovq Vdq,Ey      l0
66:6f   vmovdqa   Vx,Wx
f3:6f   vmovdqu   Vx,Wx
np:77   vzeroupper  -           l0
np:77   vzeroall  -             l1
66:7c   vhaddpd   Vpd,Hpd,Wpd
f2:7c   vhaddps   Vps,Hps,Wps
66:7d   vhsubpd   Vpd,Hpd,Wpd
f2:7d   vhsubps   Vps,Hps,Wps
66:7e   vmovd/vmovq Ey,Vdq      l0
f3:7e   vmovq     Vq,Wq         l0
66:7f   vmovdqa   Wx,Vx
f3:7f   vmovdqu   Wx,Vx
np:ae/2 vldmxcsr  Md            l0
np:ae/3 vstmxcsr  Md            l0
np:c2   vcmpps    Vps,Hps,Wps,Ib
66:c2   vcmppd    Vpd,Hpd,Wpd,Ib
f3:c2   vcmpss    Vss,Hss,Wss,Ib
f2:c2   vcmpsd    Vsd,Hsd,Wsd,Ib
66:c4   vpinsrw   Vdq,Hdq,RyMw,Ib  l0
66:c5   vpextrw   Gy,Udq,Ib     l0
np:c6   vshufps   Vps,Hps,Wps,Ib
66:c6   vshufpd   Vpd,Hpd,Wpd,Ib
66:d0   vaddsubpd Vpd,Hpd,Wpd
f2:d0   vaddsubps Vps,Hps,Wps
66:d6   vmovq     Wq,Vq         l0
66:e6   vcvttpd2dq  Vdq,Wpd
f3:e6   vcvtdq2pd Vpd,Wh
f2:e6   vcvtpd2dq Vdq,Wpd
66:e7   vmovntdq  Mx,Vx
f2:f0   vlddqu    Vx,Mx
66:f7   vmaskmovdqu  DIdq,Vdq,Udq  l0
`;

export const VEX_0F38 = `
@AVX+AVX2
${listed(INTEGERS_0F38, ({ opcode, name }) => `66:${opcode} v${name} Vx,Hx,Wx`)}
${listed(EXTENSIONS, ({ opcode, name, rest }) => `66:${opcode} v${name} Vx,${rest}`)}
66:1c   vpabsb    Vx,Wx
66:1d   vpabsw    Vx,Wx
66:1e   vpabsd    Vx,Wx
66:2a   vmovntdqa Vx,Mx

@AVX
66:0c   vpermilps Vps,Hps,Wps   w0
66:0d   vpermilpd Vpd,Hpd,Wpd   w0
66:0e   vtestps   Vps,Wps       =00m00m w0
66:0f   vtestpd   Vpd,Wpd       =00m00m w0
66:17   vptest    Vx,Wx         =00m00m
66:18   vbroadcastss  Vps,Md    w0
66:18   vbroadcastss  Vps,Uss   w0 @AVX2
66:19   vbroadcastsd  Vpd,Mq    w0 l1
66:19   vbroadcastsd  Vpd,Usd   w0 l1 @AVX2
66:1a   vbroadcastf128  Vqq,Mdq w0 l1
66:2c   vmaskmovps  Vps,Hps,Mps w0
66:2d   vmaskmovpd  Vpd,Hpd,Mpd w0
66:2e   vmaskmovps  Mps,Hps,Vps w0
66:2f   vmaskmovpd  Mpd,Hpd,Vpd w0
66:41   vphminposuw Vdq,Wdq     l0
66:db   vaesimc   Vdq,Wdq       l0 @AVX&AES
66:dc   vaesenc   Vdq,Hdq,Wdq   l0 @AVX&AES
66:dd   vaesenclast  Vdq,Hdq,Wdq  l0 @AVX&AES
66:de   vaesdec   Vdq,Hdq,Wdq   l0 @AVX&AES
66:df   vaesdeclast  Vdq,Hdq,Wdq  l0 @AVX&AES

@F16C
66:13   vcvtph2ps Vps,Wh        w0

@AVX2
66:16   vpermps   Vqq,Hqq,Wqq   w0 l1
66:36   vpermd    Vqq,Hqq,Wqq   w0 l1
66:45   vpsrlvd   Vx,Hx,Wx      w0
66:45   vpsrlvq   Vx,Hx,Wx      w1
66:46   vpsravd   Vx,Hx,Wx      w0
66:47   vpsllvd   Vx,Hx,Wx      w0
66:47   vpsllvq   Vx,Hx,Wx      w1
66:58   vpbroadcastd  Vx,Wd     w0
66:59   vpbroadcastq  Vx,Wq     w0
66:5a   vbroadcasti128  Vqq,Mdq w0 l1
66:78   vpbroadcastb  Vx,Wb     w0
66:79   vpbroadcastw  Vx,Ww     w0
66:8c   vpmaskmovd  Vx,Hx,Mx    w0
66:8c   vpmaskmovq  Vx,Hx,Mx    w1
66:8e   vpmaskmovd  Mx,Hx,Vx    w0
66:8e   vpmaskmovq  Mx,Hx,Vx    w1
66:90   vpgatherdd  Vx,VMdd,Hx  w0
66:90   vpgatherdq  Vx,VMdq,Hx  w1
66:91   vpgatherqd  Vdq,VMqd,Hdq  w0
66:91   vpgatherqq  Vx,VMqq,Hx  w1
66:92   vgatherdps  Vps,VMdd,Hps  w0
66:92   vgatherdpd  Vpd,VMdq,Hpd  w1
66:93   vgatherqps  Vdq,VMqd,Hdq  w0
66:93   vgatherqpd  Vpd,VMqq,Hpd  w1

@FMA
${fused()}

@BMI1
np:f2   andn      Gy,By,Ey      =0mm??0 l0
np:f3/1 blsr      By,Ey         =0mm??m l0
np:f3/2 blsmsk    By,Ey         =0m0??m l0
np:f3/3 blsi      By,Ey         =0mm??m l0
np:f7   bextr     Gy,Ey,By      =0?m??0 l0

@BMI2
np:f5   bzhi      Gy,Ey,By      =0mm??m l0
f3:f5   pext      Gy,By,Ey      l0
f2:f5   pdep      Gy,By,Ey      l0
f2:f6   mulx      Gy,By,Ey      l0
66:f7   shlx      Gy,Ey,By      l0
f3:f7   sarx      Gy,Ey,By      l0
f2:f7   shrx      Gy,Ey,By      l0
`;

export const VEX_0F3A = `
@AVX
66:04   vpermilps Vps,Wps,Ib    w0
66:05   vpermilpd Vpd,Wpd,Ib    w0
66:06   vperm2f128  Vqq,Hqq,Wqq,Ib  w0 l1
66:08   vroundps  Vps,Wps,Ib
66:09   vroundpd  Vpd,Wpd,Ib
66:0a   vroundss  Vss,Hss,Wss,Ib
66:0b   vroundsd  Vsd,Hsd,Wsd,Ib
66:0c   vblendps  Vps,Hps,Wps,Ib
66:0d   vblendpd  Vpd,Hpd,Wpd,Ib
66:0e   vpblendw  Vx,Hx,Wx,Ib   @AVX+AVX2
66:0f   vpalignr  Vx,Hx,Wx,Ib   @AVX+AVX2
66:14   vpextrb   RyMb,Vdq,Ib   l0
66:15   vpextrw   RyMw,Vdq,Ib   l0
66:16   vpextrd/vpextrq  Ey,Vdq,Ib  l0
66:17   vextractps  RyMd,Vdq,Ib l0
66:18   vinsertf128  Vqq,Hqq,Wdq,Ib  w0 l1
66:19   vextractf128  Wdq,Vqq,Ib  w0 l1
66:1d   vcvtps2ph Wh,Vps,Ib     w0 @F16C
66:20   vpinsrb   Vdq,Hdq,RyMb,Ib  l0
66:21   vinsertps Vdq,Hdq,Wd,Ib l0
66:22   vpinsrd/vpinsrq  Vdq,Hdq,Ey,Ib  l0
66:40   vdpps     Vps,Hps,Wps,Ib
66:41   vdppd     Vdq,Hdq,Wdq,Ib  l0
66:42   vmpsadbw  Vx,Hx,Wx,Ib   @AVX+AVX2
66:44   vpclmulqdq  Vdq,Hdq,Wdq,Ib  l0 @AVX&PCLMULQDQ
66:4a   vblendvps Vps,Hps,Wps,Lx  w0
66:4b   vblendvpd Vpd,Hpd,Wpd,Lx  w0
66:4c   vpblendvb Vx,Hx,Wx,Lx   w0 @AVX+AVX2
66:60   vpcmpestrm  Vdq,Wdq,Ib  =mmm00m y l0
66:61   vpcmpestri  Vdq,Wdq,Ib  =mmm00m y l0
66:62   vpcmpistrm  Vdq,Wdq,Ib  =mmm00m l0
66:63   vpcmpistri  Vdq,Wdq,Ib  =mmm00m l0
66:df   vaeskeygenassist  Vdq,Wdq,Ib  l0 @AVX&AES

@AVX2
66:00   vpermq    Vqq,Wqq,Ib    w1 l1
66:01   vpermpd   Vqq,Wqq,Ib    w1 l1
66:02   vpblendd  Vx,Hx,Wx,Ib   w0
66:38   vinserti128  Vqq,Hqq,Wdq,Ib  w0 l1
66:39   vextracti128  Wdq,Vqq,Ib  w0 l1
66:46   vperm2i128  Vqq,Hqq,Wqq,Ib  w0 l1

@BMI2
f2:f0   rorx      Gy,Ey,Ib      l0
`;
