"""Snapshots: the state of a machine as a document, and the file that stores it."""
