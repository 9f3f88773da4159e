/* Start of the other vCPUs, and waiting for them. */
#pragma once

#include "common.h"

long cpu_on(unsigned int index, void (*function)(uint64_t), uint64_t context);
bool wait_for(const uint32_t *word, uint32_t value);	/* false after WAIT_S seconds */
bool wait_for_off(unsigned int index);
