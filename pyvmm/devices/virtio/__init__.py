"""virtio: the queues, the devices, and the transport that connects them to the guest."""
