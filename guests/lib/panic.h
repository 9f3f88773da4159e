/* The end of the VM, by its exit register. */
#pragma once

#include "common.h"

_Noreturn void exit_vm(uint32_t code);
_Noreturn void panic(const char *format, ...) __attribute__((format(printf, 1, 2)));
