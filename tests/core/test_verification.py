"""How far files were checked: an order that is not that of the numbers, which stay."""

from __future__ import annotations

from weightd.core.verification import Verification


def test_order() -> None:
    assert sorted(Verification) == [Verification.SIZE, Verification.CRC, Verification.GIT, Verification.SHA256]
    assert min(Verification.SHA256, Verification.GIT) is Verification.GIT
    assert max(Verification.CRC, Verification.GIT) is Verification.GIT
    assert Verification.GIT >= Verification.GIT > Verification.CRC


def test_numbers_in_databases_and_on_the_wire() -> None:
    assert {v.name: v.value for v in Verification} == {"SIZE": 1, "CRC": 2, "SHA256": 3, "GIT": 4}
