/* id-registers: prints the ID registers that a guest reads, by the assembler's generic names. */

#include "guest.h"

/* The architecture's ID registers, known and reserved.  Source: Arm DDI 0487, D23.1.3 */
#define EACH_OP2(show, op1, crm)						\
	show(op1, crm, 0) show(op1, crm, 1) show(op1, crm, 2) show(op1, crm, 3)	\
	show(op1, crm, 4) show(op1, crm, 5) show(op1, crm, 6) show(op1, crm, 7)

#define SHOW(op1, crm, op2)							\
	print("S3_" #op1 "_C0_C" #crm "_" #op2 "=0x%lx\n",			\
	      read_sysreg(S3_##op1##_C0_C##crm##_##op2));

int main(void)
{
	SHOW(0, 0, 0)				/* MIDR_EL1 */
	SHOW(0, 0, 6)				/* REVIDR_EL1 */
	EACH_OP2(SHOW, 0, 1)
	EACH_OP2(SHOW, 0, 2)
	EACH_OP2(SHOW, 0, 3)
	EACH_OP2(SHOW, 0, 4)
	EACH_OP2(SHOW, 0, 5)
	EACH_OP2(SHOW, 0, 6)
	EACH_OP2(SHOW, 0, 7)
	SHOW(1, 0, 1)				/* CLIDR_EL1 */
	SHOW(1, 0, 7)				/* AIDR_EL1 */
	SHOW(3, 0, 1)				/* CTR_EL0 */
	SHOW(3, 0, 7)				/* DCZID_EL0 */
	psci_system_off();
}
