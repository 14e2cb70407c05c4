/** States of a split device, as both ends write them to their `state` node. Source: xen/include/public/io/xenbus.h, enum xenbus_state. */
export const XenbusStateUnknown = 0;
/** Set by the toolstack; the end that owns the node has not looked at it yet. */
export const XenbusStateInitialising = 1;
/** The end has published what it offers and waits for the other one. */
export const XenbusStateInitWait = 2;
/** The end has published its rings and waits for the other one to connect. */
export const XenbusStateInitialised = 3;
export const XenbusStateConnected = 4;
/** The device is being closed: of itself, for an error or because of the other end. */
export const XenbusStateClosing = 5;
export const XenbusStateClosed = 6;
export const XenbusStateReconfiguring = 7;
export const XenbusStateReconfigured = 8;
