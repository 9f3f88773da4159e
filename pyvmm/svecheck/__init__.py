"""A conformance run of KVM's user space API for SVE, against the kernel it runs on.

    states sets registers reglist guest vcpus     the cases, by subject
        |                          |
    promises  what documents say   bench  fresh VMs, guests, outcomes in words
        |                          |
    runner  each case on VMs of its own; no case ends the run
        |
    report  lines, JSON, JUnit

A case does something, says its outcome in a word or a few, and holds it against what a document
promises.  What today's or yesterday's kernels do otherwise, on purpose, is a known difference,
recognised by what happens and never by the kernel's version.
"""
