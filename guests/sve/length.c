/* SVE at the current exception level: turn it on, and choose the vector length. */

#include "length.h"

#define PFR0_SVE(pfr0)		((pfr0) >> 32 & 0xf)
#define CPACR_FPEN		(3 << 20)
#define CPACR_ZEN		(3 << 16)
/* Without VHE, CPTR_EL2 has trap bits (TFP, TZ) in place of enable bits.  These are its RES1 bits. */
#define CPTR_NVHE		0x32ff

bool sve_enable(void)
{
	if (!PFR0_SVE(read_sysreg(ID_AA64PFR0_EL1)))
		return false;
	if (cpu_has_el1_names())
		write_sysreg(CPACR_FPEN | CPACR_ZEN, CPACR_EL1);
	else
		write_sysreg(CPTR_NVHE, CPTR_EL2);
	isb();
	return true;
}

unsigned int sve_set_len(unsigned int len)
{
	if (cpu_has_el1_names())
		write_sysreg(len, ZCR_EL1);
	else
		write_sysreg(len, ZCR_EL2);
	isb();
	return sve_rdvl();
}

uint64_t sve_zcr(void)
{
	return cpu_has_el1_names() ? read_sysreg(ZCR_EL1) : read_sysreg(ZCR_EL2);
}
