"""Writes docs/json.md from docs/schema.json.

python -m docs.json_reference
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SCHEMA: dict[str, Any] = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))
PAGE = FOLDER / "json.md"

INTRODUCTION = """\
# JSON

<!-- Written by `python -m docs.json_reference` from schema.json; change that. -->

With `--format json` every command prints one object on stdout and nothing else; `--report
FILE.json` writes the same. [schema.json](schema.json) is its JSON Schema: validate against
`#/$defs/COMMAND`, or against `#/$defs/failure` where `verdict` is `error`.

`schema_version` is 1. It changes when a key goes, or changes its type or meaning. New keys, and new
values of strings that are not listed here, may come with any version of bnfold: ignore what you do
not know. Every key is always there; what there is nothing to say about is null or empty. Of the
exit codes, 1 has the verdict `fail`, 2 and above `error`; `inspect` has no verdict, only the exit
code.
"""


def page() -> str:
    """The reference as Markdown."""
    commands = [_name(each) for each in SCHEMA["anyOf"]]
    parts = [name for name in SCHEMA["$defs"] if name not in commands]
    lines = [INTRODUCTION, "## Commands", ""]
    for name in commands:
        lines += _section(name)
    lines += ["## Parts", ""]
    for name in parts:
        lines += _section(name)
    return "\n".join(lines).rstrip() + "\n"


def _section(name: str) -> Iterator[str]:
    definition = SCHEMA["$defs"][name]
    yield from (f"### {name}", "", definition["description"], "")
    if "properties" in definition:
        yield from ("| key | type | meaning |", "| --- | --- | --- |")
        for key, value in definition["properties"].items():
            yield f"| `{key}` | {_type(value)} | {value['description']} |"
        yield ""


def _type(schema: dict[str, Any]) -> str:
    """What a value may be, in words."""
    if "$ref" in schema:
        return f"[{_name(schema)}](#{_name(schema)})"
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if isinstance(schema["type"], list):
        return " or ".join(schema["type"])
    if schema["type"] == "array":
        return f"array of {_type(schema['items'])}"
    if schema["type"] == "object":
        return f"object of {_type(schema['additionalProperties'])}"
    return str(schema["type"])


def _name(schema: dict[str, str]) -> str:
    return schema["$ref"].rpartition("/")[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
