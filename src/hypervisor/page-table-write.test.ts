import { expect, test } from 'vitest';
import { MFN_BASE } from '../machine/memory.ts';
import { PTE_P, PTE_US } from '../machine/page-table.ts';
import { RAX, RBX, RCX, RDI, RDX, RSI, VCPU } from '../machine/vcpu-block.ts';
import { FRAME_PINNED } from './domain.ts';
import { emulatePageTableWrite } from './page-table-write.ts';
import { KERNEL_VA, READ_ONLY_VA, TestGuest, VA_HI } from './testing.ts';

/** Page 0 is the page table under test: an L1 table whose kernel mapping is READ_ONLY_VA. */
const CODE = KERNEL_VA + 0x1000;
/** Entry that the tests use. */
const ENTRY = 0x48;
const ARITHMETIC = 0x8d5;

/**
 * The CPU's own answers, from a program that ran each instruction on memory with SRC in rcx:
 * [instruction, size, memory, source, rax; memory, source, rax after; defined flags]. In the 8-byte ones the result is not a
 * present entry.
 */
// biome-ignore format: a table
const MEASURED: readonly (readonly [string, number, bigint, bigint, bigint, bigint, bigint, bigint, number])[] = [
  ['add', 1, 0x7fn, 0x1n, 0x47d334603966fc99n, 0x80n, 0x1n, 0x47d334603966fc99n, 0x890],
  ['add', 1, 0x9efb8aee7cd2d79en, 0x9efb8aee7cd2d79en, 0x6a9f6c3420c918e4n, 0x9efb8aee7cd2d73cn, 0x9efb8aee7cd2d79en, 0x6a9f6c3420c918e4n, 0x815],
  ['add', 1, 0x848430be189e6624n, 0x3241607982cae22dn, 0x737fad9e2487b0b5n, 0x848430be189e6651n, 0x3241607982cae22dn, 0x737fad9e2487b0b5n, 0x10],
  ['add', 1, 0xc5f7f1ed4d4cf14fn, 0x92581e5bfe9f2d2fn, 0x7a34d4c452fdb92fn, 0xc5f7f1ed4d4cf17en, 0x92581e5bfe9f2d2fn, 0x7a34d4c452fdb92fn, 0x14],
  ['add', 2, 0x7fffn, 0x1n, 0x9cc092240625667dn, 0x8000n, 0x1n, 0x9cc092240625667dn, 0x894],
  ['add', 2, 0xaf7bf2987cfcd997n, 0xaf7bf2987cfcd997n, 0x2169ecfa1b39472fn, 0xaf7bf2987cfcb32en, 0xaf7bf2987cfcd997n, 0x2169ecfa1b39472fn, 0x85],
  ['add', 2, 0x68b82e35f615d89dn, 0xb228e3c7ac05af6dn, 0x996875e80ac43031n, 0x68b82e35f615880an, 0xb228e3c7ac05af6dn, 0x996875e80ac43031n, 0x95],
  ['add', 2, 0xf4865d12f8d8c7abn, 0x1d73380b5443320dn, 0xc38a303846722e7fn, 0xf4865d12f8d8f9b8n, 0x1d73380b5443320dn, 0xc38a303846722e7fn, 0x94],
  ['add', 4, 0x7fffffffn, 0x1n, 0x568dc2433bb6f50n, 0x80000000n, 0x1n, 0x568dc2433bb6f50n, 0x894],
  ['add', 4, 0x89bb1bcd509c4366n, 0x89bb1bcd509c4366n, 0x4376b820c072797n, 0x89bb1bcda13886ccn, 0x89bb1bcd509c4366n, 0x4376b820c072797n, 0x884],
  ['add', 4, 0x4fa3e518d1c3b1d6n, 0x377d24e7b967eccan, 0xc241e0e12dbc0a5n, 0x4fa3e5188b2b9ea0n, 0x377d24e7b967eccan, 0xc241e0e12dbc0a5n, 0x95],
  ['add', 4, 0x291d21ad4a831f92n, 0x25cd9fc1148837aen, 0xa7f741fe732e3f98n, 0x291d21ad5f0b5740n, 0x25cd9fc1148837aen, 0xa7f741fe732e3f98n, 0x10],
  ['add', 8, 0x7fffffffffffffffn, 0x1n, 0x6c97da1c53608d81n, 0x8000000000000000n, 0x1n, 0x6c97da1c53608d81n, 0x894],
  ['add', 8, 0x46c619ef979eb1d5n, 0x46c619ef979eb1d5n, 0x6a31b316089f1d66n, 0x8d8c33df2f3d63aan, 0x46c619ef979eb1d5n, 0x6a31b316089f1d66n, 0x884],
  ['add', 8, 0xf9e7d865a39703ban, 0xdfa61dd2a822a4ban, 0xfa4c549c28b80ee8n, 0xd98df6384bb9a874n, 0xdfa61dd2a822a4ban, 0xfa4c549c28b80ee8n, 0x95],
  ['add', 8, 0x3f810d34bab69a53n, 0xcffe504aef89d8f9n, 0xc5a31ba22d5c37e7n, 0xf7f5d7faa40734cn, 0xcffe504aef89d8f9n, 0xc5a31ba22d5c37e7n, 0x1],
  ['or', 1, 0x7fn, 0x1n, 0x872db7fe7ce4f6f7n, 0x7fn, 0x1n, 0x872db7fe7ce4f6f7n, 0x0],
  ['or', 1, 0xcb9e8a7c407ec5dfn, 0xcb9e8a7c407ec5dfn, 0xfcf6a5540bfb9607n, 0xcb9e8a7c407ec5dfn, 0xcb9e8a7c407ec5dfn, 0xfcf6a5540bfb9607n, 0x80],
  ['or', 1, 0x5ef27d577752c713n, 0x7731350d4e091584n, 0xffb9d1344687ef9dn, 0x5ef27d577752c797n, 0x7731350d4e091584n, 0xffb9d1344687ef9dn, 0x80],
  ['or', 1, 0xac6136385b2bec34n, 0x3ad4b1ab240d7a05n, 0x18d5dc14167d9317n, 0xac6136385b2bec35n, 0x3ad4b1ab240d7a05n, 0x18d5dc14167d9317n, 0x4],
  ['or', 2, 0x7fffn, 0x1n, 0x640c719a19971bf7n, 0x7fffn, 0x1n, 0x640c719a19971bf7n, 0x4],
  ['or', 2, 0x1a1644d2d22553c2n, 0x1a1644d2d22553c2n, 0x80843a680e05867fn, 0x1a1644d2d22553c2n, 0x1a1644d2d22553c2n, 0x80843a680e05867fn, 0x0],
  ['or', 2, 0x1ac48a4e6f9352c6n, 0x8cc3bfbf12a03b60n, 0xbd641743d0a59fdn, 0x1ac48a4e6f937be6n, 0x8cc3bfbf12a03b60n, 0xbd641743d0a59fdn, 0x0],
  ['or', 2, 0x3b9f070d2f91020n, 0xc4624690f6e3fe2an, 0x68dd5a96513a9283n, 0x3b9f070d2f9fe2an, 0xc4624690f6e3fe2an, 0x68dd5a96513a9283n, 0x80],
  ['or', 4, 0x7fffffffn, 0x1n, 0xfc2710b23e90ee77n, 0x7fffffffn, 0x1n, 0xfc2710b23e90ee77n, 0x4],
  ['or', 4, 0xc1c9f05b957992d8n, 0xc1c9f05b957992d8n, 0xd4ebf4e86f3da31en, 0xc1c9f05b957992d8n, 0xc1c9f05b957992d8n, 0xd4ebf4e86f3da31en, 0x84],
  ['or', 4, 0x2e767a94fd10d43bn, 0x31cbeb3127ebf4f5n, 0x892d95d07e1d46e9n, 0x2e767a94fffbf4ffn, 0x31cbeb3127ebf4f5n, 0x892d95d07e1d46e9n, 0x84],
  ['or', 4, 0x7307e9fdac8e611en, 0x9e227e7b761d0e69n, 0xacc436b47576e804n, 0x7307e9fdfe9f6f7fn, 0x9e227e7b761d0e69n, 0xacc436b47576e804n, 0x80],
  ['or', 8, 0x552e76dfb761a194n, 0xd77097acc49145e0n, 0xb2804e9225428cdfn, 0xd77ef7fff7f1e5f4n, 0xd77097acc49145e0n, 0xb2804e9225428cdfn, 0x80],
  ['or', 8, 0xc49d276bf754ed24n, 0xc49d276bf754ed24n, 0x98b013485557f41an, 0xc49d276bf754ed24n, 0xc49d276bf754ed24n, 0x98b013485557f41an, 0x84],
  ['or', 8, 0x41407624368cd6d6n, 0xf280d6e64004e07an, 0xc3a92eb85d33e148n, 0xf3c0f6e6768cf6fen, 0xf280d6e64004e07an, 0xc3a92eb85d33e148n, 0x80],
  ['or', 8, 0x6197e84f5486aaean, 0xde4f8e3657bbd328n, 0x249dcd5667e51c3bn, 0xffdfee7f57bffbean, 0xde4f8e3657bbd328n, 0x249dcd5667e51c3bn, 0x80],
  ['and', 1, 0x7fn, 0x1n, 0x68cba64e1f8a4c13n, 0x1n, 0x1n, 0x68cba64e1f8a4c13n, 0x0],
  ['and', 1, 0x8ce8e5a2c6797e10n, 0x8ce8e5a2c6797e10n, 0x25fdd68601ce58d3n, 0x8ce8e5a2c6797e10n, 0x8ce8e5a2c6797e10n, 0x25fdd68601ce58d3n, 0x0],
  ['and', 1, 0xfbc048bc2fdafc15n, 0xcbc6ea14227f9372n, 0xb44da78c0152330fn, 0xfbc048bc2fdafc10n, 0xcbc6ea14227f9372n, 0xb44da78c0152330fn, 0x0],
  ['and', 1, 0x548f38d7ed09c594n, 0x98e2392a2358ac3fn, 0xfc16ab4e6c88ee2fn, 0x548f38d7ed09c514n, 0x98e2392a2358ac3fn, 0xfc16ab4e6c88ee2fn, 0x4],
  ['and', 2, 0x7fffn, 0x1n, 0x8f35819c16cd73c0n, 0x1n, 0x1n, 0x8f35819c16cd73c0n, 0x0],
  ['and', 2, 0xf563489bbe2f9a60n, 0xf563489bbe2f9a60n, 0x6e9763ca46609f35n, 0xf563489bbe2f9a60n, 0xf563489bbe2f9a60n, 0x6e9763ca46609f35n, 0x84],
  ['and', 2, 0xfb58206a9cf391b2n, 0xaffa82c830fa6578n, 0x507c64381f0acacfn, 0xfb58206a9cf30130n, 0xaffa82c830fa6578n, 0x507c64381f0acacfn, 0x4],
  ['and', 2, 0x27e6cc7f4e31043bn, 0xc4d0d4144d3c59e2n, 0x57f4485e2c4fb9edn, 0x27e6cc7f4e310022n, 0xc4d0d4144d3c59e2n, 0x57f4485e2c4fb9edn, 0x4],
  ['and', 4, 0x7fffffffn, 0x1n, 0x658f83ee0ab25ef1n, 0x1n, 0x1n, 0x658f83ee0ab25ef1n, 0x0],
  ['and', 4, 0xacb6250119db69e8n, 0xacb6250119db69e8n, 0xc17973a6a2367een, 0xacb6250119db69e8n, 0xacb6250119db69e8n, 0xc17973a6a2367een, 0x4],
  ['and', 4, 0x121377f5c5ff66fbn, 0x2169e738604d9917n, 0x23a6483c6a01a6f0n, 0x121377f5404d0013n, 0x2169e738604d9917n, 0x23a6483c6a01a6f0n, 0x0],
  ['and', 4, 0x9594b842ace2dcf1n, 0xd8dda810120d0120n, 0xb50bdd4a10c916dcn, 0x9594b84200000020n, 0xd8dda810120d0120n, 0xb50bdd4a10c916dcn, 0x0],
  ['and', 8, 0x839df5c66ef28814n, 0xae848afa2c9e53b1n, 0x679e17041349e9bdn, 0x828480c22c920010n, 0xae848afa2c9e53b1n, 0x679e17041349e9bdn, 0x80],
  ['and', 8, 0x5dc0e5816545672an, 0x5dc0e5816545672an, 0x6432357265c19c5dn, 0x5dc0e5816545672an, 0x5dc0e5816545672an, 0x6432357265c19c5dn, 0x0],
  ['and', 8, 0xe98a3bbf6957d115n, 0xa840e71f773dbfban, 0xd3e6513443112f8dn, 0xa800231f61159110n, 0xa840e71f773dbfban, 0xd3e6513443112f8dn, 0x80],
  ['and', 8, 0x63dc6c688c3b808bn, 0x13a9f836e398307an, 0x74d88af003c54cd5n, 0x38868208018000an, 0x13a9f836e398307an, 0x74d88af003c54cd5n, 0x4],
  ['sub', 1, 0x7fn, 0x1n, 0x7b6ca808455ad23dn, 0x7en, 0x1n, 0x7b6ca808455ad23dn, 0x4],
  ['sub', 1, 0x29ec81bff8cb60bfn, 0x29ec81bff8cb60bfn, 0x54182cb43a978dbdn, 0x29ec81bff8cb6000n, 0x29ec81bff8cb60bfn, 0x54182cb43a978dbdn, 0x44],
  ['sub', 1, 0x175b893e65319f7bn, 0x41415c349894c815n, 0x1e43018049e58431n, 0x175b893e65319f66n, 0x41415c349894c815n, 0x1e43018049e58431n, 0x4],
  ['sub', 1, 0x6b53a2d0269a6dfdn, 0xb42294a65456b375n, 0x1ce4ae9e2fb9ca33n, 0x6b53a2d0269a6d88n, 0xb42294a65456b375n, 0x1ce4ae9e2fb9ca33n, 0x84],
  ['sub', 2, 0x7fffn, 0x1n, 0xc49ae8f62341b20bn, 0x7ffen, 0x1n, 0xc49ae8f62341b20bn, 0x0],
  ['sub', 2, 0x4c72c16379984263n, 0x4c72c16379984263n, 0xe3d5570e4a6273a9n, 0x4c72c16379980000n, 0x4c72c16379984263n, 0xe3d5570e4a6273a9n, 0x44],
  ['sub', 2, 0x9c2989c4a642c4ddn, 0x77439c224694459dn, 0x8c06aa5a17cc68dbn, 0x9c2989c4a6427f40n, 0x77439c224694459dn, 0x8c06aa5a17cc68dbn, 0x800],
  ['sub', 2, 0xa1416bdc10d97354n, 0x99ee248ee30bcaa3n, 0x2dc085c41d99f7a0n, 0xa1416bdc10d9a8b1n, 0x99ee248ee30bcaa3n, 0x2dc085c41d99f7a0n, 0x885],
  ['sub', 4, 0x7fffffffn, 0x1n, 0x1a68101464881f6bn, 0x7ffffffen, 0x1n, 0x1a68101464881f6bn, 0x0],
  ['sub', 4, 0x9390bb0ec305e8bcn, 0x9390bb0ec305e8bcn, 0xc8eaf8a55f4a049n, 0x9390bb0e00000000n, 0x9390bb0ec305e8bcn, 0xc8eaf8a55f4a049n, 0x44],
  ['sub', 4, 0x723274a198327146n, 0x4d1329cc5015c673n, 0x5d3f5f664defa929n, 0x723274a1481caad3n, 0x4d1329cc5015c673n, 0x5d3f5f664defa929n, 0x800],
  ['sub', 4, 0x438c8f92056621d8n, 0x2000b49dfe9664ban, 0x2543efbc0ed40006n, 0x438c8f9206cfbd1en, 0x2000b49dfe9664ban, 0x2543efbc0ed40006n, 0x15],
  ['sub', 8, 0x7fffffffffffffffn, 0x1n, 0x54cff6ba76a268f2n, 0x7ffffffffffffffen, 0x1n, 0x54cff6ba76a268f2n, 0x0],
  ['sub', 8, 0x4c28e124110ea4d3n, 0x4c28e124110ea4d3n, 0xae0f51c4677b550en, 0x0n, 0x4c28e124110ea4d3n, 0xae0f51c4677b550en, 0x44],
  ['sub', 8, 0x76f0dcead0b6a77n, 0x317df66a373d6255n, 0x1dc0b8a423d02f87n, 0xd5f1176475ce0822n, 0x317df66a373d6255n, 0x1dc0b8a423d02f87n, 0x85],
  ['sub', 8, 0x5b3cffe4abeeab20n, 0x918c959dbf165402n, 0x2bbf6b8a47d5b071n, 0xc9b06a46ecd8571en, 0x918c959dbf165402n, 0x2bbf6b8a47d5b071n, 0x895],
  ['xor', 1, 0x7fn, 0x1n, 0x386771fe3f240be4n, 0x7en, 0x1n, 0x386771fe3f240be4n, 0x4],
  ['xor', 1, 0x8f8bc190f770c482n, 0x8f8bc190f770c482n, 0xd5e8256c621879ddn, 0x8f8bc190f770c400n, 0x8f8bc190f770c482n, 0xd5e8256c621879ddn, 0x44],
  ['xor', 1, 0xb7739341909d0e05n, 0x6211eb84d9a40b1fn, 0xd768538e4317646en, 0xb7739341909d0e1an, 0x6211eb84d9a40b1fn, 0xd768538e4317646en, 0x0],
  ['xor', 1, 0xe252152d3f0bc525n, 0xbd1bbb251a1b7aean, 0xda09e9685f299714n, 0xe252152d3f0bc5cfn, 0xbd1bbb251a1b7aean, 0xda09e9685f299714n, 0x84],
  ['xor', 2, 0x7fffn, 0x1n, 0x3794eb7c7275f99fn, 0x7ffen, 0x1n, 0x3794eb7c7275f99fn, 0x0],
  ['xor', 2, 0x652551746a8def84n, 0x652551746a8def84n, 0x8d6383f27ec31949n, 0x652551746a8d0000n, 0x652551746a8def84n, 0x8d6383f27ec31949n, 0x44],
  ['xor', 2, 0x320e22ec9dfba088n, 0xb8ccb45b2e6fca4fn, 0x4a0b2e5065653064n, 0x320e22ec9dfb6ac7n, 0xb8ccb45b2e6fca4fn, 0x4a0b2e5065653064n, 0x0],
  ['xor', 2, 0xf29e5e15ce4474a6n, 0x2f233b9a9099695an, 0xef6abe6a3966a3cdn, 0xf29e5e15ce441dfcn, 0x2f233b9a9099695an, 0xef6abe6a3966a3cdn, 0x4],
  ['xor', 4, 0x7fffffffn, 0x1n, 0x91cd2b6e1089a63an, 0x7ffffffen, 0x1n, 0x91cd2b6e1089a63an, 0x0],
  ['xor', 4, 0x780bedcc7af4b04fn, 0x780bedcc7af4b04fn, 0x69423a1820406fbdn, 0x780bedcc00000000n, 0x780bedcc7af4b04fn, 0x69423a1820406fbdn, 0x44],
  ['xor', 4, 0xf38126cbdb6ea276n, 0xd9613990db54399en, 0x19b7179c277f2719n, 0xf38126cb003a9be8n, 0xd9613990db54399en, 0x19b7179c277f2719n, 0x4],
  ['xor', 4, 0xb5949b00474aef3an, 0x49b5712d0e204e6fn, 0x29f221e253549c05n, 0xb5949b00496aa155n, 0x49b5712d0e204e6fn, 0x29f221e253549c05n, 0x4],
  ['xor', 8, 0x7fffffffffffffffn, 0x1n, 0xa34c3b4469b00350n, 0x7ffffffffffffffen, 0x1n, 0xa34c3b4469b00350n, 0x0],
  ['xor', 8, 0xea89dfb7dccf241fn, 0xea89dfb7dccf241fn, 0x78f6244077913c94n, 0x0n, 0xea89dfb7dccf241fn, 0x78f6244077913c94n, 0x44],
  ['xor', 8, 0xebe2599b567797fen, 0xe1aae3bded4323ccn, 0xedef216023938421n, 0xa48ba26bb34b432n, 0xe1aae3bded4323ccn, 0xedef216023938421n, 0x0],
  ['xor', 8, 0x532730278185f145n, 0x7235e459df3f0237n, 0x4b625428482261d7n, 0x2112d47e5ebaf372n, 0x7235e459df3f0237n, 0x4b625428482261d7n, 0x4],
  ['cmpxchg', 1, 0x7fn, 0x1n, 0xb658c3a374e7060n, 0x7fn, 0x1n, 0xb658c3a374e707fn, 0x95],
  ['cmpxchg', 1, 0x2ef3adfe3a0424e4n, 0x2ef3adfe3a0424e4n, 0x37b9f768645bd304n, 0x2ef3adfe3a0424e4n, 0x2ef3adfe3a0424e4n, 0x37b9f768645bd3e4n, 0x1],
  ['cmpxchg', 1, 0xaddad54908f43c9an, 0x2f1218f6c50bcd4an, 0xaddad54908f43c9an, 0xaddad54908f43c4an, 0x2f1218f6c50bcd4an, 0xaddad54908f43c9an, 0x44],
  ['cmpxchg', 1, 0xce484053ad0769cen, 0x44635887cbe893e3n, 0xce48405300000001n, 0xce484053ad0769cen, 0x44635887cbe893e3n, 0xce484053000000cen, 0x15],
  ['cmpxchg', 2, 0x7fffn, 0x1n, 0xd61f2cf41e85505fn, 0x7fffn, 0x1n, 0xd61f2cf41e857fffn, 0x85],
  ['cmpxchg', 2, 0xbe97fb999aee0b34n, 0xbe97fb999aee0b34n, 0x9e96f51c1d4aa79dn, 0xbe97fb999aee0b34n, 0xbe97fb999aee0b34n, 0x9e96f51c1d4a0b34n, 0x84],
  ['cmpxchg', 2, 0x929ed6fb23566f4dn, 0x695c2970a795bb1fn, 0x929ed6fb23566f4dn, 0x929ed6fb2356bb1fn, 0x695c2970a795bb1fn, 0x929ed6fb23566f4dn, 0x44],
  ['cmpxchg', 2, 0x3afa59c9df7aed35n, 0x7cd736a5823e6a9an, 0x3afa59c900000001n, 0x3afa59c9df7aed35n, 0x7cd736a5823e6a9an, 0x3afa59c90000ed35n, 0x15],
  ['cmpxchg', 4, 0x7fffffffn, 0x1n, 0x6c9abe481b7359d0n, 0x7fffffffn, 0x1n, 0x7fffffffn, 0x95],
  ['cmpxchg', 4, 0xe96d858f6eae7be8n, 0xe96d858f6eae7be8n, 0x80a02f8715f18bfn, 0xe96d858f6eae7be8n, 0xe96d858f6eae7be8n, 0x6eae7be8n, 0x4],
  ['cmpxchg', 4, 0xce364cb77d196f25n, 0xe6d1ea25610ea149n, 0xce364cb77d196f25n, 0xce364cb7610ea149n, 0xe6d1ea25610ea149n, 0xce364cb77d196f25n, 0x44],
  ['cmpxchg', 4, 0x1b3a57e70bab5ba6n, 0xc1b9bf9c1b93f349n, 0x1b3a57e700000001n, 0x1b3a57e70bab5ba6n, 0xc1b9bf9c1b93f349n, 0xbab5ba6n, 0x91],
  ['cmpxchg', 8, 0xe17c202ac416a71en, 0xb7e2f82501fba89bn, 0x361a22ba5ccf5b93n, 0xe17c202ac416a71en, 0xb7e2f82501fba89bn, 0xe17c202ac416a71en, 0x11],
  ['cmpxchg', 8, 0x852640904e6a49f6n, 0x8df63e2c250496d1n, 0x8e46a51c4bec726an, 0x852640904e6a49f6n, 0x8df63e2c250496d1n, 0x852640904e6a49f6n, 0x4],
  ['cmpxchg', 8, 0x75885b127e58aa6bn, 0x899b98062f43e00n, 0x75885b127e58aa6bn, 0x899b98062f43e00n, 0x899b98062f43e00n, 0x75885b127e58aa6bn, 0x44],
  ['cmpxchg', 8, 0x527222ac2966494an, 0xfdfc9e94923691abn, 0x527222ac00000001n, 0x527222ac2966494an, 0xfdfc9e94923691abn, 0x527222ac2966494an, 0x95],
  ['xadd', 1, 0x7fn, 0x1n, 0xe13ace0c30103342n, 0x80n, 0x7fn, 0xe13ace0c30103342n, 0x890],
  ['xadd', 1, 0xf6fa9349bbb837f7n, 0xf6fa9349bbb837f7n, 0x97963a0627c3341fn, 0xf6fa9349bbb837een, 0xf6fa9349bbb837f7n, 0x97963a0627c3341fn, 0x85],
  ['xadd', 1, 0x6a1271efa20d5bbbn, 0x71325b382643d8ebn, 0xfa5d6a1647ec34e1n, 0x6a1271efa20d5ba6n, 0x71325b382643d8bbn, 0xfa5d6a1647ec34e1n, 0x95],
  ['xadd', 1, 0x2e9b824fd33bb236n, 0xd13a9726f9779e7n, 0xb0ba1ff204cb21b1n, 0x2e9b824fd33bb21dn, 0xd13a9726f977936n, 0xb0ba1ff204cb21b1n, 0x5],
  ['xadd', 2, 0x7fffn, 0x1n, 0x4cf0ce9020ecae43n, 0x8000n, 0x7fffn, 0x4cf0ce9020ecae43n, 0x894],
  ['xadd', 2, 0x677c045f33558772n, 0x677c045f33558772n, 0xe93a24ac412d0a74n, 0x677c045f33550ee4n, 0x677c045f33558772n, 0xe93a24ac412d0a74n, 0x805],
  ['xadd', 2, 0x48258a6c059585fn, 0x792a73c8c1f80d6an, 0x5d15000043ace648n, 0x48258a6c05965c9n, 0x792a73c8c1f8585fn, 0x5d15000043ace648n, 0x14],
  ['xadd', 2, 0xd0df06306402afcn, 0x626591b5fe4d3af5n, 0xf7477ae24b5b37acn, 0xd0df063064065f1n, 0x626591b5fe4d2afcn, 0xf7477ae24b5b37acn, 0x10],
  ['xadd', 4, 0x7fffffffn, 0x1n, 0x4f1e67fc3a18dfd7n, 0x80000000n, 0x7fffffffn, 0x4f1e67fc3a18dfd7n, 0x894],
  ['xadd', 4, 0x2636a1e4c06fd064n, 0x2636a1e4c06fd064n, 0x41ed326a2433ad32n, 0x2636a1e480dfa0c8n, 0xc06fd064n, 0x41ed326a2433ad32n, 0x81],
  ['xadd', 4, 0x4a3a55ff1391f851n, 0x2219deffe69c7852n, 0x80ead7744bc50aben, 0x4a3a55fffa2e70a3n, 0x1391f851n, 0x80ead7744bc50aben, 0x84],
  ['xadd', 4, 0x52acd35929fda67en, 0x8156fa5a0b2163efn, 0x7c771ca63eda64b1n, 0x52acd359351f0a6dn, 0x29fda67en, 0x7c771ca63eda64b1n, 0x10],
  ['xadd', 8, 0x7fffffffffffffffn, 0x1n, 0xb966d130214161e1n, 0x8000000000000000n, 0x7fffffffffffffffn, 0xb966d130214161e1n, 0x894],
  ['xadd', 8, 0xd3813abec36189d7n, 0xd3813abec36189d7n, 0xc5d11fd22b803581n, 0xa702757d86c313aen, 0xd3813abec36189d7n, 0xc5d11fd22b803581n, 0x81],
  ['xadd', 8, 0x417db7a8abe8baf4n, 0xe5ed4ae0793e26aen, 0x217d0a504569ab15n, 0x276b02892526e1a2n, 0x417db7a8abe8baf4n, 0x217d0a504569ab15n, 0x11],
  ['xadd', 8, 0x78332775b2b0ef27n, 0x15ac32917729faf9n, 0x3fa82f687eac3e68n, 0x8ddf5a0729daea20n, 0x78332775b2b0ef27n, 0x3fa82f687eac3e68n, 0x890],
  ['bts', 2, 0x7fffn, 0x1n, 0xeabeb41a7985c979n, 0x7fffn, 0x1n, 0xeabeb41a7985c979n, 0x1],
  ['bts', 2, 0xf693e09846c56411n, 0x1n, 0xeed444be672dcd7cn, 0xf693e09846c56413n, 0x1n, 0xeed444be672dcd7cn, 0x0],
  ['bts', 2, 0x1de3b95f7030d5een, 0x2n, 0x3db66ed855bab683n, 0x1de3b95f7030d5een, 0x2n, 0x3db66ed855bab683n, 0x1],
  ['bts', 2, 0x6af2d0c207701f5dn, 0x2n, 0x67d77cc46521e34bn, 0x6af2d0c207701f5dn, 0x2n, 0x67d77cc46521e34bn, 0x1],
  ['bts', 4, 0x7fffffffn, 0x1n, 0x79b261d43a0fb9a7n, 0x7fffffffn, 0x1n, 0x79b261d43a0fb9a7n, 0x1],
  ['bts', 4, 0xed05c89910f78297n, 0x17n, 0x56521f422c02ad23n, 0xed05c89910f78297n, 0x17n, 0x56521f422c02ad23n, 0x1],
  ['bts', 4, 0xd73229e6905cbb9n, 0x5n, 0x6a155ee25f78733fn, 0xd73229e6905cbb9n, 0x5n, 0x6a155ee25f78733fn, 0x1],
  ['bts', 4, 0xbd2b8dacf857f339n, 0x1bn, 0x94ca5d222b8f7debn, 0xbd2b8dacf857f339n, 0x1bn, 0x94ca5d222b8f7debn, 0x1],
  ['bts', 8, 0x1b7d6c1835b17044n, 0x26n, 0x7605df2c05c67c5an, 0x1b7d6c5835b17044n, 0x26n, 0x7605df2c05c67c5an, 0x0],
  ['bts', 8, 0xde4deebf86f756b0n, 0x1fn, 0x6e5ce85634937b81n, 0xde4deebf86f756b0n, 0x1fn, 0x6e5ce85634937b81n, 0x1],
  ['bts', 8, 0x19d75872c5d7e2den, 0x2an, 0x50e52dee54cccbden, 0x19d75c72c5d7e2den, 0x2an, 0x50e52dee54cccbden, 0x0],
  ['bts', 8, 0x1dbc39895e873df6n, 0x3n, 0x20b169ec1353391dn, 0x1dbc39895e873dfen, 0x3n, 0x20b169ec1353391dn, 0x0],
  ['btr', 2, 0x7fffn, 0x1n, 0x7a4d4b5e482fda93n, 0x7ffdn, 0x1n, 0x7a4d4b5e482fda93n, 0x1],
  ['btr', 2, 0x2f3b186499b838dbn, 0xbn, 0x743135d6647eb8f6n, 0x2f3b186499b830dbn, 0xbn, 0x743135d6647eb8f6n, 0x1],
  ['btr', 2, 0x923fe49ee515cb27n, 0xcn, 0x521955941a5af9f0n, 0x923fe49ee515cb27n, 0xcn, 0x521955941a5af9f0n, 0x0],
  ['btr', 2, 0xe7c41d3ebbe610d9n, 0xfn, 0x5f5fd48e27583d14n, 0xe7c41d3ebbe610d9n, 0xfn, 0x5f5fd48e27583d14n, 0x0],
  ['btr', 4, 0x7fffffffn, 0x1n, 0x9689e59292d80n, 0x7ffffffdn, 0x1n, 0x9689e59292d80n, 0x1],
  ['btr', 4, 0x8ef81c51994d9778n, 0x18n, 0x5344eb565fd4c7a1n, 0x8ef81c51984d9778n, 0x18n, 0x5344eb565fd4c7a1n, 0x1],
  ['btr', 4, 0xf78777841a29e9f0n, 0x1an, 0xf1f723a5b2f3bdfn, 0xf78777841a29e9f0n, 0x1an, 0xf1f723a5b2f3bdfn, 0x0],
  ['btr', 4, 0xfa7e8d5ce8ebed09n, 0x10n, 0x39f5a1247a73613an, 0xfa7e8d5ce8eaed09n, 0x10n, 0x39f5a1247a73613an, 0x1],
  ['btr', 8, 0x37468ad7a19c96f8n, 0x24n, 0x7e9d384e27b295efn, 0x37468ac7a19c96f8n, 0x24n, 0x7e9d384e27b295efn, 0x1],
  ['btr', 8, 0x7b09c9e346570e38n, 0x38n, 0xb09bfd4a7f89984cn, 0x7a09c9e346570e38n, 0x38n, 0xb09bfd4a7f89984cn, 0x1],
  ['btr', 8, 0xecdcd39ecfcc2bcan, 0x1cn, 0xbc29925c1bedea20n, 0xecdcd39ecfcc2bcan, 0x1cn, 0xbc29925c1bedea20n, 0x0],
  ['btr', 8, 0xf91f265305e2a9e6n, 0x2an, 0xf688dd362c9b2ec4n, 0xf91f225305e2a9e6n, 0x2an, 0xf688dd362c9b2ec4n, 0x1],
  ['btc', 2, 0x7fffn, 0x1n, 0x7dfbca78430382ban, 0x7ffdn, 0x1n, 0x7dfbca78430382ban, 0x1],
  ['btc', 2, 0x2fbde3b50ad73b7bn, 0xbn, 0x2c3b661669c79e09n, 0x2fbde3b50ad7337bn, 0xbn, 0x2c3b661669c79e09n, 0x1],
  ['btc', 2, 0xacc29bdbcd4b8a55n, 0xdn, 0x467aa1d228c7be6an, 0xacc29bdbcd4baa55n, 0xdn, 0x467aa1d228c7be6an, 0x0],
  ['btc', 2, 0xc5f0bcff9f0015c4n, 0xfn, 0x1b88bd721c4222b1n, 0xc5f0bcff9f0095c4n, 0xfn, 0x1b88bd721c4222b1n, 0x0],
  ['btc', 4, 0x7fffffffn, 0x1n, 0x841c563808af1e7fn, 0x7ffffffdn, 0x1n, 0x841c563808af1e7fn, 0x1],
  ['btc', 4, 0x7bcbe0457bb8beb8n, 0x18n, 0x4dcd23ea372eeaf4n, 0x7bcbe0457ab8beb8n, 0x18n, 0x4dcd23ea372eeaf4n, 0x1],
  ['btc', 4, 0x2679ab21f62adc6fn, 0x18n, 0xc179c3fc4738c9cen, 0x2679ab21f72adc6fn, 0x18n, 0xc179c3fc4738c9cen, 0x0],
  ['btc', 4, 0x88296dcf5441f9c3n, 0x1dn, 0x1c2fa4a24217ee50n, 0x88296dcf7441f9c3n, 0x1dn, 0x1c2fa4a24217ee50n, 0x0],
  ['btc', 8, 0x78372c7a3713e7d0n, 0xen, 0x8647af8067c7f5b9n, 0x78372c7a3713a7d0n, 0xen, 0x8647af8067c7f5b9n, 0x1],
  ['btc', 8, 0x8215c09c02752246n, 0x2dn, 0x2d83e12201563418n, 0x8215e09c02752246n, 0x2dn, 0x2d83e12201563418n, 0x0],
  ['btc', 8, 0x49222b17a0540ceen, 0x38n, 0x4880639259dfca33n, 0x48222b17a0540ceen, 0x38n, 0x4880639259dfca33n, 0x1],
  ['btc', 8, 0xb2d0df5959d6c016n, 0x27n, 0x388714005b88577bn, 0xb2d0dfd959d6c016n, 0x27n, 0x388714005b88577bn, 0x0],
  ['xchg', 1, 0x7fn, 0x1n, 0xcb630ebc1620d897n, 0x1n, 0x7fn, 0xcb630ebc1620d897n, 0x0],
  ['xchg', 1, 0xbc5c561d3994b58n, 0xbc5c561d3994b58n, 0xc6b319458df90d2n, 0xbc5c561d3994b58n, 0xbc5c561d3994b58n, 0xc6b319458df90d2n, 0x0],
  ['xchg', 1, 0x87245077c8503c3cn, 0x29d0f01135c0ac03n, 0x8e1fb48868535b87n, 0x87245077c8503c03n, 0x29d0f01135c0ac3cn, 0x8e1fb48868535b87n, 0x0],
  ['xchg', 1, 0x663a1069a6e0b16en, 0x95b2d7e97fa43b6en, 0x265b8c8e2e4974b2n, 0x663a1069a6e0b16en, 0x95b2d7e97fa43b6en, 0x265b8c8e2e4974b2n, 0x0],
  ['xchg', 2, 0x7fffn, 0x1n, 0xcfaa25343e1f928bn, 0x1n, 0x7fffn, 0xcfaa25343e1f928bn, 0x0],
  ['xchg', 2, 0xd0ab06ee93381f28n, 0xd0ab06ee93381f28n, 0x112771f87d9e99fcn, 0xd0ab06ee93381f28n, 0xd0ab06ee93381f28n, 0x112771f87d9e99fcn, 0x0],
  ['xchg', 2, 0x8f9ae43f3429102dn, 0xc09c229409d8ea71n, 0xd1070090069adf4cn, 0x8f9ae43f3429ea71n, 0xc09c229409d8102dn, 0xd1070090069adf4cn, 0x0],
  ['xchg', 2, 0xcf82774325204e18n, 0xbb3e590df5ce145fn, 0xd9f088fe78043f81n, 0xcf8277432520145fn, 0xbb3e590df5ce4e18n, 0xd9f088fe78043f81n, 0x0],
  ['xchg', 4, 0x7fffffffn, 0x1n, 0xc7ad68b622294858n, 0x1n, 0x7fffffffn, 0xc7ad68b622294858n, 0x0],
  ['xchg', 4, 0xca3da2b6671297en, 0xca3da2b6671297en, 0x554389b80160f47en, 0xca3da2b6671297en, 0x6671297en, 0x554389b80160f47en, 0x0],
  ['xchg', 4, 0x51f92ad5101193fn, 0xe6f7e47785749987n, 0xc3a93e7c2fd34446n, 0x51f92ad85749987n, 0x5101193fn, 0xc3a93e7c2fd34446n, 0x0],
  ['xchg', 4, 0xd8c93c4ebbe21413n, 0x84efb8606dda5892n, 0xb24aefc85958a163n, 0xd8c93c4e6dda5892n, 0xbbe21413n, 0xb24aefc85958a163n, 0x0],
  ['xchg', 8, 0xf522589b337635fan, 0x827708053e2d7cdan, 0x9d6fa26c76ffdc3bn, 0x827708053e2d7cdan, 0xf522589b337635fan, 0x9d6fa26c76ffdc3bn, 0x0],
  ['xchg', 8, 0x2600ba7d3ad0023cn, 0x76d2da26273dfe1cn, 0x71dc69fc331f7f17n, 0x76d2da26273dfe1cn, 0x2600ba7d3ad0023cn, 0x71dc69fc331f7f17n, 0x0],
  ['xchg', 8, 0x946f826e066cd92cn, 0xd263c48c0e84aa62n, 0x72e8e9624f069517n, 0xd263c48c0e84aa62n, 0x946f826e066cd92cn, 0x72e8e9624f069517n, 0x0],
  ['xchg', 8, 0xba222cb122cefbf3n, 0xc4e53eb9b8efa9fan, 0xab3aed56012a3cb2n, 0xc4e53eb9b8efa9fan, 0xba222cb122cefbf3n, 0xab3aed56012a3cb2n, 0x0],
];

const OPCODES: Readonly<Record<string, number>> = {
  add: 0x00,
  or: 0x08,
  and: 0x20,
  sub: 0x28,
  xor: 0x30,
  xchg: 0x86,
  cmpxchg: 0x0fb0,
  xadd: 0x0fc0,
  bts: 0x0fab,
  btr: 0x0fb3,
  btc: 0x0fbb,
};

function newGuest(level = 1): TestGuest {
  const guest = new TestGuest();
  guest.domain.frameTypes[0] = level;
  guest.vcpu.block.u32[VCPU.cs >> 2] = 0xe033;
  guest.vcpu.block.u32[VCPU.rflags >> 2] = 0x202;
  guest.vcpu.block.u32[(VCPU.rip >> 2) + 1] = VA_HI;
  return guest;
}

const register = (guest: TestGuest, r: number): bigint => guest.vcpu.block.u64[(VCPU.gpr >> 3) + r];

function setRegister(guest: TestGuest, r: number, value: bigint): void {
  guest.vcpu.block.u64[(VCPU.gpr >> 3) + r] = value;
}

const entry = (guest: TestGuest, offset = ENTRY): bigint => guest.machine.u64[offset >> 3];

function setEntry(guest: TestGuest, value: bigint, offset = ENTRY): void {
  guest.machine.u64[offset >> 3] = value;
}

/** Runs one instruction that faulted at READ_ONLY_VA + `at`; rdi points there. True when it was emulated as a whole. */
function store(guest: TestGuest, code: readonly number[], at = ENTRY): boolean {
  const { u32 } = guest.vcpu.block;
  guest.machine.u8.set(code, CODE - KERNEL_VA);
  u32[VCPU.rip >> 2] = CODE;
  u32[VCPU.cr2 >> 2] = READ_ONLY_VA + at;
  u32[(VCPU.cr2 >> 2) + 1] = VA_HI;
  setRegister(guest, RDI, (BigInt(VA_HI) << 32n) | BigInt(READ_ONLY_VA + at));
  if (!emulatePageTableWrite(guest.vcpu)) {
    expect(u32[VCPU.rip >> 2]).toBe(CODE);
    return false;
  }
  return u32[VCPU.rip >> 2] === CODE + code.length;
}

/** [rdi] as memory operand, register rcx. */
const RCX_TO_RDI = (RCX << 3) | 7;
const pte = (pfn: number, flags: number): bigint => (BigInt(pfn + MFN_BASE) << 12n) | BigInt(flags);

test.each(MEASURED)(
  '%s of %i bytes on 0x%x does what the CPU does',
  (name, size, memory, source, rax, memoryAfter, sourceAfter, raxAfter, flags) => {
    const guest = newGuest();
    // Short operands go to the high word, where no bit says "present".
    const at = size === 8 ? ENTRY : ENTRY + 4;
    const bits = BigInt(size * 8);
    const low = size === 8 ? 0n : 32n;
    setEntry(guest, BigInt.asUintN(64, BigInt.asUintN(Number(bits), memory) << low));
    setRegister(guest, RCX, source);
    setRegister(guest, RAX, rax);
    const opcode = OPCODES[name] + (size === 1 || name.startsWith('bt') ? 0 : 1);
    const code = opcode >= 0x0f00 ? [0x0f, opcode & 0xff] : [opcode];
    const prefix = size === 2 ? [0x66] : size === 8 ? [0x48] : [];
    expect(store(guest, [...prefix, ...code, RCX_TO_RDI], at)).toBe(true);
    expect(entry(guest)).toBe(BigInt.asUintN(64, BigInt.asUintN(Number(bits), memoryAfter) << low));
    expect(register(guest, RCX)).toBe(sourceAfter);
    expect(register(guest, RAX)).toBe(raxAfter);
    const defined = name.startsWith('bt')
      ? 1
      : name === 'xchg'
        ? 0
        : name === 'or' || name === 'and' || name === 'xor'
          ? 0x8c5
          : ARITHMETIC;
    expect(guest.vcpu.block.u32[VCPU.rflags >> 2] & defined).toBe(flags & defined);
  },
);

test('mov of a whole entry goes through storePte(): U is set, G is not, the engine knows', () => {
  const guest = newGuest();
  setRegister(guest, RCX, pte(3, 0x163) & ~4n);
  expect(store(guest, [0x48, 0x89, RCX_TO_RDI])).toBe(true);
  expect(entry(guest)).toBe(pte(3, 0x67));
  expect(guest.engine.entriesStored).toBe(1);
});

test('mov of an entry for a frame outside the domain stays a page fault', () => {
  const guest = newGuest();
  setEntry(guest, 0x55000n);
  setRegister(guest, RCX, 0x1003n);
  expect(store(guest, [0x48, 0x89, RCX_TO_RDI])).toBe(false);
  expect(entry(guest)).toBe(0x55000n);
  expect(register(guest, RCX)).toBe(0x1003n);
});

test('mov with an immediate, movnti, cmpxchg8b', () => {
  const guest = newGuest();
  setEntry(guest, pte(3, 0x67));
  expect(store(guest, [0x48, 0xc7, 0x07, 0xfe, 0xff, 0xff, 0xff])).toBe(true);
  expect(entry(guest)).toBe(0xffff_ffff_ffff_fffen);
  setRegister(guest, RCX, 0x1234_5678_9abc_def0n);
  expect(store(guest, [0x48, 0x0f, 0xc3, RCX_TO_RDI])).toBe(true);
  expect(entry(guest)).toBe(0x1234_5678_9abc_def0n);
  setRegister(guest, RAX, 0x9abc_def0n);
  setRegister(guest, RDX, 0x1234_5678n);
  setRegister(guest, RBX, 0x10n);
  setRegister(guest, RCX, 0x20n);
  expect(store(guest, [0xf0, 0x0f, 0xc7, 0x0f])).toBe(true);
  expect(entry(guest)).toBe(0x20_0000_0010n);
  expect(guest.vcpu.block.u32[VCPU.rflags >> 2]).toBe(0x242);
  expect(store(guest, [0xf0, 0x0f, 0xc7, 0x0f])).toBe(true);
  expect([register(guest, RAX), register(guest, RDX)]).toEqual([0x10n, 0x20n]);
  expect(guest.vcpu.block.u32[VCPU.rflags >> 2]).toBe(0x202);
  // CMPXCHG16B
  expect(store(guest, [0xf0, 0x48, 0x0f, 0xc7, 0x0f])).toBe(false);
});

test('xchg takes a present entry out and gives the old one back', () => {
  const guest = newGuest();
  setEntry(guest, pte(3, 0x67) | (1n << 63n));
  setRegister(guest, RCX, 0n);
  expect(store(guest, [0x48, 0x87, RCX_TO_RDI])).toBe(true);
  expect(register(guest, RCX)).toBe(pte(3, 0x67) | (1n << 63n));
  expect(entry(guest)).toBe(0n);
  expect(guest.engine.entriesStored).toBe(1);
});

test('an A or D that the CPU sets meanwhile is not lost', () => {
  const guest = newGuest();
  setEntry(guest, pte(3, 0x27));
  const word = ENTRY >> 2;
  const { i32 } = guest.vcpu.machine;
  const load = Atomics.load;
  let dirtied = false;
  // The CPU's write comes right after the entry is read.
  Atomics.load = ((array: Int32Array, index: number) => {
    const value = load(array, index);
    if (array === i32 && index === word && !dirtied) {
      dirtied = true;
      Atomics.or(i32, word, 0x40);
    }
    return value;
  }) as typeof Atomics.load;
  try {
    setRegister(guest, RCX, 0n);
    expect(store(guest, [0x48, 0x87, RCX_TO_RDI])).toBe(true);
  } finally {
    Atomics.load = load;
  }
  expect(dirtied).toBe(true);
  expect(register(guest, RCX)).toBe(pte(3, 0x67));
  expect(entry(guest)).toBe(0n);
});

test('lock andb takes R/W away; U stays', () => {
  const guest = newGuest();
  setEntry(guest, pte(3, 0x67));
  expect(store(guest, [0xf0, 0x80, 0x27, 0xfd])).toBe(true);
  expect(entry(guest)).toBe(pte(3, 0x65));
  expect(store(guest, [0xf0, 0x80, 0x27, 0xfb])).toBe(true);
  expect(entry(guest)).toBe(pte(3, 0x65));
});

test('giving R/W to a pinned table is refused', () => {
  const guest = newGuest();
  guest.domain.frameTypes[3] = 1 | FRAME_PINNED;
  setEntry(guest, pte(3, 0x65));
  expect(store(guest, [0xf0, 0x80, 0x0f, 0x02])).toBe(false);
  expect(entry(guest)).toBe(pte(3, 0x65));
});

test('btr by immediate and by register, the latter also in another entry than rdi names', () => {
  const guest = newGuest();
  setEntry(guest, pte(3, 0x67));
  expect(store(guest, [0xf0, 0x48, 0x0f, 0xba, 0x37, 5])).toBe(true);
  expect(entry(guest)).toBe(pte(3, 0x47));
  expect(guest.vcpu.block.u32[VCPU.rflags >> 2] & 1).toBe(1);
  // Bit -58 of rdi is bit 6 of the entry before it.
  const { u32 } = guest.vcpu.block;
  setRegister(guest, RCX, BigInt.asUintN(64, -58n));
  guest.machine.u8.set([0xf0, 0x48, 0x0f, 0xb3, RCX_TO_RDI], CODE - KERNEL_VA);
  u32[VCPU.rip >> 2] = CODE;
  setRegister(guest, RDI, (BigInt(VA_HI) << 32n) | BigInt(READ_ONLY_VA + ENTRY + 8));
  expect(emulatePageTableWrite(guest.vcpu)).toBe(true);
  expect(entry(guest)).toBe(pte(3, 0x07));
});

test('rep stos does one element, then comes again; the last one ends it', () => {
  const guest = newGuest();
  setEntry(guest, pte(3, 0x67));
  setRegister(guest, RAX, 0n);
  setRegister(guest, RCX, 2n);
  const code = [0xf3, 0x48, 0xab];
  expect(store(guest, code)).toBe(false);
  expect(entry(guest)).toBe(0n);
  expect(register(guest, RCX)).toBe(1n);
  expect(register(guest, RDI) & 0xfffn).toBe(BigInt(ENTRY + 8));
  expect(store(guest, code, ENTRY + 8)).toBe(true);
  expect(register(guest, RCX)).toBe(0n);
  expect(store(guest, code, ENTRY + 16)).toBe(false);
});

test('movs reads its source through the page tables', () => {
  const guest = newGuest();
  guest.machine.u64[0x2008 >> 3] = pte(5, 0x25);
  setRegister(guest, RSI, (BigInt(VA_HI) << 32n) | BigInt(KERNEL_VA + 0x2008));
  expect(store(guest, [0x48, 0xa5])).toBe(true);
  expect(entry(guest)).toBe(pte(5, 0x25));
  expect(register(guest, RSI) & 0xffffn).toBe(0x2010n);
  setRegister(guest, RSI, 0n);
  expect(store(guest, [0x48, 0xa5])).toBe(false);
});

test('what is no write to a page table by the kernel stays a page fault', () => {
  const mov = [0x48, 0x89, RCX_TO_RDI];
  const plain = newGuest(0);
  expect(store(plain, mov)).toBe(false);
  const user = newGuest();
  user.vcpu.block.u32[VCPU.userMode >> 2] = 1;
  user.vcpu.block.u32[VCPU.userRoot >> 2] = user.root;
  expect(store(user, mov)).toBe(false);
  const writable = newGuest();
  writable.map(READ_ONLY_VA, VA_HI, MFN_BASE, PTE_P | PTE_US | 2);
  expect(store(writable, mov)).toBe(false);
  const guest = newGuest();
  // misaligned; a load; CMP; ADC; BT; another address than CR2's
  expect(store(guest, mov, ENTRY + 4)).toBe(false);
  expect(store(guest, [0x66, 0x89, RCX_TO_RDI], ENTRY + 1)).toBe(false);
  for (const code of [
    [0x48, 0x8b, 0x07],
    [0x48, 0x83, 0x3f, 1],
    [0x48, 0x83, 0x17, 1],
    [0x48, 0x0f, 0xba, 0x27, 1],
    [0x48, 0x89, 0x4f, 8],
  ]) {
    expect(store(guest, code)).toBe(false);
  }
  expect(entry(guest)).toBe(0n);
});

test('a replaced table above L1 flushes every vCPU', () => {
  const guest = newGuest(2);
  setEntry(guest, pte(5, 0x67));
  guest.domain.frameTypes[5] = 1;
  setRegister(guest, RCX, 0n);
  expect(store(guest, [0x48, 0x87, RCX_TO_RDI])).toBe(true);
  expect(entry(guest)).toBe(0n);
  expect(guest.engine.tlbFlushes).toBe(1);
  expect(guest.vcpu.flushAll).toBe(false);
});
