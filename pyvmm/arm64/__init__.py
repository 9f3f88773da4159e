"""Facts about the Arm architecture; nothing here knows KVM, or needs an arm64 machine."""
