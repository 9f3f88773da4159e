"""The confinement of an emulated host's QEMU, and of the files that it shares."""
