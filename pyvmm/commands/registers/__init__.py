"""Registers as text for people."""
