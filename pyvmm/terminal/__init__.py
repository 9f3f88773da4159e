"""Terminals on this machine: standard input and output, ptys, their lines."""
