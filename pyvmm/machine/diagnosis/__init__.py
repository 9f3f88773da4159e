"""The reason why a guest makes no progress: what pyvmm sees of it, and the rules that name it."""
