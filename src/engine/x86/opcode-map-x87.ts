/**
 * The x87 escape opcodes D8-DF. Source: Intel SDM vol. 2, appendix A.5. `d9/4:0` is the row D9 E0: mod 3, reg 4, rm 0.
 *
 * The tables of the SDM leave some encodings empty that every CPU takes as aliases (AMD APM vol. 3, appendix A.1.4, lists them as
 * reserved; the 287 named them FCOM2, FCOMP3, FXCH4, FSTP8 and so on). They are marked "alias".
 */
export const X87 = `
@FPU
d8/0    fadd      Md
d8/1    fmul      Md
d8/2    fcom      Md
d8/3    fcomp     Md
d8/4    fsub      Md
d8/5    fsubr     Md
d8/6    fdiv      Md
d8/7    fdivr     Md
d8/0    fadd      ST0,STi
d8/1    fmul      ST0,STi
d8/2    fcom      ST0,STi
d8/3    fcomp     ST0,STi
d8/4    fsub      ST0,STi
d8/5    fsubr     ST0,STi
d8/6    fdiv      ST0,STi
d8/7    fdivr     ST0,STi

d9/0    fld       Md
d9/2    fst       Md
d9/3    fstp      Md
d9/4    fldenv    Menv          z
d9/5    fldcw     Mw
d9/6    fnstenv   Menv          z
d9/7    fnstcw    Mw
d9/0    fld       STi
d9/1    fxch      ST0,STi
d9/2:0  fnop      -
# alias: like FSTP, but an empty ST0 is no exception
d9/3    fstpnce   STi
d9/4:0  fchs      -
d9/4:1  fabs      -
d9/4:4  ftst      -
d9/4:5  fxam      -
d9/5:0  fld1      -
d9/5:1  fldl2t    -
d9/5:2  fldl2e    -
d9/5:3  fldpi     -
d9/5:4  fldlg2    -
d9/5:5  fldln2    -
d9/5:6  fldz      -
d9/6:0  f2xm1     -
d9/6:1  fyl2x     -
d9/6:2  fptan     -
d9/6:3  fpatan    -
d9/6:4  fxtract   -
d9/6:5  fprem1    -
d9/6:6  fdecstp   -
d9/6:7  fincstp   -
d9/7:0  fprem     -
d9/7:1  fyl2xp1   -
d9/7:2  fsqrt     -
d9/7:3  fsincos   -
d9/7:4  frndint   -
d9/7:5  fscale    -
d9/7:6  fsin      -
d9/7:7  fcos      -

da/0    fiadd     Md
da/1    fimul     Md
da/2    ficom     Md
da/3    ficomp    Md
da/4    fisub     Md
da/5    fisubr    Md
da/6    fidiv     Md
da/7    fidivr    Md
da/0    fcmovb    ST0,STi       =.....t
da/1    fcmove    ST0,STi       =..t...
da/2    fcmovbe   ST0,STi       =..t..t
da/3    fcmovu    ST0,STi       =....t.
da/5:1  fucompp   -

db/0    fild      Md
db/1    fisttp    Md            @SSE3
db/2    fist      Md
db/3    fistp     Md
db/5    fld       Mt
db/7    fstp      Mt
db/0    fcmovnb   ST0,STi       =.....t
db/1    fcmovne   ST0,STi       =..t...
db/2    fcmovnbe  ST0,STi       =..t..t
db/3    fcmovnu   ST0,STi       =....t.
# FENI, FDISI and FSETPM of the 8087 and 80287: no-ops since
db/4:0  fneni     -
db/4:1  fndisi    -
db/4:2  fnclex    -
db/4:3  fninit    -
db/4:4  fnsetpm   -
db/5    fucomi    ST0,STi       =00m0mm
db/6    fcomi     ST0,STi       =00m0mm

dc/0    fadd      Mq
dc/1    fmul      Mq
dc/2    fcom      Mq
dc/3    fcomp     Mq
dc/4    fsub      Mq
dc/5    fsubr     Mq
dc/6    fdiv      Mq
dc/7    fdivr     Mq
dc/0    fadd      STi,ST0
dc/1    fmul      STi,ST0
# alias, both
dc/2    fcom      ST0,STi
dc/3    fcomp     ST0,STi
dc/4    fsubr     STi,ST0
dc/5    fsub      STi,ST0
dc/6    fdivr     STi,ST0
dc/7    fdiv      STi,ST0

dd/0    fld       Mq
dd/1    fisttp    Mq            @SSE3
dd/2    fst       Mq
dd/3    fstp      Mq
dd/4    frstor    Mstate        z
dd/6    fnsave    Mstate        z
dd/7    fnstsw    Mw
dd/0    ffree     STi
# alias
dd/1    fxch      ST0,STi
dd/2    fst       STi
dd/3    fstp      STi
dd/4    fucom     ST0,STi
dd/5    fucomp    ST0,STi

de/0    fiadd     Mw
de/1    fimul     Mw
de/2    ficom     Mw
de/3    ficomp    Mw
de/4    fisub     Mw
de/5    fisubr    Mw
de/6    fidiv     Mw
de/7    fidivr    Mw
de/0    faddp     STi,ST0
de/1    fmulp     STi,ST0
# alias
de/2    fcomp     ST0,STi
de/3:1  fcompp    -
de/4    fsubrp    STi,ST0
de/5    fsubp     STi,ST0
de/6    fdivrp    STi,ST0
de/7    fdivp     STi,ST0

df/0    fild      Mw
df/1    fisttp    Mw            @SSE3
df/2    fist      Mw
df/3    fistp     Mw
df/4    fbld      Mt
df/5    fild      Mq
df/6    fbstp     Mt
df/7    fistp     Mq
# alias, all four: FFREE with a pop, FXCH, FSTP, FSTP
df/0    ffreep    STi
df/1    fxch      ST0,STi
df/2    fstp      STi
df/3    fstp      STi
df/4:0  fnstsw    AX
df/5    fucomip   ST0,STi       =00m0mm
df/6    fcomip    ST0,STi       =00m0mm
`;
