/* The functions of gic.h on a machine with a GICv2; gic.c chooses. */
#pragma once

#include "common.h"

void gicv2_init(void);
void gicv2_init_cpu(void);
void gicv2_enable(uint32_t intid);
void gicv2_send_sgi(uint32_t intid, unsigned int index);
void gicv2_send_sgi_to_others(uint32_t intid);
uint32_t gicv2_acknowledge(void);
uint32_t gicv2_intid(uint32_t acknowledged);
void gicv2_end(uint32_t acknowledged);
