"""Guest memory and its sources; no KVM here."""
