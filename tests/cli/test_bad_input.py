"""What a person gets wrong: one sentence that says what was found, a hint, the right exit code,
and nothing written."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from bnfold.runtimes.ort import available_providers
from tests.conftest import CHECKPOINTS, Ended

Run = Callable[..., Ended]
PLACEMENT = ("--allow", "models.placement.Placement", "--input", "1x3x32x32")


DAMAGED = {
    "placement.onnx": (),
    "placement.torchscript.pt": ("--input", "1x3x32x32"),
    "placement.pt": PLACEMENT,
    "placement.state_dict.pt": ("--model", "models.placement:Placement", *PLACEMENT[2:]),
}
"""Files to damage, with the options that open them whole."""


def written(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def assert_one_sentence(ended: Ended, code: int, *words: str) -> None:
    assert ended.code == code, ended
    assert ended.out == ""
    first, *rest = ended.err.strip().splitlines()
    assert first.startswith("error: ")
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err
    assert all(line.startswith("hint: ") for line in rest)


def test_missing_file(bnfold: Run, tmp_path: Path) -> None:
    assert_one_sentence(bnfold("fold", tmp_path / "no.onnx"), 3, "no.onnx does not exist")
    assert written(tmp_path) == []


@pytest.mark.parametrize("command", ["fold", "inspect", "export"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello, this is a note\n", "is a text file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04" + b"\x00" * 64, "zip"),
        (b"\x00\xff" * 64, "in no format that bnfold knows"),
    ],
)
def test_a_file_that_is_no_model(
    bnfold: Run, tmp_path: Path, command: str, content: bytes, said: str
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert_one_sentence(bnfold(command, path), 3, str(path), said)
    assert written(tmp_path) == ["model.pt"]


@pytest.mark.parametrize(
    "name",
    ["placement.pt", "placement.torchscript.pt", "placement.onnx", "placement.state_dict.pt"],
)
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated_file(bnfold: Run, tmp_path: Path, name: str, keep: float) -> None:
    whole = (CHECKPOINTS / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * keep)])
    ended = bnfold("fold", path, *PLACEMENT)
    assert_one_sentence(ended, 3, name)
    assert written(tmp_path) == [name]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("name", "flags"), DAMAGED.items(), ids=DAMAGED)
def test_flipped_bits_end_in_a_verdict_or_one_sentence(
    bnfold: Run, tmp_path: Path, name: str, flags: tuple[str, ...], seed: int
) -> None:
    """Damage to the weights leaves another, valid model; any other must be refused."""
    choose = random.Random(seed)
    content = bytearray((CHECKPOINTS / name).read_bytes())
    for _ in range(choose.choice([1, 4, 30])):
        end = choose.choice([len(content), 2000])
        content[choose.randrange(end)] ^= 1 << choose.randrange(8)
    path = tmp_path / name
    path.write_bytes(bytes(content))
    ended = bnfold("fold", path, *flags, "-o", tmp_path / "out")
    assert ended.code in (0, 1, 2, 3), ended
    assert "Traceback" not in ended.err
    assert written(tmp_path) == ([name] if ended.code else sorted([name, "out"]))


def test_weights_without_a_factory(bnfold: Run, tmp_path: Path) -> None:
    ended = bnfold("fold", CHECKPOINTS / "placement.state_dict.pt", "-o", tmp_path / "o.pt")
    assert_one_sentence(ended, 2, "holds weights only", "--model")
    assert written(tmp_path) == []


@pytest.mark.parametrize(
    ("factory", "code", "said"),
    [
        ("models.nowhere:Net", 2, "cannot import models.nowhere"),
        ("models.placement:Nothing", 2, "has no Nothing"),
        ("models.placement", 2, "models has no placement"),
        ("plain", 2, "does not name anything"),
        ("models.mnist_net:MNISTNet", 3, "does not fit"),
        ("collections:OrderedDict", 2, "not an nn.Module"),
    ],
)
def test_a_factory_that_does_not_exist_or_fit(
    bnfold: Run, tmp_path: Path, factory: str, code: int, said: str
) -> None:
    weights = CHECKPOINTS / "placement.state_dict.pt"
    ended = bnfold("fold", weights, "--model", factory, "-o", tmp_path / "o.pt")
    if factory == "models.placement":
        assert ended.code == 2
    else:
        assert_one_sentence(ended, code, said)
    assert written(tmp_path) == []


@pytest.mark.parametrize("arguments", ["{", '"text"', '{"nonsense": 1}', "[1, 2, 3, 4]"])
def test_model_args_that_do_not_fit(bnfold: Run, tmp_path: Path, arguments: str) -> None:
    weights = CHECKPOINTS / "placement.state_dict.pt"
    ended = bnfold(
        "fold",
        *(weights, "--model", "models.placement:Placement"),
        *("--model-args", arguments, "-o", tmp_path / "o.pt"),
    )
    assert_one_sentence(ended, 2, "--model-args")
    assert written(tmp_path) == []


def test_a_pickled_class_that_nobody_allowed(bnfold: Run, tmp_path: Path) -> None:
    ended = bnfold("fold", CHECKPOINTS / "placement.pt", "-o", tmp_path / "o.pt")
    assert_one_sentence(ended, 3, "--allow models.placement.Placement")
    assert written(tmp_path) == []


def test_no_input_shape_proposes_one_that_runs(bnfold: Run, tmp_path: Path) -> None:
    ended = bnfold("fold", CHECKPOINTS / "placement.pt", *PLACEMENT[:2], "-o", tmp_path / "o.pt")
    assert_one_sentence(ended, 2, "--input 1x3x32x32")
    ended = bnfold("fold", CHECKPOINTS / "placement.torchscript.pt", "-o", tmp_path / "o.pt")
    assert_one_sentence(ended, 2, "--input 1x3x32x32")
    assert written(tmp_path) == []


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("1x4x32x32", "1x4x32x32"),
        ("1x3x12x12", "1x3x12x12"),
        ("3x32x32", "3x32x32"),
        ("1x3x32x0", "size of 0"),
        ("one", "does not"),
        ("1x3x32x32:float99", "no type"),
        ("wrong=1x3x32x32", "wrong"),
        ("1;3", "no input shape"),
    ],
)
@pytest.mark.parametrize("name", ["placement.pt", "placement.torchscript.pt", "placement.onnx"])
def test_wrong_input_shape(bnfold: Run, tmp_path: Path, name: str, shape: str, said: str) -> None:
    ended = bnfold(
        "fold", CHECKPOINTS / name, *PLACEMENT[:2], "--input", shape, "-o", tmp_path / "o"
    )
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err
    assert ended.out == ""
    if name == "placement.pt":
        assert said in ended.err
    assert written(tmp_path) == []


def _with_statistics(number: float) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    norm.running_var[2] = number
    return net.eval()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("form", ["module", "torchscript", "onnx"])
def test_broken_statistics_name_the_channel(
    bnfold: Run, tmp_path: Path, number: float, form: str
) -> None:
    net = _with_statistics(number)
    path = tmp_path / "net"
    if form == "module":
        torch.save(net, path)
    elif form == "torchscript":
        torch.jit.script(net).save(str(path))
    else:
        program = torch.onnx.export(
            net, (torch.zeros(1, 3, 8, 8),), dynamo=True, optimize=False, verbose=False
        )
        assert program is not None
        program.save(str(path), external_data=False)
    ended = bnfold("fold", path, "--input", "1x3x8x8")
    assert_one_sentence(ended, 3, "channel 2")
    assert written(tmp_path) == ["net"]


def test_a_model_in_train_mode_is_put_into_eval_and_said(bnfold: Run, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(), nn.ReLU()).train()
    torch.save(net, tmp_path / "net.pt")
    ended = bnfold("fold", tmp_path / "net.pt", "--input", "2x3x9x9")
    assert ended.code == 0, ended
    assert "train mode" in ended.out
    assert not torch.load(tmp_path / "net.folded.pt", weights_only=False).training


@pytest.mark.parametrize(
    ("output", "said"),
    [("", "is a folder"), ("file/o.onnx", "is no folder"), ("file/new/o.onnx", "is no folder")],
)
def test_an_output_that_cannot_be_written(
    bnfold: Run, tmp_path: Path, output: str, said: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    ended = bnfold("fold", CHECKPOINTS / "placement.onnx", "-o", tmp_path / output)
    assert_one_sentence(ended, 2, said)
    assert written(tmp_path) == ["file"]


def test_an_output_in_a_folder_that_is_not_there_yet(bnfold: Run, tmp_path: Path) -> None:
    place = tmp_path / "new" / "folder" / "o.onnx"
    assert bnfold("fold", CHECKPOINTS / "placement.onnx", "-o", place).code == 0
    assert place.is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(bnfold: Run, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    ended = bnfold("fold", CHECKPOINTS / "placement.onnx", "-o", tmp_path / "o.onnx")
    assert_one_sentence(ended, 2, "not writable")


def test_the_input_is_not_replaced_unless_asked(bnfold: Run, tmp_path: Path) -> None:
    path = tmp_path / "p.onnx"
    shutil.copy(CHECKPOINTS / "placement.onnx", path)
    before = path.read_bytes()
    assert_one_sentence(bnfold("fold", path, "-o", path), 2, "--overwrite")
    assert path.read_bytes() == before
    assert bnfold("fold", path, "-o", path, "--overwrite").code == 0
    assert path.read_bytes() != before
    assert written(tmp_path) == ["p.onnx"]


def test_a_provider_that_is_not_there(bnfold: Run, tmp_path: Path) -> None:
    flags = ("-o", tmp_path / "o", "--providers")
    assert_one_sentence(bnfold("fold", CHECKPOINTS / "placement.onnx", *flags, "tpu"), 2, "tpu")
    if available_providers()["cuda"] is not None:
        ended = bnfold("fold", CHECKPOINTS / "placement.onnx", *flags, "cpu,cuda")
        assert_one_sentence(ended, 4, "CUDAExecutionProvider")
    assert written(tmp_path) == []


def test_usage_errors_of_the_parser(bnfold: Run) -> None:
    assert bnfold("fold").code == 2
    assert bnfold("fold", "x.onnx", "--nonsense").code == 2
    assert bnfold("nonsense").code == 2
    assert bnfold("--help").code == 0
    assert bnfold("export", CHECKPOINTS / "placement.onnx", "--to", "tflite").code == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--policy", "fixed"), "the policy fixed has no tolerance"),
        (("--rtol", "1e-3"), "rtol and atol are for the policy fixed, not for floor"),
        (("--policy", "assert-close", "--atol", "1"), "are for the policy fixed"),
        (("--policy", "fixed", "--rtol", "y:little"), "--rtol y:little: 'little' is no number"),
        (("--policy", "fixed", "--rtol", "nan"), "nan is no tolerance"),
        (("--policy", "fixed", "--atol", "-1"), "-1.0 is no tolerance"),
        (("--policy", "assert-close", "--k", "3"), "--k is for the policy floor"),
        (
            ("--policy", "fixed", "--atol", "nothing:1"),
            "a tolerance for 'nothing', which is no out",
        ),
    ],
)
def test_a_policy_and_its_tolerances(bnfold: Run, options: tuple[str, ...], said: str) -> None:
    model = CHECKPOINTS / "placement.onnx"
    assert_one_sentence(bnfold("verify", model, model, *options), 2, said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--shape", "N"), "--shape N: it names no sizes"),
        (("--shape", "N=1,two"), "--shape N=1,two: it names no sizes"),
        (("--shape", "N=0"), "0 is no size"),
        (("--shape", "N=1", "--shape", "N=2"), "N is given twice"),
        (("--shape", "depth=1"), "'depth' is no free size of the model"),
        (("--shape", "N=" + ",".join(map(str, range(1, 99)))), "more than 64 combinations"),
        (("--inputs", "README.md"), "README.md: it is no array that numpy can read"),
        (("--inputs", "docs"), "docs has no inputs in it"),
    ],
)
def test_cases_that_cannot_be(bnfold: Run, options: tuple[str, ...], said: str) -> None:
    model = CHECKPOINTS / "placement.onnx"
    assert_one_sentence(bnfold("verify", model, model, *options), 2, said)


def test_a_self_test_that_sees_nothing_is_exit_1_and_says_what(bnfold: Run) -> None:
    model = CHECKPOINTS / "placement.onnx"
    blind = bnfold("verify", model, model, "--self-test", "--policy", "fixed", "--atol", "1e3")
    assert blind.code == 1
    assert "the gate does not see that the weight" in blind.out
    seeing = bnfold("verify", model, model, "--self-test")
    assert seeing.code == 0
    assert seeing.out.count("the gate sees that the") == 3


def test_what_fails_is_kept(bnfold: Run, tmp_path: Path) -> None:
    model, other = CHECKPOINTS / "placement.onnx", tmp_path / "wrong.onnx"
    proto = onnx.load(model)
    tensor = next(tensor for tensor in proto.graph.initializer if len(tensor.dims) > 1)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] += 1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, other)
    ended = bnfold("verify", model, other, "--save-failing", tmp_path / "kept")
    assert ended.code == 1
    assert "what fails is kept in" in ended.out
    assert written(tmp_path / "kept") == ["failing.npz", "failing.onnx"]
    assert bnfold("verify", model, model, "--save-failing", tmp_path / "none").code == 0
    assert written(tmp_path / "none") == []
    (tmp_path / "file").touch()
    assert_one_sentence(
        bnfold("verify", model, model, "--save-failing", tmp_path / "file" / "x"),
        2,
        "cannot be a folder",
    )


@pytest.mark.parametrize("command", ["fold", "golden", "export"])
def test_no_name_at_all(bnfold: Run, command: str) -> None:
    assert_one_sentence(bnfold(command, ""), 3, "is a folder")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("fold", "-o", "out.json", "--report", "out.json"), "is the result itself"),
        (("fold", "--providers", ""), "no provider is named"),
        (("export", "--ir-version", "3"), "every weight is an input"),
        (("export", "--dynamic", "H"), "on axis 2 is 32 in the onnx model"),
    ],
    ids=["report", "providers", "version", "dynamic"],
)
def test_options_that_cannot_be_met(
    bnfold: Run, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    shutil.copy(CHECKPOINTS / "placement.onnx", tmp_path / "m.onnx")
    command, *rest = options
    rest = [str(tmp_path / text) if text == "out.json" else text for text in rest]
    ended = bnfold(command, tmp_path / "m.onnx", *rest)
    assert_one_sentence(ended, 2, said, "hint: ")
    assert set(written(tmp_path)) <= {"m.onnx", "out.json"}
