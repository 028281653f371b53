"""What the plain library computes of an original and of what it was folded to; runs in a fork.

Both get the same inputs. A difference counts where it is more than `FACTOR` times what the original
itself changes by when its inputs are one rounding away, and more than `RELATIVE` of its largest
value: a model that a mistake made ill-conditioned is not wrong when it is folded.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.fuzz.seeds import SHAPE, layers

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], list[Array]]

FACTOR = 100.0
RELATIVE = 1e-4
LARGEST = 1 << 22
FREE = 2


def compare(original: str, folded: str, kind: str, seed: int) -> str:
    """As JSON: `same`, `differs` with the numbers, or `untold` with the reason."""
    warnings.simplefilter("ignore")
    try:
        before, sample = OPENERS[kind](Path(original), seed)
    except Exception as error:  # the plain library refuses what bnfold read
        return json.dumps({"untold": f"the original: {_first(error)}"})
    try:
        outputs = before(sample)
    except Exception as error:
        return json.dumps({"untold": f"the original does not run: {_first(error)}"})
    try:
        after, _ = OPENERS[kind](Path(folded), seed)
        found = after(sample)
    except Exception as error:
        return json.dumps({"differs": f"what was folded does not run: {_first(error)}"})
    near = [before(nudged(sample, number)) for number in range(2)]
    return json.dumps(judged(outputs, found, near))


def judged(before: list[Array], after: list[Array], near: list[list[Array]]) -> dict[str, str]:
    if len(before) != len(after):
        return {"differs": f"{len(after)} outputs, not {len(before)}"}
    for number, (was, now) in enumerate(zip(before, after, strict=True)):
        if was.shape != now.shape or was.dtype != now.dtype:
            return {"differs": f"output {number}: {now.shape} {now.dtype} for {was.shape}"}
        if was.dtype.kind not in "fc":
            if any(not np.array_equal(was, other[number]) for other in near):
                return {"untold": f"output {number} is decided by rounding"}
            if not np.array_equal(was, now):
                return {"differs": f"output {number}: other {was.dtype}"}
            continue
        finite = np.isfinite(was)
        if not finite.all():
            return {"untold": f"output {number} of the original is not finite"}
        error = np.abs(now.astype(np.float64) - was.astype(np.float64)).max(initial=0)
        scale = np.abs(was.astype(np.float64)).max(initial=0)
        moved = max(
            np.abs(other[number].astype(np.float64) - was.astype(np.float64)).max(initial=0)
            for other in near
        )
        if not error <= max(FACTOR * moved, RELATIVE * scale):
            why = f"off by {error:.3g} of {scale:.3g}; one rounding moves it by {moved:.3g}"
            return {"differs": f"output {number}: {why}"}
    return {"same": f"{len(before)} outputs"}


def nudged(sample: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """Every number one rounding away."""
    rng = np.random.default_rng(seed)
    return {
        name: np.nextafter(a, a + rng.choice([-1, 1], a.shape).astype(a.dtype))
        if a.dtype.kind == "f"
        else a
        for name, a in sample.items()
    }


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _onnx(path: Path, seed: int) -> tuple[Run, dict[str, Array]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    sample = {}
    for given in session.get_inputs():
        sizes = [size if isinstance(size, int) else FREE for size in given.shape]
        if math.prod(sizes) > LARGEST:
            raise ValueError("an input is too large")
        kind = given.type.removeprefix("tensor(").removesuffix(")")
        dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
        sample[given.name] = (2 * rng.normal(size=sizes)).astype(dtype)
    return lambda arrays: [np.asarray(a) for a in session.run(None, dict(arrays))], sample


def _torch(module: Callable[[Any], Any], seed: int) -> tuple[Run, dict[str, Array]]:
    import torch

    def run(arrays: Mapping[str, Array]) -> list[Array]:
        with torch.no_grad():
            found = module(torch.from_numpy(arrays["x"]))
        given = found if isinstance(found, tuple | list) else [found]
        return [each.numpy() for each in given]

    rng = np.random.default_rng(seed)
    return run, {"x": (2 * rng.normal(size=SHAPE)).astype(np.float32)}


def _module(path: Path, seed: int) -> tuple[Run, dict[str, Array]]:
    import torch

    return _torch(torch.load(path, weights_only=False).eval(), seed)


def _torchscript(path: Path, seed: int) -> tuple[Run, dict[str, Array]]:
    import torch

    return _torch(torch.jit.load(str(path)).eval(), seed)  # type: ignore[no-untyped-call]


def _program(path: Path, seed: int) -> tuple[Run, dict[str, Array]]:
    import torch

    return _torch(torch.export.load(str(path)).module(), seed)


def _weights(path: Path, seed: int) -> tuple[Run, dict[str, Array]]:
    """The original by torch alone; a folded file, of which only bnfold knows the network, by it."""
    import torch

    from bnfold import Opening
    from bnfold.formats.opening import open_model

    if "folded" in path.name:
        opening = Opening("benchmarks.fuzz.seeds:layers", [seed])
        return _torch(open_model(path, opening).native, seed)
    net = layers(seed)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        net.load_state_dict(load_file(path))
    else:
        net.load_state_dict(torch.load(path, weights_only=False))
    return _torch(net, seed)


OPENERS: dict[str, Callable[[Path, int], tuple[Run, dict[str, Array]]]] = {
    "onnx": _onnx,
    "module": _module,
    "older module": _module,
    "weights": _weights,
    "safetensors": _weights,
    "torchscript": _torchscript,
    "program": _program,
}
"""Of the formats that are folded."""
