/*
 * The other process's SVE registers by ptrace(2), which needs no privilege.
 * Source: Linux, Documentation/arch/arm64/sve.rst, section 6; arch/arm64/include/uapi/asm/ptrace.h.
 */

#include <asm/ptrace.h>
#include <linux/elf.h>
#include <linux/ptrace.h>
#include <linux/uio.h>

#include "sve-watcher.h"

#define MAX_VQ			(MAX_VL / 16)
#define PIECE			16		/* bytes: the least vector length */

static union {
	struct user_sve_header header;
	uint8_t bytes[SVE_PT_SIZE(MAX_VQ, SVE_PT_REGS_SVE)];
} regset __attribute__((aligned(16)));

static long access_regset(long request, int process, size_t size)
{
	struct iovec where = {.iov_base = &regset, .iov_len = size};

	return syscall(__NR_ptrace, request, process, NT_ARM_SVE, &where);
}

static unsigned int vq(void)
{
	return regset.header.vl / 16;
}

/* Read the registers whole, in the layout of SVE also where the kernel has FPSIMD alone. */
static long get(int process)
{
	long error = access_regset(PTRACE_GETREGSET, process, sizeof(regset));

	if (error < 0)
		return error;
	if ((regset.header.flags & SVE_PT_REGS_MASK) == SVE_PT_REGS_SVE)
		return 0;
	/* V0 to V31 side by side become the low quadwords of Z; nothing above holds anything. */
	struct user_fpsimd_state fpsimd;

	memcpy(&fpsimd, regset.bytes + SVE_PT_FPSIMD_OFFSET, sizeof(fpsimd));
	memset(regset.bytes + SVE_PT_REGS_OFFSET, 0, sizeof(regset) - SVE_PT_REGS_OFFSET);
	for (unsigned int n = 0; n < Z_COUNT; n++)
		memcpy(regset.bytes + SVE_PT_SVE_ZREG_OFFSET(vq(), n), &fpsimd.vregs[n], 16);
	memcpy(regset.bytes + SVE_PT_SVE_FPSR_OFFSET(vq()), &fpsimd.fpsr, 4);
	memcpy(regset.bytes + SVE_PT_SVE_FPCR_OFFSET(vq()), &fpsimd.fpcr, 4);
	return 0;
}

static long put(int process)
{
	regset.header.flags = (regset.header.flags & ~SVE_PT_REGS_MASK) | SVE_PT_REGS_SVE;
	regset.header.size = SVE_PT_SIZE(vq(), regset.header.flags);
	return access_regset(PTRACE_SETREGSET, process, regset.header.size);
}

/*
 * A shorter length: the layout of what is put moves with it.  Regions are copied downwards, in
 * the order they lie in, so none is overwritten before it is read.
 */
static void shorten(void)
{
	unsigned int from = vq(), to = PIECE / 16;

	for (unsigned int n = 0; n < Z_COUNT; n++)
		memcpy(regset.bytes + SVE_PT_SVE_ZREG_OFFSET(to, n),
		       regset.bytes + SVE_PT_SVE_ZREG_OFFSET(from, n), PIECE);
	for (unsigned int n = 0; n < P_COUNT; n++)
		memcpy(regset.bytes + SVE_PT_SVE_PREG_OFFSET(to, n),
		       regset.bytes + SVE_PT_SVE_PREG_OFFSET(from, n), PIECE / 8);
	memcpy(regset.bytes + SVE_PT_SVE_FFR_OFFSET(to),
	       regset.bytes + SVE_PT_SVE_FFR_OFFSET(from), PIECE / 8);
	memcpy(regset.bytes + SVE_PT_SVE_FPSR_OFFSET(to),
	       regset.bytes + SVE_PT_SVE_FPSR_OFFSET(from), 8);
	regset.header.vl = PIECE;
}

static void change(enum damage kind, unsigned int round)
{
	uint8_t *z = regset.bytes + SVE_PT_SVE_ZREG_OFFSET(vq(), round % Z_COUNT);
	uint8_t *p = regset.bytes + SVE_PT_SVE_PREG_OFFSET(vq(), round % P_COUNT);
	unsigned int vl = regset.header.vl;

	switch (kind) {
	case DAMAGE_VL:
		shorten();
		break;
	case DAMAGE_ZERO:
		memset(z + vl / 2, 0, vl - vl / 2);
		break;
	case DAMAGE_FLIP:
		z[round % vl] ^= 0x02;
		break;
	case DAMAGE_PRED:
		p[round % (vl / 8)] ^= 0x01;
		break;
	default:
		break;
	}
}

static long stop(int process)
{
	long error = syscall(__NR_ptrace, PTRACE_INTERRUPT, process, 0, 0);

	if (!error)
		holder_wait_for_stop();
	return error;
}

static long resume(int process, long before)
{
	long error = syscall(__NR_ptrace, PTRACE_CONT, process, 0, 0);

	return before ? before : error;
}

long tracer_seize(int process)
{
	return syscall(__NR_ptrace, PTRACE_SEIZE, process, 0, 0);
}

long tracer_arm(int process)
{
	long error = stop(process);

	if (error)
		return error;
	error = get(process);
	if (!error)
		error = put(process);
	return resume(process, error);
}

/* Change registers while they are held.  -EAGAIN: the holder had stored them before it stopped. */
long tracer_damage(int process, const struct hold *hold, enum damage kind, unsigned int round)
{
	long error = stop(process);

	if (error)
		return error;
	if (load_acquire(&hold->state) != STATE_HOLDING || hold->out_z[0][0] != 0xa5)
		return resume(process, -EAGAIN);
	error = get(process);
	if (!error) {
		change(kind, round);
		error = put(process);
	}
	return resume(process, error);
}
