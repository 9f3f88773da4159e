"""The programs that run inside the emulated host."""
