"""CPU models: the CPU that a guest sees, as data that several hosts can give."""
