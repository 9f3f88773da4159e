"""Snapshots: the state of a machine as a document, and the file it is kept in."""
