"""A look inside guests: address translation, gdb's remote protocol, core files, symbols."""
