"""How pyvmm compares: with Debian's QEMU on the same KVM, and with the least that C can do.

``make bench`` writes build/bench.json and build/bench.md. Where time counts instructions (the
"counted" host), a figure repeats to about 1 % on any machine; real times want a quiet one.
"""
