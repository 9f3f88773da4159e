"""What an emulated host is made of: Debian packages, and what is built from them."""
