/* The first 16550A, which is the console.  Output is polled. */
#pragma once

#include "common.h"

void uart_init(void);
void uart_write(const char *data, size_t size);
void exit_to_host(void);			/* a device access: one exit to the VMM and back */
void uart_irq_enable(bool on);
size_t uart_read(char *data, size_t size);
bool uart_overrun(void);			/* input has been lost */
