"""Files made to do harm: nothing of them runs, and their sizes are not believed."""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bnfold import Opening
from bnfold.errors import ModelError, UntrustedError, UsageError
from bnfold.formats.opening import open_model
from bnfold.formats.pytorch.nn_module import ModuleModel
from tests.conftest import ROOT

NET = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).eval()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(module: str, name: str, *arguments: str) -> bytes:
    """The instructions of a pickle that call a function on texts."""
    return f"c{module}\n{name}\n(".encode() + b"".join(map(text, arguments)) + b"tR"


def zipped(instructions: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + instructions + b".")
        archive.writestr("m/version", "3\n")


def legacy(instructions: bytes, path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(3, buffer, _use_new_zipfile_serialization=False)
    before, after = buffer.getvalue().split(b"\x80\x02K\x03.")
    path.write_bytes(before + b"\x80\x02" + instructions + b"." + after)


def plain(instructions: bytes, path: Path) -> None:
    path.write_bytes(b"\x80\x05" + instructions + b".")


CONTAINERS = {"zip": zipped, "legacy": legacy, "plain": plain}

PLACES: dict[str, Callable[[bytes], bytes]] = {
    "alone": lambda harm: harm,
    "among weights": lambda harm: b"}" + text("state_dict") + b"}" + text("w") + harm + b"ss",
    "then thrown away": lambda harm: harm + b"0N",
}

ATTACKS = {
    "posix.mkdir": call("posix", "mkdir", "MARKER"),
    "os.system": call("os", "system", "mkdir MARKER"),
    "builtins.eval": call("builtins", "eval", "__import__('os').mkdir('MARKER')"),
    "builtins.exec": call("__builtin__", "eval", "__import__('os').mkdir('MARKER')").replace(
        b"eval\n", b"exec\n"
    ),
    "torch.hub.load": call("torch.hub", "load", "MARKER", "entry"),
    "torch.load": call("torch", "load", "MARKER"),
    "torch.storage._load_from_bytes": call("torch.storage", "_load_from_bytes", "MARKER"),
    "torch.serialization.add_safe_globals": call("torch.serialization", "add_safe_globals", "x"),
    "operator.attrgetter": call("operator", "attrgetter", "system"),
    "torch.nn.Module.__setattr__": call("torch.nn", "Module.__setattr__", "MARKER"),
    "torch.nn.modules.module.torch.os.mkdir": call(
        "torch.nn.modules.module", "torch.os.mkdir", "MARKER"
    ),
    "torch.nn.modules.module.os.mkdir": call("torch.nn.modules.module", "os.mkdir", "MARKER"),
}
"""By the global that they need; MARKER is a folder that must not be made."""


class TestPickles:
    @pytest.mark.parametrize("container", CONTAINERS)
    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("needed", ATTACKS)
    def test_nothing_runs_and_the_global_is_named(
        self, needed: str, place: str, container: str, tmp_path: Path, monkeypatch: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        CONTAINERS[container](PLACES[place](ATTACKS[needed]), Path("m.pt"))
        with pytest.raises(ModelError) as caught:
            open_model("m.pt")
        if (needed, container) != ("torch.storage._load_from_bytes", "plain"):
            assert needed in str(caught.value)  # of a plain pickle, it makes storages and no more
        assert not Path("MARKER").exists()

    @pytest.mark.parametrize("container", ["zip", "plain"])
    def test_names_put_together_from_the_memo(
        self, container: str, tmp_path: Path, monkeypatch: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        name = text("posix") + b"\x94" + text("mkdir") + b"\x940" + b"0" + b"h\x00h\x01\x93"
        CONTAINERS[container](name + text("MARKER") + b"\x85R", Path("m.pt"))
        with pytest.raises(UntrustedError) as caught:
            open_model("m.pt")
        assert caught.value.needed == ("posix.mkdir",)
        assert not Path("MARKER").exists()

    def test_a_name_that_is_computed(self, tmp_path: Path) -> None:
        plain(call("builtins", "str", "posix") + text("mkdir") + b"\x93)R", tmp_path / "m.pt")
        with pytest.raises(UntrustedError) as caught:
            open_model(tmp_path / "m.pt")
        assert "<computed>.mkdir" in caught.value.needed

    def test_buffers_out_of_band(self, tmp_path: Path) -> None:
        plain(b"\x97\x98" + call("posix", "mkdir", "MARKER"), tmp_path / "m.pt")
        with pytest.raises(UntrustedError, match=r"posix\.mkdir"):
            open_model(tmp_path / "m.pt")

    @pytest.mark.parametrize(
        "name",
        [
            *("os.system", "builtins.eval", "operator.attrgetter", "subprocess.Popen"),
            *("torch.load", "torch.storage._load_from_bytes", "torch.hub.load"),
            *("torch.fx.graph_module.reduce_graph_module", "torch.jit.load"),
        ],
    )
    def test_what_could_do_anything_cannot_be_allowed(self, name: str, tmp_path: Path) -> None:
        zipped(call(*name.rsplit(".", 1), "MARKER"), tmp_path / "m.pt")
        with pytest.raises(UsageError, match="would allow the file to do anything") as caught:
            open_model(tmp_path / "m.pt", Opening(allow=(name,)))
        assert "--trust" in str(caught.value.hint)
        with pytest.raises(UntrustedError) as refused:
            open_model(tmp_path / "m.pt")
        assert "--allow" not in str(refused.value.hint)

    def test_a_partial_of_what_is_not_allowed(self, tmp_path: Path) -> None:
        zipped(b"cfunctools\npartial\ncposix\nmkdir\n\x85R", tmp_path / "m.pt")
        with pytest.raises(UntrustedError) as caught:
            open_model(tmp_path / "m.pt")
        assert caught.value.needed == ("posix.mkdir",)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("program") / "m.pt2"
    ModuleModel(NET).capture({"input": torch.zeros(2, 3, 4, 4).numpy()}).save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members: Mapping[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


CODE = "__import__('os').mkdir('MARKER')"


def with_guard(entry: Any) -> None:
    entry["guards_code"] = [f"L['input'].size()[0] == {CODE}"]


def with_guard_that_calls(entry: Any) -> None:
    entry["guards_code"] = ["L['input'].storage().share_memory_()"]


def with_argument(entry: Any) -> None:
    signature = entry["graph_module"]["module_call_graph"][0]["signature"]
    signature["forward_arg_names"] = [f"input={CODE}"]


def with_input(entry: Any) -> None:
    graph = entry["graph_module"]["graph"]
    graph["inputs"][-1]["as_tensor"]["name"] = f"input={CODE}"


def with_key(entry: Any) -> None:
    values = entry["graph_module"]["graph"]["tensor_values"]
    values[f"x={CODE}"] = next(iter(values.values()))


def with_import(entry: Any) -> None:
    context = json.dumps({"__enum__": True, "fqn": "antigravity:X", "name": "x"})
    spec = [1, {"type": "builtins.tuple", "context": context, "children_spec": []}]
    entry["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps(spec)


def with_factory(entry: Any) -> None:
    context = json.dumps({"default_factory_module": "antigravity", "default_factory_name": "x"})
    spec = [1, {"type": "collections.defaultdict", "context": context, "children_spec": []}]
    entry["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps(spec)


def with_file(entry: Any) -> None:
    entry["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def with_text(entry: Any) -> None:
    node = entry["graph_module"]["graph"]["nodes"][0]
    node["inputs"][0]["arg"] = {"as_strings": [f"' + {CODE} + '"]}


def with_size(entry: Any) -> None:
    values = entry["graph_module"]["graph"]["tensor_values"]
    next(iter(values.values()))["sizes"][0] = {"as_expr": {"expr_str": CODE, "hint": None}}


class TestPrograms:
    @pytest.mark.parametrize(
        "change",
        [
            *(with_guard, with_guard_that_calls, with_argument, with_input, with_key),
            *(with_import, with_factory, with_file, with_text, with_size),
        ],
    )
    def test_what_becomes_code_is_refused(
        self, change: Callable[[Any], None], program: dict[str, bytes], tmp_path: Path
    ) -> None:
        name = next(name for name in program if "/models/" in name)
        entry = json.loads(program[name])
        change(entry)
        path = packed({**program, name: json.dumps(entry).encode()}, tmp_path / "m.pt2")
        with pytest.raises(UntrustedError, match="could do more than compute"):
            open_model(path)

    @pytest.mark.parametrize("other", ["m/models/model.text", "m/MODELS/model.json"])
    def test_a_program_by_another_name(
        self, other: str, program: dict[str, bytes], tmp_path: Path
    ) -> None:
        name = next(name for name in program if "/models/" in name)
        entry = json.loads(program[name])
        with_guard(entry)
        members = {**program, other.replace("m/", name[: name.index("/") + 1], 1): b""}
        members[list(members)[-1]] = json.dumps(entry).encode()
        with pytest.raises(ModelError):
            open_model(packed(members, tmp_path / "m.pt2"))

    @pytest.mark.parametrize("name", ["OPAQUE_OBJ_0", "Custom_Obj_0"])
    def test_objects_in_capitals(
        self, name: str, program: dict[str, bytes], tmp_path: Path
    ) -> None:
        root = next(iter(program)).partition("/")[0]
        members = {**program, f"{root}/data/constants/{name}": b"\x80\x02."}
        with pytest.raises(UntrustedError, match=name):
            open_model(packed(members, tmp_path / "m.pt2"))

    @pytest.mark.parametrize("guard", ["L['input'].size()[0] >= 2", "L['a'][0].size()[1] % 8 == 0"])
    def test_guards_of_torch_are_harmless(
        self, guard: str, program: dict[str, bytes], tmp_path: Path
    ) -> None:
        name = next(name for name in program if "/models/" in name)
        entry = json.loads(program[name])
        entry["guards_code"] = [guard]
        open_model(packed({**program, name: json.dumps(entry).encode()}, tmp_path / "m.pt2"))


class TestArchives:
    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (["m/data.pkl", "m/data.pkl"], "m/data.pkl more than once"),
            (["m/data.pkl", "m/DATA.pkl"], "m/data.pkl more than once"),
            (["m/data.pkl", "m/../../x"], r"a member called 'm/\.\./\.\./x'"),
            (["m/data.pkl", "/m/x"], "a member called '/m/x'"),
            (["m/data.pkl", "m\\..\\x"], "a member called"),
            (["m/data.pkl\0.txt"], "a member called"),
        ],
    )
    def test_names(self, names: list[str], said: str, tmp_path: Path) -> None:
        with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
            warnings.simplefilter("ignore")
            for name in names:
                entry = zipfile.ZipInfo("x")
                entry.filename = name
                archive.writestr(entry, pickle.dumps({"w": 1}, protocol=2))
        with pytest.raises(ModelError, match=said):
            open_model(tmp_path / "m.pt")

    def test_encrypted_members(self, tmp_path: Path) -> None:
        zipped(b"N", tmp_path / "m.pt")
        content = bytearray((tmp_path / "m.pt").read_bytes())
        content[content.index(b"PK\x01\x02") + 8] |= 1
        (tmp_path / "m.pt").write_bytes(content)
        with pytest.raises(ModelError, match="encrypted"):
            open_model(tmp_path / "m.pt")


def tensor(size: bytes, stride: bytes, numel: bytes = b"K\x04") -> bytes:
    """A float tensor of one axis on a storage of `numel`, called "0"."""
    storage = b"((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + numel
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n" + storage + b"tQK\x00" + size + b"\x85"
        b"" + stride + b"\x85\x89ccollections\nOrderedDict\n)RtR"
    )


def too_large(folder: Path) -> None:
    """Files whose headers ask for far more than they hold."""
    huge = b"\x8a\x08" + struct.pack("<q", 1 << 60)
    weights = {"strides of 0": tensor(huge, b"K\x00"), "strides of 1": tensor(huge, b"K\x01")}
    weights["numel"] = tensor(b"K\x04", b"K\x01", huge)
    for name, instructions in weights.items():
        state = b"}" + text("0.weight") + instructions + b"s"
        zipped(state, folder / name)
        with zipfile.ZipFile(folder / name, "a") as archive:
            archive.writestr("m/data/0", bytes(16))
        legacy(state.replace(b"tQ", b"NtQ"), folder / f"{name}, legacy")
    deep = {"lists": b"](" * 50000 + b"e" * 50000, "tuples": b"N" + b"\x85" * 200_000}
    deep["keys"] = b"}N" + b"\x85" * 200_000 + b"Ns"
    deep["dicts"] = b"}" + (text("model") + b"}") * 50000 + b"s" * 50000
    deep["bytes"] = b"\x8e" + struct.pack("<Q", 1 << 40) + b"x"
    deep["long"] = b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b"x"
    deep["text"] = b"X" + struct.pack("<I", (1 << 32) - 1) + b"x"
    often = text("A" * 1_000_000) + b"q\x010"
    deep["names"] = often + b"h\x01h\x01\x930" * 200_000 + b"N"
    deep["bytearray"] = b"cbuiltins\nbytearray\n" + huge + b"\x85R"
    for name, instructions in deep.items():
        for container, write in CONTAINERS.items():
            write(instructions, folder / f"{name}, {container}")
    (folder / "safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b'{"a":1}')
    (folder / "safetensors 2").write_bytes(struct.pack("<Q", (1 << 32) - 1) + b'{"a":1}')
    for large in ("data/0", "code/a.py", "models/model.json"):
        path = folder / f"bomb {large.replace('/', ' ')}"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("m/data.pkl", b"\x80\x02}.")
            with archive.open(f"m/{large}", "w") as member:
                for _ in range(256):
                    member.write(bytes(1 << 20))


OPENS_ALL = """
import resource, sys, time
from pathlib import Path
from bnfold import Opening
from bnfold.errors import ModelError
from bnfold.formats.opening import open_model
import bnfold.formats.pytorch.state_dict, torch
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30),) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.name, flush=True)
    try:
        open_model(path, Opening(factory="torch.nn:Sequential"))
    except ModelError as error:
        assert len(str(error).splitlines()) == 1
    else:
        sys.exit("it was opened")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its own size from /proc")
def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    """With 2 GB to spare; the interpreter must live through all of them."""
    too_large(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OPENS_ALL, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, (ended.stdout[-80:], ended.stderr[-2000:])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("strides of 0", "0.weight would have 1152921504606846976 elements"),
        ("strides of 0, legacy", "0.weight would have 1152921504606846976 elements"),
        ("bomb data 0", "it would unpack to 0.3 GB"),
        ("keys, zip", "it nests 200002 levels deep"),
    ],
)
def test_what_is_said_of_sizes(name: str, said: str, tmp_path: Path) -> None:
    too_large(tmp_path)
    with pytest.raises(ModelError, match=re.escape(said)):
        open_model(tmp_path / name, Opening(factory="torch.nn:Sequential"))
