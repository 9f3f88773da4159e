"""Guest memory and its sources; no KVM here.

ram is anonymous memory, hugetlbfs its huge pages, file a file as memory, map several pieces as
one. ranges computes with address ranges. machine.slots gives the memory to KVM.
"""
