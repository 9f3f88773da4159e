"""Guest RAM from a hugetlbfs mount: huge pages, reserved when they are mapped.

Source: Linux, Documentation/admin-guide/mm/hugetlbpage.rst.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from pyvmm.base import computer
from pyvmm.base.units import show_size
from pyvmm.errors import HostError, UsageError

POOLS = Path("/sys/kernel/mm/hugepages")


def page_size(directory: Path) -> int:
    """Return the page size in bytes of the hugetlbfs mounted at ``directory``.

    Raises: UsageError, if there is none.
    """
    try:
        device = os.stat(directory).st_dev  # noqa: PTH116 - follows links as open() does
        size = os.statvfs(directory).f_bsize
    except OSError as error:
        raise UsageError(f"`hugetlbfs`={directory}: {error.strerror}") from error
    if computer.file_system(device) == "hugetlbfs":
        return size
    raise UsageError(
        f"`hugetlbfs`={directory}: this is not a hugetlbfs",
        hint=f"mount -t hugetlbfs none {directory}",
    )


def map_pages(directory: Path, size: int) -> mmap.mmap:
    """Map ``size`` bytes of huge pages, private and without a file.

    Raises:
        UsageError: ``directory`` is not a hugetlbfs, or ``size`` is not a multiple of its page
        size. HostError: too few pages are free, or the file system cannot be used.
    """
    page = page_size(directory)
    if size % page:
        raise UsageError(
            f"`memory`: {show_size(size)} is not a whole number of the {show_size(page)} pages "
            f"of {directory}"
        )
    try:
        import tempfile  # imported lazily: large

        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.truncate(size)
            return mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE)
    except OSError as error:
        raise HostError(
            f"`hugetlbfs`={directory}: cannot map {size // page} pages of {show_size(page)}: "
            f"{error.strerror}",
            hint=_pool(page),
        ) from error


def _pool(page: int) -> str:
    """Return a hint: how many pages there are, and how to get more."""
    pool = POOLS / f"hugepages-{page >> 10}kB"
    try:
        total, free, reserved = (
            int((pool / name).read_text()) for name in ("nr_hugepages", "free_hugepages",
                                                        "resv_hugepages")
        )  # fmt: skip
    except OSError:
        return f"{pool} cannot be read"
    return f"{free - reserved} of {total} pages are free; write more to {pool}/nr_hugepages"
