/* System registers, barriers and device accesses: what C has no words for. */
#pragma once

#include <stdint.h>

/* Registers the assembler knows only by encoding.  Source: Arm DDI 0487, D23. */
#define ID_AA64ZFR0_EL1		S3_0_C0_C4_4
#define ZCR_EL1			S3_0_C1_C2_0
#define ZCR_EL2			S3_4_C1_C2_0
#define ICC_PMR_EL1		S3_0_C4_C6_0
#define ICC_SGI1R_EL1		S3_0_C12_C11_5
#define ICC_IAR1_EL1		S3_0_C12_C12_0
#define ICC_EOIR1_EL1		S3_0_C12_C12_1
#define ICC_BPR1_EL1		S3_0_C12_C12_3
#define ICC_CTLR_EL1		S3_0_C12_C12_4
#define ICC_SRE_EL1		S3_0_C12_C12_5
#define ICC_IGRPEN1_EL1		S3_0_C12_C12_7

#define STRING_(x)		#x
#define STRING(x)		STRING_(x)

#define read_sysreg(reg) ({						\
	uint64_t value_;						\
	asm volatile("mrs %0, " STRING(reg) : "=r"(value_));		\
	value_;								\
})

#define write_sysreg(value, reg)					\
	asm volatile("msr " STRING(reg) ", %0" : : "r"((uint64_t)(value)) : "memory")

#define isb()			asm volatile("isb" : : : "memory")
#define dsb()			asm volatile("dsb sy" : : : "memory")
#define wfi()			asm volatile("dsb sy\n\twfi" : : : "memory")
#define wfe()			asm volatile("wfe" : : : "memory")
#define sev()			asm volatile("dsb ishst\n\tsev" : : : "memory")
#define irq_enable()		asm volatile("msr daifclr, #2" : : : "memory")
#define irq_disable()		asm volatile("msr daifset, #2" : : : "memory")

/*
 * Device accesses in assembly: KVM can emulate only loads and stores of one register without
 * writeback, and a compiler is free to choose others.
 */
static inline uint8_t readb(uintptr_t address)
{
	uint8_t value;

	asm volatile("ldrb %w0, [%1]" : "=r"(value) : "r"(address) : "memory");
	return value;
}

static inline void writeb(uint8_t value, uintptr_t address)
{
	asm volatile("strb %w0, [%1]" : : "rZ"(value), "r"(address) : "memory");
}

static inline uint32_t readl(uintptr_t address)
{
	uint32_t value;

	asm volatile("ldr %w0, [%1]" : "=r"(value) : "r"(address) : "memory");
	return value;
}

static inline void writel(uint32_t value, uintptr_t address)
{
	asm volatile("str %w0, [%1]" : : "rZ"(value), "r"(address) : "memory");
}

static inline uint64_t readq(uintptr_t address)
{
	uint64_t value;

	asm volatile("ldr %0, [%1]" : "=r"(value) : "r"(address) : "memory");
	return value;
}

static inline void writeq(uint64_t value, uintptr_t address)
{
	asm volatile("str %0, [%1]" : : "rZ"(value), "r"(address) : "memory");
}

static inline uint64_t counter(void)
{
	isb();				/* the counter may otherwise be read ahead of time */
	return read_sysreg(CNTVCT_EL0);
}
