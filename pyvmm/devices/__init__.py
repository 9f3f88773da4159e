"""Device models: they get callables for interrupts and output, and know nothing of KVM."""
