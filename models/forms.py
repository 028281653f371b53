"""The forms in which people keep a network, and the trained weights in `models/checkpoints`.

Every network is committed as a state dict, from which `load_trained` rebuilds it without running
pickled code. Other forms are committed where they are small, so that each occurs: `mnist_net`
(1.2 million parameters) and the `convolutional` family are state dicts alone.
`python -m models.train --from-checkpoints --all-forms --out DIR` writes all the rest.
"""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from models import NETWORKS, Network

Form = Literal["state_dict", "module", "torchscript", "onnx"]
"""State dict, pickled module, TorchScript archive and ONNX file."""

FORMS: tuple[Form, ...] = get_args(Form)
CHECKPOINTS = Path(__file__).parent / "checkpoints"

_SUFFIXES: dict[Form, str] = {
    "state_dict": ".state_dict.pt",
    "module": ".pt",
    "torchscript": ".torchscript.pt",
    "onnx": ".onnx",
}
_COMMITTED: dict[str, tuple[Form, ...]] = {
    "placement": FORMS,
    "cnn_with_batchnorm": ("state_dict", "torchscript"),
    "batch_norm_network": FORMS,
}
_OPSET = 18
_WRITER_RECORDS = frozenset({"version", "byteorder", ".data/serialization_id"})
"""Records of an archive that the writer adds by itself."""


def committed_forms(name: str) -> tuple[Form, ...]:
    """Return the forms in which the network called `name` lies in `CHECKPOINTS`."""
    return _COMMITTED.get(name, ("state_dict",))


def checkpoint_path(folder: Path, name: str, form: Form) -> Path:
    """Return where `folder` holds the network called `name` in `form`."""
    return folder / f"{name}{_SUFFIXES[form]}"


def load_trained(name: str) -> nn.Module:
    """Build the network called `name` with its committed weights, in evaluation mode."""
    model = NETWORKS[name].factory()
    path = checkpoint_path(CHECKPOINTS, name, "state_dict")
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def save_forms(
    model: nn.Module, network: Network, folder: Path, forms: Iterable[Form] = FORMS
) -> list[Path]:
    """Write `model`, switched to evaluation mode, to `folder` in each of `forms`."""
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for form in forms:
        path = checkpoint_path(folder, network.name, form)
        match form:
            case "state_dict":
                torch.save(model.state_dict(), path)
            case "module":
                torch.save(model, path)
            case "torchscript":
                _save_torchscript(model, path)
            case "onnx":
                _save_onnx(model, network, path)
        paths.append(path)
    return paths


def _save_torchscript(model: nn.Module, path: Path) -> None:
    """Compile and save without the debug records, which hold the paths of this machine."""
    archive = io.BytesIO()
    torch.jit.save(torch.jit.script(model), archive)
    archive.seek(0)
    reader = torch._C.PyTorchFileReader(archive)
    writer = torch._C.PyTorchFileWriter(str(path))
    for record in reader.get_all_records():
        if not record.endswith(".debug_pkl") and record not in _WRITER_RECORDS:
            content = reader.get_record(record)
            writer.write_record(record, content, len(content))
    writer.write_end_of_file()


def _save_onnx(model: nn.Module, network: Network, path: Path) -> None:
    """Export with the BatchNorms kept as nodes and a batch axis of any length.

    The metadata of the nodes is dropped: it holds stack traces, and with them paths.
    """
    program = torch.onnx.export(
        model,
        (torch.zeros(2, *network.input_shape),),
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=_OPSET,
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()
    program.save(str(path), external_data=False)
