/* The guests' runtime: an EL1 with caches on, a console, parameters, vCPUs and interrupts. */
#pragma once

#include "layout.h"

#define MAX_CPUS		512		/* KVM_MAX_VCPUS on arm64 */
#define STACK_SIZE		2048		/* of each */

#ifndef __ASSEMBLER__

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sysreg.h"

#define ARRAY_SIZE(a)		(sizeof(a) / sizeof((a)[0]))

/* A guest is its main(): what it returns goes to the exit register. */
int main(void);

/* runtime.c */
_Noreturn void exit_vm(uint32_t code);
_Noreturn void panic(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* uart.c: the first 16550A; output is polled */
void uart_init(void);
void uart_write(const char *data, size_t size);
void exit_to_host(void);			/* a device access, for its way to the VMM and back */
void uart_irq_enable(bool on);
size_t uart_read(char *data, size_t size);
bool uart_overrun(void);			/* input has been lost */

/* What a compiler may call even in a freestanding program. */
void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memset(void *to, int byte, size_t size);

/* print.c: %s %c %d %u %x with l, 0 and a width; a call's text is not torn by other vCPUs */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void print_unlocked(const char *format, va_list args);
size_t format_text(char *buffer, size_t size, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* fdt.c: the device tree, and the words of /chosen/bootargs (`pyvmm run -p "NAME=VALUE NAME"`) */
void fdt_init(const void *dtb);
unsigned int fdt_count_cpus(void);
const char *param(const char *name);		/* its value, "" for a bare word, or NULL */
bool param_is(const char *name, const char *value);
uint64_t param_number(const char *name);	/* panics where the value is no number */

/* psci.c.  Source: Arm DEN0022, chapter 5 */
enum psci_error {
	PSCI_SUCCESS = 0,
	PSCI_INVALID_PARAMETERS = -2,
	PSCI_ALREADY_ON = -4,
};

enum psci_affinity {
	AFFINITY_ON = 0,
	AFFINITY_OFF = 1,
};

long psci_cpu_on(uint64_t mpidr, void (*entry)(void), uint64_t context);
long psci_affinity_info(uint64_t mpidr);
_Noreturn void psci_cpu_off(void);
_Noreturn void psci_system_off(void);
_Noreturn void psci_system_reset(void);

/* smp.c: vCPUs by number, in KVM's order */
void smp_init_cpu(void);
unsigned int cpu_index(void);
unsigned int cpu_count(void);
uint64_t cpu_mpidr(unsigned int index);
long cpu_on(unsigned int index, void (*function)(uint64_t), uint64_t context);
bool wait_for(const uint32_t *word, uint32_t value);	/* false after WAIT_S seconds */
bool wait_for_off(unsigned int index);

/* gic.c: GICv3, everything in group 1, one priority */
#define PPI(n)			(16 + (n))
#define SPI(n)			(32 + (n))

void gic_init(void);				/* once, before gic_init_cpu() of any vCPU */
void gic_init_cpu(void);			/* on every vCPU that takes interrupts */
void gic_enable(uint32_t intid);		/* a PPI or SGI: for the calling vCPU */
void gic_set_edge(uint32_t intid);		/* an SPI, level-triggered otherwise; not enabled yet */
void gic_send_sgi(uint32_t intid, unsigned int index);
void gic_send_sgi_to_others(uint32_t intid);

/* virtio.c: virtio-mmio, version 2; a buffer is one descriptor and its slot in the queue */
#define VIRTQ_SIZE		16
#define VIRTIO_RING_F_EVENT_IDX	(1ull << 29)
#define VIRTIO_F_VERSION_1	(1ull << 32)
#define VIRTIO_INT_VRING	1
#define VIRTIO_INT_CONFIG	2

struct virtq {
	struct {
		uint64_t addr;
		uint32_t len;
		uint16_t flags, next;
	} desc[VIRTQ_SIZE] __attribute__((aligned(16)));
	struct {
		uint16_t flags, idx, ring[VIRTQ_SIZE], used_event;
	} avail;
	struct {
		uint16_t flags, idx;
		struct {
			uint32_t id, len;
		} ring[VIRTQ_SIZE];
		uint16_t avail_event;
	} used __attribute__((aligned(4)));

	/* The driver's own */
	uintptr_t device;
	uint32_t index;
	uint16_t seen;				/* of used.idx */
	bool event_idx;
};

bool virtio_probe(uintptr_t device, uint32_t id);
uint64_t virtio_negotiate(uintptr_t device, uint64_t wanted);	/* what was agreed upon */
void virtio_start(uintptr_t device);
bool virtio_needs_reset(uintptr_t device);
uint32_t virtio_acknowledge(uintptr_t device);	/* why it interrupted: VIRTIO_INT_* */
void virtq_init(struct virtq *queue, uintptr_t device, uint32_t index, bool event_idx);
void virtq_add(struct virtq *queue, unsigned int slot, void *buffer, uint32_t size, bool write);
void virtq_kick(struct virtq *queue, uint16_t added);	/* unless the device needs none */
bool virtq_has_used(struct virtq *queue);	/* if not, an interrupt will tell */
unsigned int virtq_take(struct virtq *queue, uint32_t *written);

/* A guest's own handler; INTIDs from 1020 up are the GIC's special ones.  The default panics. */
void irq(uint32_t intid);

#endif
