"""The C extension; _build.py declares the functions and structures of ``lib``."""

from typing import Any

ffi: Any
lib: Any
