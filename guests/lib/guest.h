/*
 * The guests' runtime: an EL1 or EL2 with caches on, a console, parameters, vCPUs and interrupts.
 *
 * A guest includes this header.  A file here includes the headers that it uses.  Calls go down,
 * but for main() and irq(), which are the guest's:
 *
 *	smp		start of other vCPUs
 *	start.S		entry of every vCPU, exception vectors
 *	runtime		from the boot vCPU's entry to main()
 *	gic  virtio
 *	gicv2
 *	cpu		vCPUs by number
 *	psci
 *	fdt
 *	panic
 *	print
 *	uart  memory
 */
#pragma once

#include "cpu.h"
#include "fdt.h"
#include "gic.h"
#include "memory.h"
#include "panic.h"
#include "print.h"
#include "psci.h"
#include "smp.h"
#include "uart.h"
#include "virtio.h"

/* What main() returns goes to the exit register. */
int main(void);
