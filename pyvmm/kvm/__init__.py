"""The KVM API as classes: one a file descriptor, with methods named after the ioctls.

    System    /dev/kvm             Vm        KVM_CREATE_VM
    Vcpu      KVM_CREATE_VCPU      Device    KVM_CREATE_DEVICE

Mechanism, no policy: a method makes its ioctl and raises KvmError when the kernel refuses.
The modules import on any machine; the C extension behind them exists on arm64 only, and is
loaded when the first ioctl is made.
"""
