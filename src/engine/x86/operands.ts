/**
 * The operand types of the opcode map: what each notation such as `Ev` or `Wps` stands for, and where the decoder leaves it.
 *
 *     E v        the letter says where the operand is, the rest how wide it is
 *     | +- size
 *     +--- addressing
 *
 * Source: Intel SDM vol. 2, appendix A.2.1 (codes for addressing) and A.2.2 (codes for operand type). Additions of our own:
 * `Z` (register in the low three bits of the opcode, where the SDM writes `rAX/r8`), `sIb` (the sign-extended one of the SDM's
 * two kinds of `Ib`), the sizes `h`, `f`, `e` (a half, a fourth, an eighth of `x`), and operands that are registers of one
 * width or memory of another, such as `RyMb`.
 *
 * MMX, segment and x87 registers have three bits: the decoder has taken away REX.R and REX.B for them.
 */

export type OperandClass =
  /** General register, or memory when the place is `rm` and mod is not 3. */
  | 'gpr'
  /** MMX, XMM or YMM register, or memory as above. An `xmm` of size `x` is a YMM register when VEX.L is set. */
  | 'mmx'
  | 'xmm'
  /** Memory only; with a vector of indexes (the size is that of one element). */
  | 'mem'
  | 'vsib'
  | 'segment'
  | 'control'
  | 'debug'
  | 'st'
  | 'immediate'
  /** The constant 1 of the shifts. */
  | 'one'
  /** Branch displacement, counted from the next instruction. */
  | 'relative'
  /** Selector (`imm2`) and offset (`immLo`). */
  | 'far'
  /** Memory whose address is the immediate. */
  | 'moffs'
  /** Memory at rSI (or its segment override), at ES:rDI, at rDI (or override), at rBX + AL. */
  | 'source'
  | 'destination'
  | 'mask-destination'
  | 'translate';

/** The field of `Instruction` that holds the register's number; `fixed` is `fixed` below. */
export type OperandPlace = 'reg' | 'rm' | 'vvvv' | 'imm' | 'fixed';

/**
 * Width in bytes, or a letter for what depends on the instruction:
 * `v`: `operandSize`; `z`: 4 where that is 8; `y`: 4 where that is 2; `2y`: two of `y`; `x`, `h`, `f`, `e`: 16 or 32 by VEX.L, and its parts;
 * `p`: far pointer, operandSize + 2; `a`: two of operandSize (BOUND); `s`: descriptor-table register, 10 in 64-bit mode and 6
 * otherwise; `env`, `state`: x87 environment (14 or 28) and state (94 or 108) by operandSize; `xsave`: by XCR0.
 */
export type OperandSize =
  | 0
  | 1
  | 2
  | 4
  | 8
  | 10
  | 16
  | 32
  | 64
  | 512
  | 'v'
  | 'y'
  | 'z'
  | 'x'
  | 'h'
  | 'f'
  | 'e'
  | 'p'
  | 'a'
  | 's'
  | '2y'
  | 'env'
  | 'state'
  | 'xsave';

export interface OperandInfo {
  readonly class: OperandClass;
  readonly place: OperandPlace;
  readonly size: OperandSize;
  /** Width of the memory form, where it is not that of the register. */
  readonly memorySize: OperandSize;
  /** What mod may be: the register's form only, memory only, or both. */
  readonly mod: 'register' | 'memory' | 'any';
  /** The register's number for the place `fixed`. */
  readonly fixed: number;
}

type Letter = readonly [OperandClass, OperandPlace, OperandInfo['mod']];

const LETTERS: Readonly<Record<string, Letter>> = {
  A: ['far', 'imm', 'any'],
  B: ['gpr', 'vvvv', 'any'],
  C: ['control', 'reg', 'any'],
  D: ['debug', 'reg', 'any'],
  E: ['gpr', 'rm', 'any'],
  G: ['gpr', 'reg', 'any'],
  H: ['xmm', 'vvvv', 'any'],
  I: ['immediate', 'imm', 'any'],
  J: ['relative', 'imm', 'any'],
  L: ['xmm', 'imm', 'any'],
  M: ['mem', 'rm', 'memory'],
  N: ['mmx', 'rm', 'register'],
  O: ['moffs', 'imm', 'any'],
  P: ['mmx', 'reg', 'any'],
  Q: ['mmx', 'rm', 'any'],
  R: ['gpr', 'rm', 'register'],
  S: ['segment', 'reg', 'any'],
  U: ['xmm', 'rm', 'register'],
  V: ['xmm', 'reg', 'any'],
  W: ['xmm', 'rm', 'any'],
  X: ['source', 'fixed', 'any'],
  Y: ['destination', 'fixed', 'any'],
  Z: ['gpr', 'rm', 'any'],
};

const SIZES: Readonly<Record<string, OperandSize>> = {
  '': 0,
  a: 'a',
  b: 1,
  w: 2,
  d: 4,
  q: 8,
  t: 10,
  dq: 16,
  qq: 32,
  v: 'v',
  y: 'y',
  z: 'z',
  x: 'x',
  h: 'h',
  f: 'f',
  e: 'e',
  ps: 'x',
  pd: 'x',
  ss: 4,
  sd: 8,
  p: 'p',
  s: 's',
};

function plain(name: string): OperandInfo {
  const letter = LETTERS[name.charAt(0)];
  const size = SIZES[name.slice(1)];
  if (letter === undefined || size === undefined) throw new Error(`x86 operands: what is ${name}?`);
  return { class: letter[0], place: letter[1], size, memorySize: size, mod: letter[2], fixed: 0 };
}

function fixed(operandClass: OperandClass, number: number, size: OperandSize): OperandInfo {
  return { class: operandClass, place: 'fixed', size, memorySize: size, mod: 'any', fixed: number };
}

function registerOrMemory(name: string, memorySize: OperandSize): OperandInfo {
  return { ...plain(name), mod: 'any', memorySize };
}

function memory(size: OperandSize, operandClass: OperandClass = 'mem'): OperandInfo {
  return { class: operandClass, place: 'rm', size, memorySize: size, mod: 'memory', fixed: 0 };
}

/** All operand types in use. A row of the opcode map that names another one fails when the tables are built. */
export const OPERANDS = {
  // General registers and memory.
  Eb: plain('Eb'),
  Ew: plain('Ew'),
  Ed: plain('Ed'),
  Ev: plain('Ev'),
  Ey: plain('Ey'),
  Ez: plain('Ez'),
  Gb: plain('Gb'),
  Gw: plain('Gw'),
  Gd: plain('Gd'),
  Gv: plain('Gv'),
  Gy: plain('Gy'),
  Gz: plain('Gz'),
  Zb: plain('Zb'),
  Zv: plain('Zv'),
  Rv: plain('Rv'),
  Ry: plain('Ry'),
  /** Whatever mod is: the other operand is a control or debug register. */
  Rm: { ...plain('Ry'), mod: 'any' },
  By: plain('By'),
  RvMw: registerOrMemory('Rv', 2),
  RyMb: registerOrMemory('Ry', 1),
  RyMw: registerOrMemory('Ry', 2),
  RyMd: registerOrMemory('Ry', 4),
  // Memory.
  M: plain('M'),
  Ma: plain('Ma'),
  Mb: plain('Mb'),
  Mw: plain('Mw'),
  Md: plain('Md'),
  Mq: plain('Mq'),
  Mt: plain('Mt'),
  Mdq: plain('Mdq'),
  Mqq: plain('Mqq'),
  Mv: plain('Mv'),
  My: plain('My'),
  Mx: plain('Mx'),
  Mps: plain('Mps'),
  Mpd: plain('Mpd'),
  Mp: plain('Mp'),
  Ms: plain('Ms'),
  M2y: memory('2y'),
  Menv: memory('env'),
  Mstate: memory('state'),
  Mline: memory(64),
  Mfx: memory(512),
  Mxsave: memory('xsave'),
  // With a vector of doubleword or quadword indexes, to elements of doublewords or quadwords.
  VMdd: memory(4, 'vsib'),
  VMdq: memory(8, 'vsib'),
  VMqd: memory(4, 'vsib'),
  VMqq: memory(8, 'vsib'),
  Ob: plain('Ob'),
  Ov: plain('Ov'),
  Xb: plain('Xb'),
  Xv: plain('Xv'),
  Xz: plain('Xz'),
  Yb: plain('Yb'),
  Yv: plain('Yv'),
  Yz: plain('Yz'),
  BAb: fixed('translate', 0, 1),
  DIq: fixed('mask-destination', 0, 8),
  DIdq: fixed('mask-destination', 0, 16),
  // Immediates and branches. `Ib` is zero-extended, `sIb`, `Iz`, `Jb` and `Jz` are sign-extended, `Iv` is zero-extended.
  Ib: plain('Ib'),
  sIb: plain('Ib'),
  Iw: plain('Iw'),
  Iz: plain('Iz'),
  Iv: plain('Iv'),
  One: fixed('one', 0, 1),
  Jb: plain('Jb'),
  Jz: plain('Jz'),
  Ap: plain('Ap'),
  // Registers that the opcode implies: rAX and eAX are as wide as the instruction, `v` and `z`.
  AL: fixed('gpr', 0, 1),
  CL: fixed('gpr', 1, 1),
  AX: fixed('gpr', 0, 2),
  DX: fixed('gpr', 2, 2),
  rAX: fixed('gpr', 0, 'v'),
  eAX: fixed('gpr', 0, 'z'),
  ES: fixed('segment', 0, 2),
  CS: fixed('segment', 1, 2),
  SS: fixed('segment', 2, 2),
  DS: fixed('segment', 3, 2),
  FS: fixed('segment', 4, 2),
  GS: fixed('segment', 5, 2),
  ST0: fixed('st', 0, 10),
  STi: { class: 'st', place: 'rm', size: 10, memorySize: 10, mod: 'register', fixed: 0 },
  Sw: plain('Sw'),
  Cy: plain('Cy'),
  Dy: plain('Dy'),
  // MMX.
  Pq: plain('Pq'),
  Qq: plain('Qq'),
  Qd: registerOrMemory('Qq', 4),
  Nq: plain('Nq'),
  // SSE and AVX.
  Vps: plain('Vps'),
  Vpd: plain('Vpd'),
  Vss: plain('Vss'),
  Vsd: plain('Vsd'),
  Vq: plain('Vq'),
  Vdq: plain('Vdq'),
  Vqq: plain('Vqq'),
  Vx: plain('Vx'),
  Wps: plain('Wps'),
  Wpd: plain('Wpd'),
  Wss: plain('Wss'),
  Wsd: plain('Wsd'),
  Wb: plain('Wb'),
  Ww: plain('Ww'),
  Wd: plain('Wd'),
  Wq: plain('Wq'),
  Wdq: plain('Wdq'),
  Wqq: plain('Wqq'),
  Wx: plain('Wx'),
  Wh: plain('Wh'),
  Wf: plain('Wf'),
  We: plain('We'),
  Ups: plain('Ups'),
  Upd: plain('Upd'),
  Uss: plain('Uss'),
  Usd: plain('Usd'),
  Uq: plain('Uq'),
  Udq: plain('Udq'),
  Ux: plain('Ux'),
  Hps: plain('Hps'),
  Hpd: plain('Hpd'),
  Hss: plain('Hss'),
  Hsd: plain('Hsd'),
  Hq: plain('Hq'),
  Hdq: plain('Hdq'),
  Hqq: plain('Hqq'),
  Hx: plain('Hx'),
  Lx: plain('Lx'),
} as const satisfies Readonly<Record<string, OperandInfo>>;

export type OperandType = keyof typeof OPERANDS;

export function isOperandType(name: string): name is OperandType {
  return Object.hasOwn(OPERANDS, name);
}
