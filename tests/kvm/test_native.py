"""The extension's own functions."""

from __future__ import annotations

import pytest

from pyvmm.kvm.native import counter_frequency


@pytest.mark.kvm
def test_counter_frequency_is_in_arms_range() -> None:
    """Check for 1 MHz to 1 GHz. Source: Arm DDI 0487, D12.1.1."""
    assert 1_000_000 <= counter_frequency() <= 1_000_000_000
