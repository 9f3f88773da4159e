"""The commands on running VMs."""
