"""Coverage-guided fuzzing of all that reads untrusted input: ``make fuzz`` runs it."""
