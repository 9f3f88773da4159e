"""Measure pyvmm beside Debian's QEMU on the same KVM, and beside a minimal loop in C.

``make bench`` writes build/bench.json and build/bench.md. In the "counted" host, time counts
instructions: a figure repeats to about 1 % on any machine. Real times need a quiet machine.
"""
