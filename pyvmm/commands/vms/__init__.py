"""Commands on running VMs."""
