"""Inputs that the user recorded: .npy, .npz, images, or a folder of any of them.

.npy     the one input of the model
.npz     arrays by input name, or in the order of the inputs if they have no names of their own
image    BMP, GIF, JPEG, PNG, PPM, TIFF or WebP, whatever its name, for an input [N, C, H, W] or
         [N, H, W, C] of 1 or 3 channels: resized to the input's size, in 0..1 for floats and 0..255
         for integers
folder   each file in it is a case, in the order of their names

Nothing is unpickled: a file that would need it is refused.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.rounding import numpy_dtype
from bnfold.archive import most_memory
from bnfold.errors import EnvironmentLacksError, UsageError
from bnfold.files import special
from bnfold.runtimes import Sample, TensorSpec
from bnfold.runtimes.samples import check_sample
from bnfold.verification.cases import Case

_NPY, _ZIP = b"\x93NUMPY", b"PK"
MOST_PIXELS = 1 << 26
"""Of an image: 8192 by 8192."""

ARRAYS = (".npy", ".npz")
IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

_READ = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may take an image for: it reads others, such as PostScript, by running a program."""


def recorded(paths: Sequence[Path], specs: Sequence[TensorSpec]) -> Iterator[Case]:
    """A case for each file; `specs` are the inputs, in order, as far as they are known.

    Raises UsageError for what cannot be read or does not suit the inputs.
    """
    for path in (file for given in paths for file in _files(given)):
        try:
            sample = _sample(path, specs)
            check_sample([_known(spec) for spec in specs], sample)
        except UsageError as error:
            raise UsageError(f"{path}: {error}", error.hint) from error
        yield Case(path.name, sample, given=True)


def _known(spec: TensorSpec) -> TensorSpec:
    """A module tells the name of an input; what type it has is then not known either."""
    return spec if spec.shape is not None else replace(spec, dtype="object")


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    known = (*ARRAYS, *IMAGES)
    found = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in known)
    if not found:
        raise UsageError(f"{path} has no inputs in it", f"put {', '.join(known)} files there")
    return found


def _sample(path: Path, specs: Sequence[TensorSpec]) -> Sample:
    if kind := special(path):
        raise UsageError(f"it is {kind}, not a file", "write the inputs to a file, and name that")
    suffix = path.suffix.lower()
    if suffix in IMAGES:
        (spec,) = _single(specs, "an image")
        return {spec.name: _image(path, spec)}
    loaded = _loaded(path)
    if isinstance(loaded, Mapping):
        return _named(loaded, specs)
    (spec,) = _single(specs, "one array")
    return {spec.name: loaded}


def _single(specs: Sequence[TensorSpec], what: str) -> Sequence[TensorSpec]:
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise UsageError(
            f"it is {what}, the model takes {len(specs)}: {names}",
            "save them by name with numpy.savez",
        )
    return specs


def _loaded(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:
            if not file.read(len(_NPY)).startswith((_NPY, _ZIP)):
                raise ValueError("neither .npy nor .npz")
        if (size := _unpacked(path)) > most_memory(path):
            why = f"it would unpack to {size / 1e9:.1f} GB, more than its own size explains"
            raise UsageError(why, "save it with numpy.savez, which does not compress")
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            arrays = {name: found[name] for name in found.files}
            if strange := [name for name, each in arrays.items() if isinstance(each, bytes)]:
                raise ValueError(f"{strange[0]} is no array")
            return arrays
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror or error}") from error
    except UsageError:
        raise
    except Exception as error:  # numpy parses the text of headers, and raises what its parts do
        if "pickle" in str(error).lower():
            why = "it holds pickled objects, which bnfold never loads"
        else:
            why = "it is no array that numpy can read"
        raise UsageError(why, "save it with numpy.save or numpy.savez as plain arrays") from error


def _unpacked(path: Path) -> int:
    """The bytes that an archive says its members take; 0 for a plain array."""
    if not zipfile.is_zipfile(path):
        return 0
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _named(arrays: Mapping[str, Any], specs: Sequence[TensorSpec]) -> Sample:
    """The arrays by the names of the inputs, or in order if none has a name of its own."""
    if all(name == f"arr_{i}" for i, name in enumerate(arrays)) and len(arrays) == len(specs):
        return {spec.name: array for spec, array in zip(specs, arrays.values(), strict=True)}
    wanted = [spec.name for spec in specs]
    if unknown := [name for name in arrays if name not in wanted]:
        raise UsageError(
            f"it has {unknown[0]!r}, which is no input of the model",
            f"the inputs are {', '.join(map(str, specs))}",
        )
    if missing := [name for name in wanted if name not in arrays]:
        raise UsageError(f"it lacks the input {missing[0]!r}", f"it has {', '.join(arrays)}")
    return {name: arrays[name] for name in wanted}


def _image(path: Path, spec: TensorSpec) -> NDArray[Any]:
    """The image as `spec` wants it: [N, C, H, W] or [N, H, W, C]."""
    try:
        from PIL import Image
    except ImportError as error:
        raise EnvironmentLacksError(
            f"{path} needs Pillow, which is not installed", "pip install pillow"
        ) from error
    shape = spec.shape or ()
    axis = next((a for a in (1, 3) if len(shape) == 4 and shape[a] in (1, 3)), None)
    if axis is None:
        raise UsageError(
            f"it is an image, which does not suit the input {spec}",
            "an image goes to an input of 4 dimensions with 1 or 3 channels; use .npy",
        )
    height, width = (size for a, size in enumerate(shape) if a not in (0, axis))
    Image.init()
    formats = [name for name in _READ if name in Image.OPEN]
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=formats) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                why = f"it is an image of {opened.width}x{opened.height} pixels"
                raise UsageError(why, f"make it smaller: at most {MOST_PIXELS:,} are read")
            picture = opened.convert("RGB" if shape[axis] == 3 else "L")
    except Image.DecompressionBombError as error:
        raise UsageError(f"it is too large an image: {error}", "make it smaller") from error
    except (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, MemoryError) as error:
        raise UsageError("it is no image that Pillow can read") from error
    wanted = (
        width if isinstance(width, int) else picture.width,
        height if isinstance(height, int) else picture.height,
    )
    pixels = np.asarray(picture.resize(wanted)).reshape(*wanted[::-1], -1)
    if axis == 1:
        pixels = np.moveaxis(pixels, -1, 0)
    dtype = numpy_dtype(spec.dtype)
    values = pixels.astype(dtype) if dtype.kind in "iu" else (pixels / 255).astype(dtype)
    batch = shape[0] if isinstance(shape[0], int) else 1
    return np.ascontiguousarray(np.broadcast_to(values, (batch, *values.shape)))
