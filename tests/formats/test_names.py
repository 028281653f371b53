"""Names are data: whatever a file calls its parts, nothing runs, and what is legitimate folds.

A name that runs makes a folder in the current one. A name may also reach source without running: an
audit hook looks at every text that Python compiles meanwhile.

BNFOLD_EXAMPLES is the number of examples of the property test, which are then others every time;
hypothesis prints the one that fails with what reproduces it.
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

import bnfold
from bnfold import Opening
from bnfold.errors import ModelError
from bnfold.formats.opening import open_model
from bnfold.formats.pytorch.identifiers import Identifiers, is_identifier, is_plain, require_names
from bnfold.formats.pytorch.nn_module import ModuleModel
from bnfold.formats.pytorch.program_names import identified
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
"""Names that torch does not let a module have: no path leads there, or it is taken, or no text."""

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
        _replace(path, ".json", lambda text, old=node: text.replace(f'"{old}"', json.dumps(name)))
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
    """Fails if Python compiles a text with the name in it; torch may have words of its own."""
    _compiled.clear()
    if len(name) > 8 and not name.isidentifier() and not all(map(is_plain, name.split("."))):
        _watched.append(name)
    try:
        yield
    finally:
        _watched.clear()
    assert not _compiled, "the name is in what Python compiles"


def run(command_line: Run, folder: Path, carrier: str, command: str, name: str) -> Ended:
    """One command on one carrier. Nothing runs, and nothing is left behind but its result."""
    path, good, out = folder / "m.bin", folder / "good.pt", folder / "out"
    options = CARRIERS[carrier](name, path)
    torch.save(named("good"), good)
    places = {"FILE": path, "GOOD": good, "OUT": out}
    with no_source_with(name):
        ended = command_line(
            *(places.get(each, each) for each in COMMANDS[command]), *options, *SHAPE
        )
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
    st.sampled_from(sorted(COMMANDS)),
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


class Loop(nn.Module):
    """Reads its children by name and in order."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval())
            for tensor in self._modules[name][1].parameters():  # type: ignore[index]
                tensor.detach().normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name, block in self.named_children():
            x = torch.relu(block(x)) * (1.5 if name in ("class", "a b", "größe") else 1.0)
        return x


@pytest.mark.parametrize("form", ["module", "graph", "pt2", "onnx", "torchscript"])
def test_all_legitimate_names_fold_in_one_network(form: Any, tmp_path: Path) -> None:
    net = Loop(LEGITIMATE).eval()
    if form in ("module", "graph"):
        result: Any = bnfold.fold(net, X, form=form)
    else:
        result = bnfold.export(net, X, to=[form])[form]
    assert result.verification.passed, result.verification.summary
    assert result.plan.batchnorms.folded == len(LEGITIMATE)
    if form == "torchscript":  # which has no modules left
        return
    text = json.dumps([site.to_json() for site in result.plan.sites])
    assert all(form == "onnx" or json.dumps(f"{name}.1")[1:-1] in text for name in LEGITIMATE)


def test_weights_keep_their_names() -> None:
    net = Loop(LEGITIMATE).eval()
    folded = bnfold.fold(net, X).model.state_dict()
    assert {f"{name}.0.weight" for name in LEGITIMATE} <= folded.keys()
    proto = bnfold.export(net, X, to=["onnx"])["onnx"].model
    weights = {each.name for each in proto.graph.initializer}
    wanted = {f"{name}.0.bias" for name in LEGITIMATE if name.isprintable()}
    assert wanted <= weights


@pytest.mark.parametrize("command", ["inspect", "fold", "graph", "pt2", "verify"])
@pytest.mark.parametrize("carrier", ["module", "program"])
def test_one_name_for_a_tensor_and_a_module_is_refused(
    carrier: str, command: str, bnfold: Run, tmp_path: Path
) -> None:
    ended = run(bnfold, tmp_path, carrier, command, "conv")
    assert ended.code == 3, ended
    assert "has that name already" in ended.err or "are both called 'conv.conv'" in ended.err


def test_torch_itself_opens_a_program_of_odd_names(tmp_path: Path) -> None:
    net = Loop((*LEGITIMATE, *(n for n in HARMFUL if "." not in n))).eval()
    path = tmp_path / "m.pt2"
    bnfold.fold(net, X, form="graph").save(path)
    program = torch.export.load(path)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(X), net(X))
    assert "block1-0.0.weight" in program.state_dict
    assert not (tmp_path / "MARK").exists()


def test_a_program_is_not_changed_by_being_opened() -> None:
    program = torch.export.export(Loop(("class", "a,b")).eval(), (X,), strict=False)
    keys = list(program.state_dict)
    made, names = identified(program)
    assert names
    assert list(program.state_dict) == keys
    assert [names.original(key) for key in made.state_dict] == keys
    assert all(map(is_plain, made.state_dict))
    stacks = [n.meta["nn_module_stack"] for n in made.graph.nodes if "nn_module_stack" in n.meta]
    assert stacks
    assert all(is_plain(path) for each in stacks for path, _ in each.values())
    assert any("a,b" in path for n in program.graph.nodes for path, _ in _stack(n))


def _stack(node: torch.fx.Node) -> Any:
    return node.meta.get("nn_module_stack", {}).values()


def test_ordinary_names_are_left_alone() -> None:
    program = torch.export.export(Loop(("conv", "0", "block1-0")).eval(), (X,), strict=False)
    assert identified(program)[0] is program


@pytest.mark.parametrize("key", ["k=print(1)", "a b", "x:int"])
def test_an_input_that_is_no_identifier_is_refused(key: str) -> None:
    class Keywords(nn.Module):
        def forward(self, **given: torch.Tensor) -> torch.Tensor:
            return torch.stack(list(given.values()))

    program = torch.export.export(Keywords(), (), {key: X}, strict=False)
    with pytest.raises(ModelError, match="input that is called"):
        identified(program)


@pytest.mark.parametrize(
    ("carrier", "name"),
    [(each, name) for each in (program, values) for name in (":", "a:b", "a-b", "a.b")]
    + [(values, "class")],
)
def test_a_value_of_a_program_that_is_no_identifier_is_refused(
    carrier: Any, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.pt2"
    carrier(name, path)
    with pytest.raises(ModelError):
        open_model(path)


@pytest.mark.parametrize("kind", ["_modules", "_parameters", "_buffers"])
@pytest.mark.parametrize("name", [*REFUSED, 3])
def test_a_name_that_torch_does_not_give_is_refused(kind: str, name: Any) -> None:
    net = small()
    getattr(net[0], kind)[name] = None
    with pytest.raises(ModelError, match="that is called"):
        ModuleModel(net)


@pytest.mark.parametrize("name", REFUSED[:-1])
def test_a_factory_with_such_a_name_is_refused(name: str, bnfold: Run, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(small().state_dict(), path)
    ended = bnfold("inspect", path, *_factory(name), *SHAPE)
    assert ended.code == 3, ended
    assert "that is called" in ended.err


def test_a_name_like_a_second_call_is_refused() -> None:
    net = nn.Module()
    net.add_module("a@1", nn.ReLU())
    require_names(net)
    net.add_module("a", nn.ReLU())
    with pytest.raises(ModelError, match="second call"):
        require_names(net)


@given(st.lists(names(), min_size=1, max_size=6))
def test_identifiers_lead_back(paths: list[str]) -> None:
    found = Identifiers.of(paths)
    made = [found.identifier(path) for path in paths]
    assert [found.original(path) for path in made] == paths
    assert len(set(made)) == len(set(paths))
    assert all(is_plain(path) for path in made if "" not in path.split("."))
    assert all(map(is_identifier, found.made.values()))


def test_an_identifier_is_no_longer_than_it_need_be() -> None:
    made = Identifiers.of(["a," * 400, "a," * 401]).made.values()
    assert max(map(len, made)) < 80


@pytest.mark.parametrize(
    "said",
    [
        {"parameters": [name]}
        for name in (
            "forward",
            "0.forward",
            "0.training",
            "0.weight",
            "1.running_mean",
            "",
            "0.bias.x",
        )
    ]
    + [{"identity": [name]} for name in ("", "forward", "0.weight", "2", "0._modules", "training")]
    + [{"plain": ["forward"]}, {"plain": 3}, {"parameters": [3]}, {"more": []}, ["parameters"], 3],
    ids=str,
)
def test_metadata_address_what_is_there(said: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(small().state_dict(), path, {"bnfold": json.dumps(said)})
    with pytest.raises(ModelError):
        open_model(path, Opening(factory="tests.formats.factories:small"))


def test_a_free_keyword_that_is_no_identifier_is_refused() -> None:
    class Keywords(nn.Module):
        def forward(self, x: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
            return x + sum(more.values())

    with pytest.raises(ModelError, match="input that is called 'class'"):
        bnfold.fold(Keywords(), {"x": X, "class": X}, form="graph")


@pytest.mark.parametrize("name", ["x", "conv2d", "class", 'a")b'])
@pytest.mark.parametrize("form", ["graph", "onnx", "torchscript"])
def test_a_tensor_of_the_root_is_called_like_something_else(name: str, form: Any) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
            vars(self)[name] = torch.tensor([1.5, -2.0, 0.5]).reshape(3, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.block(x)) * vars(self)[name]

    net = Scaled().eval()
    if form == "graph":
        verification: Any = bnfold.fold(net, X, form=form).verification
    else:
        verification = bnfold.export(net, X, to=[form])[form].verification
    assert verification.passed, verification.summary


def test_a_report_shows_names_that_turn_the_direction_of_writing_as_codes(
    bnfold: Run, tmp_path: Path
) -> None:
    path = tmp_path / "m.pt"
    torch.save(named("a\u202eb\u2066c\ud7ff"), path)
    ended = bnfold("inspect", path, *SHAPE)
    assert ended.code == 0
    assert "\\u202e" in ended.out
    assert not any(mark in ended.out + ended.err for mark in "\u202e\u2066")
