"""Names that are nobody else's."""

from __future__ import annotations

from bnfold.naming import claim, unique


def test_a_name_that_is_taken_gets_the_first_free_number() -> None:
    assert unique("conv", {"bn"}) == "conv"
    assert unique("conv", {"conv", "conv#2"}) == "conv#3"
    assert unique("conv", {"conv"}, "_") == "conv_2"


def test_a_claimed_name_is_taken() -> None:
    taken = {"conv"}
    assert [claim("conv", taken) for _ in range(2)] == ["conv#2", "conv#3"]
    assert taken == {"conv", "conv#2", "conv#3"}
