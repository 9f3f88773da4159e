/* Constants and types of every file.  The assembler sees the constants only. */
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

#endif
