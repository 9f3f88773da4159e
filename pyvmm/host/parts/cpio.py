"""A writer of the kernel's "newc" cpio format, for an initramfs.

Source: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from typing import BinaryIO


class CpioWriter:
    """An archive whose entries belong to root; missing parent directories are added."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0
        self._directories: set[str] = set()

    def directory(self, path: str) -> None:
        """Add a directory and its parents."""
        if not path or path in self._directories:
            return
        self.directory(path.rpartition("/")[0])
        self._directories.add(path)
        self._entry(path, stat.S_IFDIR | 0o755, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self.directory(path.rpartition("/")[0])
        self._entry(path, stat.S_IFREG | mode, content)

    def device(self, path: str, major: int, minor: int) -> None:
        """Add a character device."""
        self.directory(path.rpartition("/")[0])
        self._entry(path, stat.S_IFCHR | 0o600, b"", (major, minor))

    def close(self) -> None:
        """End the archive."""
        self._entry("TRAILER!!!", 0, b"")

    def _entry(
        self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        links, mtime, uid, gid = 1, 0, 0, 0
        fields = (self._inode, mode, uid, gid, links, mtime, len(content),
                  0, 0, *device, len(name), 0)  # fmt: skip
        self._padded(b"070701" + b"".join(b"%08x" % f for f in fields) + name)
        self._padded(content)

    def _padded(self, data: bytes) -> None:
        self._out.write(data + b"\0" * (-len(data) % 4))
