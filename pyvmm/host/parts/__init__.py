"""The parts of an emulated host: Debian packages, and files built from them."""
