"""Scripts that make calls, and those of `make test-native`."""
