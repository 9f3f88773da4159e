"""A Config becomes a machine, and the machine runs."""
