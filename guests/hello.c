/* hello: starts at EL1 or EL2, prints a line on the UART, and ends the VM by PSCI SYSTEM_OFF. */

#include "guest.h"

int main(void)
{
	print("Hello from EL%lu on vCPU %u, MPIDR_EL1=0x%lx\n",
	      read_sysreg(CurrentEL) >> 2, cpu_index(), read_sysreg(MPIDR_EL1));
	psci_system_off();
}
