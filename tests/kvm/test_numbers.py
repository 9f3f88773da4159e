from pyvmm.kvm.numbers import Numbers


class Reason(Numbers):
    """Why."""

    UNKNOWN = 0
    MMIO = 6


def test_members_behave_as_ints() -> None:
    assert Reason.MMIO == 6
    assert Reason.MMIO | 1 == 7
    assert {6: "it"}[Reason.MMIO] == "it"


def test_members_by_name() -> None:
    assert Reason.members == {"UNKNOWN": 0, "MMIO": 6}


def test_name_of_returns_the_members_name() -> None:
    assert Reason.name_of(6) == "MMIO"
    assert repr(Reason.of(6)) == "<MMIO: 6>"


def test_of_returns_an_unnamed_number_unchanged() -> None:
    assert Reason.of(7) == 7
    assert Reason.name_of(7) == "7"
    assert repr(Reason.of(7)) == "7"
