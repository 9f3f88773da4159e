"""The confinement of a process that runs a guest: what it may still open and ask the kernel."""
