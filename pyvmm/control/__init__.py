"""The control socket of a running VM, and its clients."""
