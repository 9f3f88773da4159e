"""A Config becomes a machine, and the machine runs.

plan chooses what the host can provide. board makes the hardware, with vcpus, irqchip, devices and
slots. runner has the vCPUs' threads; exits handles their exits, fastpath handles most in C.
"""
