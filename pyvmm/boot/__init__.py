"""What a guest needs to start: an image in memory and a device tree; knows nothing of KVM."""
