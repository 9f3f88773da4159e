"""The verbs of a control socket: requests that no client of pyvmm sends."""

from __future__ import annotations

from typing import Any

import pytest

from pyvmm.control.server import Peer
from pyvmm.control.service import Service
from pyvmm.errors import UsageError


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"file": "a\0b"}, r"the file='a\\x00b': a path cannot hold a NUL"),
        ({"file": "a\ud800b"}, "the file=.*surrogate"),
        ({"file": "a", "parents": ["a\0b"]}, "`parent`=.*NUL"),
        ({"file": "a", "parents": [1]}, "names no file"),
        ({"file": "a", "parents": "b"}, "names no file"),
        ({"file": "a", "parents": ["b"]}, "lacks the descriptors"),
        ({"file": "a"}, "lacks the descriptors"),
        ({"file": 1}, "names no file"),
        ({}, "names no file"),
    ],
)
def test_save_refuses_a_path_that_no_file_can_have(request_: dict[str, Any], words: str) -> None:
    unused: Any = None
    service = Service(lambda: unused, lambda: None, 0.0)

    with pytest.raises(UsageError, match=words):
        service.save({**request_, "peer": Peer()})


@pytest.mark.parametrize("addresses", [None, "0x1", [1] * 5000, ["0x1"], [-1], [1 << 64], [True]])
def test_names_refuses_what_is_no_list_of_addresses(addresses: Any) -> None:
    unused: Any = None
    service = Service(lambda: unused, lambda: None, 0.0)

    with pytest.raises(UsageError, match=r"`addresses`|is not an address"):
        service.names({"addresses": addresses})
