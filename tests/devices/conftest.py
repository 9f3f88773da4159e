"""Fixtures of the devices' tests."""

from __future__ import annotations

import pytest

from tests.devices.uart import Port


@pytest.fixture
def port() -> Port:
    return Port()
