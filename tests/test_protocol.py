"""A protocol that contradicts itself is refused before anything runs."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from bnfold.errors import UsageError
from bnfold.protocol import Protocol


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"k": 0.0}, "k = 0.0 is no factor"),
        ({"k": -1.0}, "k = -1.0 is no factor"),
        ({"k": math.nan}, "k = nan is no factor"),
        ({"k": math.inf}, "k = inf is no factor"),
        ({"seeds": ()}, "a protocol without seeds compares nothing"),
        ({"policy": "fixed"}, "the policy fixed has no tolerance"),
        ({"rtol": {"": 1e-3}}, "rtol and atol are for the policy fixed, not for floor"),
        (
            {"policy": "assert-close", "atol": {"y": 1e-3}},
            "rtol and atol are for the policy fixed, not for assert-close",
        ),
        ({"policy": "fixed", "rtol": {"": -1.0}}, "-1.0 is no tolerance"),
        ({"policy": "fixed", "atol": {"y": math.nan}}, "nan is no tolerance"),
        ({"levels": ()}, "a protocol without levels compares nothing"),
    ],
)
def test_it_is_refused(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=re.escape(why)):
        Protocol(**wrong)


def test_it_runs_on_the_cpu_unless_told_otherwise() -> None:
    assert Protocol().places == ("cpu",)
    assert Protocol(providers=("cuda", "cpu")).places == ("cuda", "cpu")
