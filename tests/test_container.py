"""The Dockerfile, as far as it can be judged without an engine."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from itertools import takewhile

import pytest

from tests.conftest import ROOT

RECIPE = (ROOT / "Dockerfile").read_text()
GUIDE = (ROOT / "docs" / "deployment.md").read_text()
KNOWN = {"FROM", "ENV", "RUN", "COPY", "ENTRYPOINT", "CMD", "USER", "WORKDIR"}

Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    lines = [line for line in RECIPE.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, " ".join(rest.split())) for word, _, rest in (x.partition(" ") for x in joined)]


def stages() -> dict[str, list[Instruction]]:
    """What each stage does, that of its base included."""
    found: dict[str, list[Instruction]] = {}
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = [*found.get(base, []), (word, base)]
        else:
            found[name].append((word, rest))
    return found


STAGES = stages()


def test_it_is_well_formed() -> None:
    assert {word for word, _ in instructions()} == KNOWN
    assert instructions()[0][0] == "FROM"
    for name, steps in STAGES.items():
        for word, rest in steps:
            if word == "FROM":
                assert rest in STAGES or re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", rest), name


@pytest.mark.parametrize("target", ["fold", "verify"])
def test_an_image_runs_without_rights_where_the_models_are(target: str) -> None:
    last = dict(STAGES[target])
    assert (last["USER"], last["WORKDIR"]) == ("bnfold", "/work")
    assert last["ENTRYPOINT"] == '["bnfold"]'
    words = [word for word, _ in STAGES[target]]
    after = list(takewhile(lambda word: word != "USER", reversed(words)))
    assert "RUN" not in after, "what is installed is not the user's to change"


def test_what_is_copied_is_what_the_installation_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    first, *rest = (ROOT / ".dockerignore").read_text().split()
    assert first == "*"
    sent = [each.removeprefix("!") for each in rest if each.startswith("!")]
    assert all((ROOT / each).exists() for each in sent)
    needed = {"pyproject.toml", "constraints.txt", "bnfold", project["readme"]}
    assert needed | set(project["license-files"]) == set(sent)
    assert any(fnmatch("bnfold/__pycache__", each) for each in rest)
    assert ("COPY", ". /opt/bnfold") in STAGES["base"]


def test_a_verifying_image_has_what_the_recipe_for_ci_installs() -> None:
    installed = [rest for word, rest in STAGES["verify"] if word == "RUN" and "pip" in rest]
    (packages,) = re.findall(r"constraints.txt ([\w ]+?) &&", " ".join(installed))
    page = (ROOT / "docs" / "ci.md").read_text()
    assert f"pip install {packages}\n" in page
    assert "torch" not in " ".join(installed)
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().split()}
    assert set(packages.split()) <= pinned


def test_the_folding_image_takes_torch_for_the_cpu() -> None:
    (installed,) = [r for word, r in STAGES["fold"] if word == "RUN" and "pip" in r]
    assert "--constraint /opt/bnfold/constraints.txt" in installed
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in installed


def test_the_guide_builds_every_target() -> None:
    built = dict(re.findall(r"^docker build --target (\w+) -t ([\w-]+) \.$", GUIDE, re.MULTILINE))
    assert set(built) == STAGES.keys() - {"base"}
    started = re.findall(r'^docker run --rm -v "\$PWD:/work" ([\w-]+) (\w+) ', GUIDE, re.MULTILINE)
    assert [image for image, _ in started] == list(built.values())
    for target, image in built.items():
        assert f"docker build --target {target} -t {image} ." in RECIPE.splitlines()[0] + RECIPE
