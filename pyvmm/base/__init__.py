"""Directories, files, units, an event loop: code that does not depend on VMs."""
