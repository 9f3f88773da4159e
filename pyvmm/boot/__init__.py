"""Prepare a guest's memory: load its image, make its device tree. Independent of KVM."""
