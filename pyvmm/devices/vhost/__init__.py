"""virtio devices whose queues are served outside this process: by the kernel's vhost."""
