"""Guest memory, and where it comes from; no KVM here."""
