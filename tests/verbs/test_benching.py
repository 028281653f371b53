"""`bench`: models in turn in processes of their own. Figures are checked for sense, not for size:
nothing here depends on how fast the machine is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import bnfold
from bnfold.environment import Machine
from bnfold.errors import BnfoldError, ModelError, UsageError
from bnfold.formats.model import Format
from bnfold.formats.opening import Opening
from bnfold.isolation.timed import Job, TimedProcess
from bnfold.verbs.benching import BenchResult, Measurement, Subject, Timing
from bnfold.verbs.rounds import Spread
from tests.conftest import CHECKPOINTS

ONNX = CHECKPOINTS / "placement.onnx"
SCRIPT = CHECKPOINTS / "placement.torchscript.pt"
SHORT = Timing(rounds=2, warmup=1, threads=1)


def gemm(path: Path, hidden: int = 8, batch: int | str = "N", inputs: int = 3) -> Path:
    """x [batch, inputs] times a constant [inputs, hidden]."""
    weight = np.random.default_rng(0).normal(size=(inputs, hidden)).astype(np.float32)
    sizes = {"x": (batch, inputs), "y": (batch, hidden)}
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in sizes.items()
    )
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "g",
        [x],
        [y],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


def test_formats_side_by_side() -> None:
    """The names of their inputs differ; the shape comes from the one that tells it."""
    timing = Timing(rounds=2, warmup=1, threads=1, batches=(4, 2), providers=("cpu",))
    result = bnfold.bench([SCRIPT, ONNX], timing=timing)
    assert [s.name for s in result.subjects] == [SCRIPT.name, ONNX.name]
    assert [(m.model, m.batch) for m in result.measurements] == [
        (SCRIPT.name, 2),
        (ONNX.name, 2),
        (SCRIPT.name, 4),
        (ONNX.name, 4),
    ]
    assert all(len(m.seconds) == 2 and min(m.seconds) > 0 for m in result.measurements)
    assert all(m.load_seconds > 0 and m.peak_memory for m in result.measurements)
    assert [s.stored for s in result.subjects] == [p.stat().st_size for p in (SCRIPT, ONNX)]
    kinds = [dict(s.ops or {}) for s in result.subjects]
    assert [k["BatchNorm"] for k in kinds] == [4, 4]
    assert [(c.model, c.baseline, c.batch) for c in result.comparisons] == [
        (ONNX.name, SCRIPT.name, 2),
        (ONNX.name, SCRIPT.name, 4),
    ]


def test_folded_measures_before_and_after_and_keeps_nothing(tmp_path: Path) -> None:
    source = tmp_path / "net.onnx"
    source.write_bytes(ONNX.read_bytes())
    result = bnfold.bench([source], folded=True, timing=SHORT)
    assert [s.name for s in result.subjects] == ["net.onnx", "folded"]
    before, after = (dict(s.ops or {}) for s in result.subjects)
    assert before["BatchNorm"] == 4
    assert "BatchNorm" not in after
    assert result.folded is not None
    assert result.folded.passed
    assert result.to_json()["fold"]["verdict"] == "pass"
    assert list(tmp_path.iterdir()) == [source]


def test_the_size_counts_external_weights(tmp_path: Path) -> None:
    path = gemm(tmp_path / "net.onnx", hidden=2048)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
    (subject,) = bnfold.bench([path], timing=SHORT).subjects
    assert subject.stored == sum(f.stat().st_size for f in tmp_path.iterdir())
    assert subject.stored > 4 * 3 * 2048


def test_memory_is_the_models_own(tmp_path: Path) -> None:
    """64 MB of weights are seen in the model that has them, whichever comes first."""
    small, large = gemm(tmp_path / "small.onnx"), gemm(tmp_path / "large.onnx", hidden=1 << 22)
    for order in ((small, large), (large, small)):
        result = bnfold.bench(order, timing=Timing(rounds=1, warmup=0, threads=1))
        peaks = {m.model: m.peak_memory or 0 for m in result.measurements}
        assert peaks["large.onnx"] - peaks["small.onnx"] > 48e6


def test_a_free_batch_is_filled_wherever_its_name_stands(tmp_path: Path) -> None:
    result = bnfold.bench([gemm(tmp_path / "net.onnx")], timing=SHORT)
    assert [m.batch for m in result.measurements] == [1]
    fixed = bnfold.bench([gemm(tmp_path / "fixed.onnx", batch=5)], timing=SHORT)
    assert [m.batch for m in fixed.measurements] == [5]


def test_the_same_file_twice_has_two_names(tmp_path: Path) -> None:
    path = gemm(tmp_path / "net.onnx")
    result = bnfold.bench([path, path], timing=SHORT)
    assert [s.name for s in result.subjects] == ["net.onnx", "net.onnx (2)"]
    (tmp_path / "other").mkdir()
    other = gemm(tmp_path / "other" / "net.onnx")
    result = bnfold.bench([path, other], timing=SHORT)
    assert [s.name for s in result.subjects] == [str(path), str(other)]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"inputs": 4}, "takes x=Nx4"),
        ({"batch": 5}, "the batch of x=5x3"),
    ],
)
def test_models_with_other_inputs_are_not_compared(
    tmp_path: Path, changed: dict[str, int], said: str
) -> None:
    one, other = gemm(tmp_path / "one.onnx"), gemm(tmp_path / "other.onnx", **changed)
    timing = Timing(rounds=1, warmup=0, threads=1, batches=(2,))
    paths = [other, one] if "batch" in changed else [one, other]
    with pytest.raises(UsageError, match=said):
        bnfold.bench(paths, timing=timing)


def test_a_model_that_does_not_run_says_so() -> None:
    with pytest.raises(ModelError, match=r"placement\.torchscript\.pt does not run.*3 channels"):
        bnfold.bench([SCRIPT], "Nx4x32x32", timing=SHORT)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"threads": 0}, {"batches": (0,)}])
def test_counts_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="0 is less than 1"):
        Timing(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="-1 is less than 0"):
        Timing(warmup=-1)


class Dies(nn.Module):
    """Ends its process when it runs for the second time, as a crash of a runtime does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if getattr(self, "ran", False):
            os._exit(3)
        self.ran = True
        return x


def test_a_process_that_dies_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "dies.pt"
    torch.save(Dies().eval(), path)
    job = Job(path, Format.MODULE, Opening(trust=True), "cpu", 1)
    with TimedProcess(job) as process:
        process.bind({"x": np.zeros((1, 2), np.float32)})
        with pytest.raises(BnfoldError, match="ended with exit code 3"):
            process.run(1)


def test_the_child_ends_with_its_parents_interest() -> None:
    with TimedProcess(Job(ONNX, Format.ONNX, Opening(), "cpu", 1)) as process:
        child = process._process._child
        assert child.poll() is None
    assert child.poll() is not None


def test_comparisons_stay_within_a_place() -> None:
    """Every pair, of one provider and one batch."""
    places = [("cpu", 1), ("cpu", 8), ("cuda", 1)]
    measured = tuple(
        Measurement(name, provider, batch, (seconds,) * 3, 0.1, None)
        for provider, batch in places
        for name, seconds in (("a", 4.0), ("b", 2.0), ("c", 1.0))
    )
    subjects = tuple(Subject(name, "onnx", 1, None) for name in "abc")
    machine = Machine("a processor", 2, "a system", {})
    result = BenchResult(subjects, measured, SHORT, machine, ())
    found = {(c.baseline, c.model): c.speedup.median for c in result.comparisons}
    assert found == {("a", "b"): 2.0, ("a", "c"): 4.0, ("b", "c"): 2.0}
    assert len(result.comparisons) == 3 * len(places)
    assert result.measurements[0].latency == Spread(4.0, 4.0, 4.0)
    assert "memory" in bnfold.render(result)
    assert str(result).splitlines()[0] == "a on cpu: 4 s a run"


class Swells(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones([1 << 28]).sum()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory alone")
def test_a_model_takes_no_more_memory_than_it_explains(tmp_path: Path) -> None:
    path = tmp_path / "swells.pt"
    torch.jit.script(Swells()).save(str(path))
    sample = {"x": np.zeros((1, 2), np.float32)}
    for stored, runs in ((0, False), (1 << 22, True)):
        with TimedProcess(Job(path, Format.TORCHSCRIPT, Opening(), "cpu", 1, stored)) as process:
            if runs:
                process.bind(sample)
                continue
            with pytest.raises(BnfoldError, match="memory"):
                process.bind(sample)
