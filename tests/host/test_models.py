"""The ready-made hosts: their settings, and single options in place of a model's."""

from __future__ import annotations

import pytest

from pyvmm.errors import UsageError
from pyvmm.host import models
from pyvmm.host.models import MODELS
from pyvmm.host.settings import HostSettings


@pytest.mark.parametrize("name", MODELS)
def test_model_is_a_host_of_its_own_by_one_word(name: str) -> None:
    settings = HostSettings(**models.combined(name, {}))

    assert settings.customised
    assert name == name.strip().replace(" ", "")
    assert MODELS[name].about
    same = [other for other in MODELS if models.combined(other, {}) == models.combined(name, {})]
    assert same == [name]


def test_given_settings_take_the_place_of_the_models() -> None:
    chosen = models.combined("nested", {"kernel": "6.12", "append": ""})

    assert HostSettings(**chosen) == HostSettings(
        kernel="6.12", qemu=MODELS["nested"].qemu, cpu=MODELS["nested"].cpu
    )


def test_without_a_model_the_given_settings_are_all() -> None:
    assert models.combined(None, {"cpu": "max"}) == {"cpu": "max"}


def test_find_names_every_model_after_an_unknown_one() -> None:
    with pytest.raises(UsageError) as caught:
        models.find("gicv9")

    assert caught.value.message == f"`host.model`=gicv9: not one of {', '.join(MODELS)}"
