"""The targets in Python: a module has check(), seeds() and perhaps mutate()."""
