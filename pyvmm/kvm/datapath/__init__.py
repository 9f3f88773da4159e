"""The data path of virtqueues in C, and the loans by which a device gives its queue to C."""
