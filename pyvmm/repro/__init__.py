"""Reproductions of kernel and hardware bugs, with verdicts, and capsules to run them again.

``model`` defines a reproduction, and ``cases`` has one file for each.  ``runner`` starts
``worker`` on the machine whose KVM is tested.
"""
