"""The words on the command line of ``python -m benchmarks``."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import WORDS, main


def test_unknown_word_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(SystemExit, match=r"exist is not one of exits, start, .*outside"):
        main(["exits", "exist"])


def test_words_are_named_once() -> None:
    assert len(set(WORDS)) == len(WORDS)
