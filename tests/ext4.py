"""ext4 on this machine, by e2fsprogs: nothing is mounted, nobody is root."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from tests.conftest import tool


def fsck(image: Path) -> None:
    """Have e2fsck look at all of a file system; it must have nothing to say against it."""
    done = _run("e2fsck", "-fn", str(image))
    assert done.returncode == 0, done.stdout


def recover(image: Path) -> None:
    """Replay the journal, as a mount would, and have nothing left to repair."""
    done = _run("e2fsck", "-fp", str(image))
    assert done.returncode in (0, 1), done.stdout  # 1: something was done, all is well
    fsck(image)


def sha256(image: Path, name: str) -> str:
    """The checksum of a file in a file system."""
    done = subprocess.run(
        [str(tool("debugfs")), "-R", f"cat {name}", str(image)], capture_output=True, check=True
    )
    return sha256_of(done.stdout)


def sha256_of(content: bytes) -> str:
    """A checksum as sha256sum has it."""
    return hashlib.sha256(content).hexdigest()


def features(image: Path) -> str:
    """The features of a file system, needs_recovery where its journal is not empty."""
    return _run("debugfs", "-R", "features", str(image)).stdout


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(tool(name)), *arguments], capture_output=True, text=True)
