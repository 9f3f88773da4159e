/* hello: an image is loaded and entered at EL1, the UART prints, PSCI SYSTEM_OFF ends the VM. */

#include "guest.h"

int main(void)
{
	print("Hello from EL%lu on vCPU %u, MPIDR_EL1=0x%lx\n",
	      read_sysreg(CurrentEL) >> 2, cpu_index(), read_sysreg(MPIDR_EL1));
	psci_system_off();
}
