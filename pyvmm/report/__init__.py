"""Output formats: JUnit XML, Perfetto traces."""
