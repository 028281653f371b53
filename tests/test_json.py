"""docs/schema.json says what the JSON holds: all of it, and nothing that is not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from jsonschema import Draft202012Validator
from onnx import numpy_helper, parser
from torch import Tensor, nn

from bnfold.cli import COMMANDS
from docs.json_reference import PAGE, SCHEMA, page
from tests.conftest import CHECKPOINTS, Ended

ONNX = CHECKPOINTS / "placement.onnx"
PIPELINE = f"""
[models.fine]
source = "{ONNX}"
[models.missing]
source = "missing.onnx"
"""

Run = Callable[..., Ended]


def strict() -> dict[str, Any]:
    """The schema with no room for keys that it does not name."""
    schema = deepcopy(SCHEMA)
    for definition in schema["$defs"].values():
        if "properties" in definition:
            definition["additionalProperties"] = False
    return schema


VALIDATOR = Draft202012Validator(strict())


def keys(value: Any, schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Definition and key of everything in `value`, which fits `schema`."""
    for way in schema.get("anyOf", [schema]):
        if not VALIDATOR.evolve(schema=way).is_valid(value):
            continue
        if "$ref" in way:
            name = way["$ref"].rpartition("/")[2]
            named = SCHEMA["$defs"][name].get("properties", {})
            for key in named.keys() & (value.keys() if named else ()):
                yield name, key
                yield from keys(value[key], named[key])
        elif isinstance(value, list):
            for each in value:
                yield from keys(each, way["items"])
        elif isinstance(value, dict):
            for each in value.values():
                yield from keys(each, way["additionalProperties"])


class Twice(nn.Module):
    """Its convolution runs twice, so a module cannot take the BatchNorm, and its graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(torch.relu(self.conv(x))))


def damaged(source: Path, target: Path) -> Path:
    """The model with one weight changed."""
    model = onnx.load(source)
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, target)
    return target


@pytest.fixture
def printed(bnfold: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs commands and gives the definition that each is to fit, with what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[str, Any]:
        found = bnfold(*arguments, "--format", "json").json
        return "failure" if found.get("verdict") == "error" else str(arguments[0]), found

    return run


RARE = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[2] x) => (float[2] y) <float one = {1234.5}> {
    alike = Equal (x, one)
    y = Where (alike, one, x)
}
"""
"""A side that no case reaches."""


def test_the_schema_holds_and_nothing_of_it_is_missing(printed: Any, tmp_path: Path) -> None:
    torch.save(Twice().eval(), "twice.pt")
    Path("bnfold.toml").write_text(PIPELINE)
    wrong = damaged(ONNX, tmp_path / "wrong.onnx")
    onnx.save(parser.parse_model(RARE), "rare.onnx")
    outputs = [
        printed("fold", ONNX, "-o", "o.onnx"),
        printed("fold", ONNX, "-o", "o.onnx", "--no-verify"),
        printed("fold", "twice.pt", "--trust", "--input", "2x3x4x4", "--keep-classes"),
        printed("export", ONNX, "--to", "onnx", "-o", "e.onnx"),
        printed("verify", ONNX, "o.onnx", "--self-test"),
        printed("verify", ONNX, wrong, "--policy", "fixed", "--rtol", "0", "--atol", "output:1e-9"),
        printed("verify", "rare.onnx", "rare.onnx"),
        printed("prove", ONNX, wrong),
        printed("golden", ONNX, "-o", "g.npz"),
        printed("verify", "--golden", "g.npz", "o.onnx"),
        printed("inspect", ONNX),
        printed("bench", ONNX, "--folded", "--rounds", "2"),
        printed("build"),
        printed("doctor"),
        printed("fold", "nothing.onnx"),
        printed("fold"),
    ]
    seen: set[tuple[str, str]] = set()
    for name, output in outputs:
        schema = {"$ref": f"#/$defs/{name}"}
        problems = [e.message for e in VALIDATOR.evolve(schema=schema).iter_errors(output)]
        assert problems == [], (name, problems)
        seen.update(keys(output, schema))
    named = {(name, key) for name, d in SCHEMA["$defs"].items() for key in d.get("properties", {})}
    assert named - seen <= {("nothing", "died")}, "this takes a crash"


def test_an_unknown_key_would_be_seen() -> None:
    change = {"before": 1, "after": 2}
    check = VALIDATOR.evolve(schema={"$ref": "#/$defs/change"})
    assert check.is_valid(change)
    assert not check.is_valid({**change, "more": 3})
    assert not check.is_valid({"before": 1})


def test_every_key_is_required_and_every_command_has_a_definition() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    for name, definition in SCHEMA["$defs"].items():
        if "properties" in definition and name != "nothing":
            assert definition["required"] == list(definition["properties"])
    assert {*COMMANDS, "failure"} == {each["$ref"].rpartition("/")[2] for each in SCHEMA["anyOf"]}


def test_the_page_is_up_to_date() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "python -m docs.json_reference writes it"
    assert json.dumps(SCHEMA).count('"description"') > 100
