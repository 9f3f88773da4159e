"""The confinement of a process that runs a guest: its files and its system calls."""
