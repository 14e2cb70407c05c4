/**
 * The three-byte maps 0F 38 and 0F 3A without VEX: SSSE3, SSE4.1, SSE4.2, AES, PCLMULQDQ, SHA, MOVBE, CRC32, ADX. Source: Intel
 * SDM vol. 2, appendix A, tables.
 */

/** SSSE3: for MMX registers and, with 66, for XMM registers. */
function ssse3(): string {
  const operations = `00 pshufb, 01 phaddw, 02 phaddd, 03 phaddsw, 04 pmaddubsw, 05 phsubw, 06 phsubd, 07 phsubsw, 08 psignb,
    09 psignw, 0a psignd, 0b pmulhrsw, 1c pabsb, 1d pabsw, 1e pabsd`;
  return operations
    .split(',')
    .map((operation) => {
      const [opcode, name] = operation.trim().split(' ');
      return `np:${opcode} ${name} Pq,Qq\n66:${opcode} ${name} Vx,Wx`;
    })
    .join('\n');
}

/** The mask of PBLENDVB, BLENDVPS, BLENDVPD and SHA256RNDS2 is XMM0, which is not among the operands. */
export const MAP_0F38 = `
@SSSE3
${ssse3()}
@SSE4_1
66:10   pblendvb  Vx,Wx
66:14   blendvps  Vps,Wps
66:15   blendvpd  Vpd,Wpd
66:17   ptest     Vx,Wx         =00m00m
66:20   pmovsxbw  Vx,Wh
66:21   pmovsxbd  Vx,Wf
66:22   pmovsxbq  Vx,We
66:23   pmovsxwd  Vx,Wh
66:24   pmovsxwq  Vx,Wf
66:25   pmovsxdq  Vx,Wh
66:28   pmuldq    Vx,Wx
66:29   pcmpeqq   Vx,Wx
66:2a   movntdqa  Vx,Mx
66:2b   packusdw  Vx,Wx
66:30   pmovzxbw  Vx,Wh
66:31   pmovzxbd  Vx,Wf
66:32   pmovzxbq  Vx,We
66:33   pmovzxwd  Vx,Wh
66:34   pmovzxwq  Vx,Wf
66:35   pmovzxdq  Vx,Wh
66:37   pcmpgtq   Vx,Wx         @SSE4_2
66:38   pminsb    Vx,Wx
66:39   pminsd    Vx,Wx
66:3a   pminuw    Vx,Wx
66:3b   pminud    Vx,Wx
66:3c   pmaxsb    Vx,Wx
66:3d   pmaxsd    Vx,Wx
66:3e   pmaxuw    Vx,Wx
66:3f   pmaxud    Vx,Wx
66:40   pmulld    Vx,Wx
66:41   phminposuw  Vdq,Wdq
@
66:80   invept    Gy,Mdq        =00m00m @VMX m64 ud
66:81   invvpid   Gy,Mdq        =00m00m @VMX m64 ud
66:82   invpcid   Gy,Mdq        @INVPCID m64 cpl0
np:c8   sha1nexte Vdq,Wdq       @SHA
np:c9   sha1msg1  Vdq,Wdq       @SHA
np:ca   sha1msg2  Vdq,Wdq       @SHA
np:cb   sha256rnds2  Vdq,Wdq    @SHA
np:cc   sha256msg1  Vdq,Wdq     @SHA
np:cd   sha256msg2  Vdq,Wdq     @SHA
66:db   aesimc    Vdq,Wdq       @AES
66:dc   aesenc    Vdq,Wdq       @AES
66:dd   aesenclast  Vdq,Wdq     @AES
66:de   aesdec    Vdq,Wdq       @AES
66:df   aesdeclast  Vdq,Wdq     @AES
np,66:f0  movbe   Gv,Mv         @MOVBE
np,66:f1  movbe   Mv,Gv         @MOVBE
f2:f0   crc32     Gy,Eb         y @SSE4_2
f2:f1   crc32     Gy,Ev         @SSE4_2
66:f6   adcx      Gy,Ey         =.....b @ADX
f3:f6   adox      Gy,Ey         =b..... @ADX
`;

export const MAP_0F3A = `
@SSE4_1
66:08   roundps   Vps,Wps,Ib
66:09   roundpd   Vpd,Wpd,Ib
66:0a   roundss   Vss,Wss,Ib
66:0b   roundsd   Vsd,Wsd,Ib
66:0c   blendps   Vps,Wps,Ib
66:0d   blendpd   Vpd,Wpd,Ib
66:0e   pblendw   Vx,Wx,Ib
np:0f   palignr   Pq,Qq,Ib      @SSSE3
66:0f   palignr   Vx,Wx,Ib      @SSSE3
66:14   pextrb    RyMb,Vdq,Ib
66:15   pextrw    RyMw,Vdq,Ib
66:16   pextrd/pextrq  Ey,Vdq,Ib
66:17   extractps RyMd,Vdq,Ib
66:20   pinsrb    Vdq,RyMb,Ib
66:21   insertps  Vdq,Wd,Ib
66:22   pinsrd/pinsrq  Vdq,Ey,Ib
66:40   dpps      Vps,Wps,Ib
66:41   dppd      Vdq,Wdq,Ib
66:42   mpsadbw   Vx,Wx,Ib
66:44   pclmulqdq Vdq,Wdq,Ib    @PCLMULQDQ
66:60   pcmpestrm Vdq,Wdq,Ib    =mmm00m y @SSE4_2
66:61   pcmpestri Vdq,Wdq,Ib    =mmm00m y @SSE4_2
66:62   pcmpistrm Vdq,Wdq,Ib    =mmm00m @SSE4_2
66:63   pcmpistri Vdq,Wdq,Ib    =mmm00m @SSE4_2
np:cc   sha1rnds4 Vdq,Wdq,Ib    @SHA
66:df   aeskeygenassist  Vdq,Wdq,Ib  @AES
`;
