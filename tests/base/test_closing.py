"""Context managers that close."""

from __future__ import annotations

import pytest

from pyvmm.base.closing import Closing


class Thing(Closing):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_end_of_a_with_block_closes() -> None:
    with Thing() as thing:
        assert thing.closed == 0

    assert thing.closed == 1


def test_error_in_the_block_closes_and_is_raised() -> None:
    thing = Thing()

    with pytest.raises(ZeroDivisionError), thing:
        raise ZeroDivisionError

    assert thing.closed == 1
