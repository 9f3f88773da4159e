"""Reproductions of bugs that need a guest, a host and a witness: run, judged, kept in a file.

``model`` says what one is made of, ``cases`` holds them, a file each; ``worker`` runs on the
machine whose KVM is meant.
"""
