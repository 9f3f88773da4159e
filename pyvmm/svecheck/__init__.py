"""A conformance run of KVM's user space API for SVE, against the kernel it runs on.

    states again sets registers reglist guest vcpus     the cases, by subject
        |                             |
    promises  of documents         bench  new VMs, guests, outcomes in words
        |                             |
    runner  runs each case on its own VMs; a failed case does not end the run
        |
    report  text, JSON, JUnit

A case acts on a vCPU and compares the outcome with the promise of a document.  Some kernels differ
on purpose.  Such a known difference is recognised by its outcome, never by the kernel's version.
"""
