/* PSCI, the firmware's interface to start and stop vCPUs.  Source: Arm DEN0022, chapter 5. */
#pragma once

#include "common.h"

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
