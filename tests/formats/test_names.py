"""Names are data: whatever a file calls its parts, nothing of it runs; the legitimate ones fold.

A name that runs makes a folder in the current one. A name may also reach source without running: an
audit hook looks at every text that Python compiles meanwhile.

BNFOLD_EXAMPLES is the number of examples of the property test; hypothesis prints the one that fails
with what reproduces it.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from bnfold.formats.pytorch.identifiers import is_plain
from tests.conftest import Ended
from tests.formats.factories import named, small

Run = Callable[..., Ended]
HARM = 'getattr(__import__("os"),"mkdir")("MARK")'
HARMFUL = (
    f'a"),{HARM},getattr(self,"a',
    f"a',{HARM},'a",
    f"a\n    {HARM}\n    a",
    f"a={HARM}",
    f"a;{HARM}",
    f"a):\n    {HARM}\n#",
    f'a\\"),{HARM}#',
    f"{{{HARM}}}",
)
LEGITIMATE = (
    *("block1-0", "class", "None", "0", "a b", "größe", "n" * 300, "ﬁ", "graph", "_guards_fn"),
    *("code", "a,b", "a;b", "a@b", "a@1", "a#1", "a/b", "a:b", "__x__", "\u202e", "\n", '"', "\\"),
)
"""Names that torch gives, of which many are no identifiers or mean something else in code."""

REFUSED = ("", "a.b", "forward", "training", "_modules", "__class__", "\ud800")
"""Names that torch does not let a module have: no path leads there, or it is taken."""

TOKEN = "zqname"
"""What a name is called in a file before it is replaced."""

X = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
SHAPE = ("--input", "2x3x5x4")


# ---- carriers: each writes a file with a name, and gives the options that open it


def module(name: str, path: Path) -> tuple[str, ...]:
    torch.save(named(name), path)
    return ()


def weights(name: str, path: Path) -> tuple[str, ...]:
    torch.save(named(name).state_dict(), path)
    return _factory(name)


def safetensors(name: str, path: Path) -> tuple[str, ...]:
    save_file({key: tensor.clone() for key, tensor in named(name).state_dict().items()}, path)
    return _factory(name)


def _factory(name: str) -> tuple[str, ...]:
    return ("--model", "tests.formats.factories:named", "--model-args", json.dumps([name]))


def metadata(name: str, path: Path) -> tuple[str, ...]:
    """A folded file that says it has a parameter of that name."""
    said = {"plain": [], "identity": [], "parameters": [f"0.{name}"]}
    state = {**small().state_dict(), f"0.{name}": torch.zeros(2)}
    save_file(state, path, {"bnfold": json.dumps(said)})
    return ("--model", "tests.formats.factories:small")


def program(name: str, path: Path) -> tuple[str, ...]:
    """Paths of tensors and modules."""
    torch.export.save(torch.export.export(named(TOKEN), (X,), strict=False), path)
    _replace(path, ".json", lambda text: text.replace(TOKEN, json.dumps(name)[1:-1]))
    return ()


def values(name: str, path: Path) -> tuple[str, ...]:
    """The values within a program, and its inputs."""
    torch.export.save(torch.export.export(small(), (X,), strict=False), path)
    for node in ("conv2d", "input"):
        new = json.dumps(name)
        _replace(path, ".json", lambda text, node=node, new=new: text.replace(f'"{node}"', new))
    return ()


def script(name: str, path: Path) -> tuple[str, ...]:
    torch.jit.script(named(TOKEN)).save(str(path))
    _replace(path, ".py", lambda text: text.replace(TOKEN, name))
    return ()


def onnx_names(name: str, path: Path) -> tuple[str, ...]:
    """Nodes, values, weights and sizes."""
    made = torch.onnx.export(small(), (X,), dynamo=True, verbose=False)
    assert made is not None
    model = made.model_proto
    for node in model.graph.node:
        node.name += name
        for names in (node.input, node.output):
            names[:] = [each and each + name for each in names]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name += name
    del model.graph.value_info[:]
    onnx.save(model, path)
    return ()


def _replace(path: Path, suffix: str, change: Callable[[str], str]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for each, content in members.items():
            text = each.endswith(suffix)
            archive.writestr(each, change(content.decode()).encode() if text else content)


CARRIERS: Mapping[str, Callable[[str, Path], tuple[str, ...]]] = {
    "module": module,
    "weights": weights,
    "safetensors": safetensors,
    "metadata": metadata,
    "program": program,
    "values": values,
    "script": script,
    "onnx": onnx_names,
}
CARRY_ANY = ("module", "weights", "safetensors")

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "inspect": ("inspect", "FILE"),
    "fold": ("fold", "FILE", "-o", "OUT"),
    "graph": ("fold", "FILE", "--form", "graph", "-o", "OUT"),
    "onnx": ("export", "FILE", "--to", "onnx", "-o", "OUT"),
    "pt2": ("export", "FILE", "--to", "pt2", "-o", "OUT"),
    "torchscript": ("export", "FILE", "--to", "torchscript", "-o", "OUT"),
    "verify": ("verify", "FILE", "FILE"),
    "candidate": ("verify", "GOOD", "FILE"),
    "golden": ("golden", "FILE", "-o", "OUT"),
    "bench": ("bench", "FILE", "--rounds", "1", "--warmup", "0"),
}


# ---- what must not happen

_watched: list[str] = []
_compiled: list[str] = []


def _note(what: str, arguments: tuple[Any, ...]) -> None:
    if what == "compile" and _watched and isinstance(arguments[0], str | bytes):
        source = arguments[0]
        text = source if isinstance(source, str) else source.decode(errors="replace")
        _compiled.extend(name for name in _watched if name in text)


sys.addaudithook(_note)


@contextmanager
def no_source_with(name: str) -> Iterator[None]:
    """Fails if Python compiles a text with the name in it, unless it is one that may be there."""
    _compiled.clear()
    if len(name) > 8 and not all(map(is_plain, name.split("."))):
        _watched.append(name)
    try:
        yield
    finally:
        _watched.clear()
    assert not _compiled, "the name is in what Python compiles"


def run(bnfold: Run, folder: Path, carrier: str, command: str, name: str) -> Ended:
    """One command on one carrier. Nothing runs, and nothing is left behind but its result."""
    path, good, out = folder / "m.bin", folder / "good.pt", folder / "out"
    options = CARRIERS[carrier](name, path)
    torch.save(named("good"), good)
    places = {"FILE": path, "GOOD": good, "OUT": out}
    with no_source_with(name):
        ended = bnfold(*(places.get(each, each) for each in COMMANDS[command]), *options, *SHAPE)
    left = {each.name for each in folder.iterdir()} - {"m.bin", "good.pt", "out"}
    assert left == set(), (carrier, command, name, ended)
    same = carrier in CARRY_ANY or command != "candidate"
    assert ended.code in ((0, 2, 3) if same else (0, 1, 2, 3)), (carrier, command, name, ended)
    assert "Traceback" not in ended.err, (carrier, command, name, ended)
    return ended


def is_legitimate(name: str) -> bool:
    try:
        nn.Module().add_module(name, nn.ReLU())
    except KeyError:
        return False
    return True


def names() -> st.SearchStrategy[str]:
    text = st.text("ab\"'\\()[]{};:,=#@ -_\n\r\t\0/.%$é\u202e٣", min_size=1, max_size=12)
    harm = st.sampled_from((HARM, HARM.replace('"', "'"), f'"""{HARM}"""'))
    ends = st.sampled_from(
        ('")', "')", "\n", "\n    ", ";", '"),', "=", ":", "]", "}", "\\", "#", "")
    )
    framed = st.builds("{}{}{}{}".format, text, ends, harm, ends)
    return st.one_of(text, framed, st.sampled_from((*HARMFUL, *LEGITIMATE, *REFUSED[:-1])))


@settings(
    max_examples=int(os.environ.get("BNFOLD_EXAMPLES", "20")),
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
@given(
    names(),
    st.sampled_from(sorted(CARRIERS)),
    st.sampled_from(sorted(COMMANDS.keys() - {"bench"})),
)
def test_a_name_never_runs_and_what_is_legitimate_folds(
    bnfold: Run, tmp_path_factory: Any, name: str, carrier: str, command: str
) -> None:
    folder = tmp_path_factory.mktemp("names")
    before = Path.cwd()
    os.chdir(folder)
    try:
        ended = run(bnfold, folder, carrier, command, name)
    finally:
        os.chdir(before)
    event(f"{carrier}: exit code {ended.code}")
    if carrier in CARRY_ANY and is_legitimate(name):
        assert ended.code == 0, ended
    if carrier == "metadata":
        assert ended.code == 3, ended


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("carrier", ["module", "safetensors"])
def test_a_harmful_name_does_not_run(
    carrier: str, command: str, bnfold: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run(bnfold, tmp_path, carrier, command, HARMFUL[0])
    assert ended.code == 0, ended
