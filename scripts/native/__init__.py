"""`make test-native`: pyvmm on an ordinary arm64 machine, as its users type it.

The machine is a Debian installation that QEMU boots with EL2 and SVE.
``image`` installs it, ``machine`` boots it and runs commands in it, ``steps`` are those commands.
"""
