/** Numbers of xen/include/public/callback.h and nmi.h: entry points of the guest kernel that are not in the trap table. */

/** Source: callback.h, CALLBACKOP_*. */
export const CALLBACKOP_register = 0;
export const CALLBACKOP_unregister = 1;

/** Source: callback.h, CALLBACKTYPE_*. */
export const CALLBACKTYPE_event = 0;
export const CALLBACKTYPE_failsafe = 1;
export const CALLBACKTYPE_syscall = 2;
export const CALLBACKTYPE_sysenter_deprecated = 3;
export const CALLBACKTYPE_nmi = 4;
export const CALLBACKTYPE_sysenter = 5;
export const CALLBACKTYPE_syscall32 = 7;

/** Source: callback.h, CALLBACKF_mask_events: event delivery is off when the callback is entered. */
export const CALLBACKF_mask_events = 1;

/** Source: callback.h, struct callback_register (x86-64). The guest writes all. */
export const CALLBACK_REGISTER = { SIZE: 16, type: 0, flags: 2, address: 8 } as const;
/** Source: callback.h, struct callback_unregister. */
export const CALLBACK_UNREGISTER = { SIZE: 4, type: 0 } as const;

/** Source: nmi.h, XENNMI_*; struct xennmi_callback { u64 handler_address, u64 pad }. */
export const XENNMI_register_callback = 0;
export const XENNMI_unregister_callback = 1;
export const XENNMI_CALLBACK = { SIZE: 16, handler_address: 0 } as const;
