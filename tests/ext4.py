"""ext4 file systems in files, read by e2fsprogs without mounting them."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from tests.conftest import tool


def fsck(image: Path) -> None:
    """Check a file system with e2fsck, which must find no error."""
    done = _run("e2fsck", "-fn", str(image))
    assert done.returncode == 0, done.stdout


def recover(image: Path) -> None:
    """Replay the journal, as a mount would; nothing else may need repair."""
    done = _run("e2fsck", "-fp", str(image))
    assert done.returncode in (0, 1), done.stdout  # 1: errors were corrected
    fsck(image)


def sha256(image: Path, name: str) -> str:
    """Return the checksum of a file in a file system."""
    done = subprocess.run(
        [str(tool("debugfs")), "-R", f"cat {name}", str(image)], capture_output=True, check=True
    )
    return sha256_of(done.stdout)


def sha256_of(content: bytes) -> str:
    """Return a checksum in the form of sha256sum."""
    return hashlib.sha256(content).hexdigest()


def features(image: Path) -> str:
    """Return the features of a file system: needs_recovery if its journal is not empty."""
    return _run("debugfs", "-R", "features", str(image)).stdout


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(tool(name)), *arguments], capture_output=True, text=True)
