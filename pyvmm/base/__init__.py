"""What knows nothing of VMs: directories, files, units, an event loop."""
