"""The KVM API as classes: one for each kind of file descriptor, with a method for each ioctl.

    System    /dev/kvm             Vm        KVM_CREATE_VM
    Vcpu      KVM_CREATE_VCPU      Device    KVM_CREATE_DEVICE

A method makes its ioctl and raises KvmError if the kernel refuses; it has no policy of its own.
Any machine can import these modules. The C extension exists on arm64 only; the first ioctl loads
it.
"""
