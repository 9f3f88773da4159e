/* The device tree, and the words of /chosen/bootargs (`pyvmm run -p "NAME=VALUE NAME"`). */
#pragma once

#include "common.h"

void fdt_init(const void *dtb);
unsigned int fdt_count_cpus(void);
bool fdt_has_gicv2(void);
bool fdt_psci_is_smc(void);			/* else by HVC */
const char *param(const char *name);		/* its value, "" for a bare word, or NULL */
bool param_is(const char *name, const char *value);
uint64_t param_number(const char *name);	/* panics where the value is no number */
