"""Facts about the Arm architecture, independent of KVM and of the machine that pyvmm runs on."""
