"""Pipeline files: names that are paths, files that are none, settings of other kinds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.hostile.case import HARMLESS, REFUSED, Corpus
from tests.hostile.payload import EXPRESSION

CORPUS = Corpus("pipeline", ("build pipeline",))


def text(
    content: str | bytes, prepare: Callable[[Path], object] = lambda folder: None
) -> Callable[[Path], Path]:
    """A pipeline file beside a good model; GOOD and OUT stand for paths."""

    def make(folder: Path) -> Path:
        from tests.hostile.meeting import good

        good(folder / "good.onnx")
        prepare(folder)
        raw = content.encode() if isinstance(content, str) else content
        raw = raw.replace(b"GOOD", b'"good.onnx"').replace(b"OUT", b'"../out"')
        (folder / "bnfold.toml").write_bytes(raw)
        return folder / "bnfold.toml"

    return make


def model(settings: str, name: str = "m") -> Callable[[Path], Path]:
    return text(f"[models.{name}]\nsource = GOOD\noutput = OUT\n{settings}\n")


def sourced(
    source: str, prepare: Callable[[Path], object] = lambda folder: None
) -> Callable[[Path], Path]:
    return text(f'[models.m]\nsource = "{source}"\noutput = OUT\n', prepare)


FILES: dict[str, tuple[Callable[[Path], Path], tuple[int, ...]]] = {
    "a name that is a path": (model("", '"../../mark"'), REFUSED),
    "a name with a terminal's commands": (model("", '"a\\u001b[2J"'), REFUSED),
    "a name of 10,000 characters": (model("", "n" * 10_000), REFUSED),
    "a name of nothing": (model("", '""'), REFUSED),
    "a name in Arabic": (model("", '"\\u0645\\u0627"'), HARMLESS),
    "a source that is a device": (sourced("/dev/zero"), REFUSED),
    "a source that is random": (sourced("/dev/urandom"), REFUSED),
    "a source that is a FIFO": (sourced("x", lambda d: os.mkfifo(d / "x")), REFUSED),
    "a source that is a link to itself": (
        sourced("x", lambda d: (d / "x").symlink_to("x")), REFUSED),
    "a source that is a folder": (sourced("."), REFUSED),
    "a source that is a secret": (sourced("/etc/shadow"), REFUSED),
    "a source with no character": (sourced("a\\u0000b"), REFUSED),
    "a source of 100,000 characters": (sourced("a" * 100_000), REFUSED),
    "an output that is a device": (
        text('[models.m]\nsource = GOOD\noutput = "/dev/null"\n'), REFUSED),
    "an output that is the model": (text("[models.m]\nsource = GOOD\noutput = GOOD\n"), REFUSED),
    "an output in /proc": (text('[models.m]\nsource = GOOD\noutput = "/proc/x"\n'), REFUSED),
    "an output that replaces its source": (
        text('[models.good]\nsource = GOOD\noutput = "."\n'), REFUSED),
    "a factory that is a function of the system": (
        model('opening = { factory = "os:system", factory_args = ["touch mark"] }'), HARMLESS),
    "trust that is a text": (model('opening = { trust = "yes" }'), REFUSED),
    "allowed what could do anything": (model('opening = { allow = ["os.system"] }'), HARMLESS),
    "a setting of its own": (model('run = "touch mark"'), REFUSED),
    "a setting with a strange name": (model('"\\u001b[2J\\u202e" = 1'), REFUSED),
    "a setting of 100,000 characters": (model(f'{"k" * 100_000} = 1'), REFUSED),
    "a k of infinity": (model("gate = { k = inf }"), REFUSED),
    "a k of NaN": (model("gate = { k = nan }"), REFUSED),
    "a k that is a date": (model("gate = { k = 1979-05-27 }"), REFUSED),
    "a seed of 10^30": (model(f"gate = {{ seeds = [{10**30}] }}"), REFUSED),
    "a seed of -1": (model("gate = { seeds = [-1] }"), REFUSED),
    "100,000 seeds": (model(f"gate = {{ seeds = {list(range(100_000))} }}"), REFUSED),
    "sizes of 10^18": (model("gate = { shapes = { N = [1000000000000000000] } }"), REFUSED),
    "recorded on a device": (model('gate = { recorded = ["/dev/zero"] }'), REFUSED),
    "recorded nowhere": (model('gate = { recorded = ["nowhere.npy"] }'), REFUSED),
    "a provider of its own": (model('gate = { providers = ["\\u001b[2Jx"] }'), (2, 3, 4)),
    "an opset of 10^18": (
        model(f'to = ["onnx"]\nconversion = {{ opset = {10**18} }}'), REFUSED),
    "an opset of -1": (model('to = ["onnx"]\nconversion = { opset = -1 }'), REFUSED),
    "an input of 10^18": (model('inputs = ["1x3x1000000000x1000000000"]'), REFUSED),
    "an input of a strange text": (model(f'inputs = ["{EXPRESSION}"]'), REFUSED),
    "an input of 40 GB": (model('inputs = ["1x3x60000x60000"]'), REFUSED),
    "a report of its own": (model('reports = ["../../mark"]'), REFUSED),
    "a target of its own": (model('to = ["../../mark"]'), REFUSED),
    "what it depends on is everything": (model('depends = ["/**/*"]'), HARMLESS),
    "what it depends on is a device": (model('depends = ["/dev/zero"]'), HARMLESS),
    "what it depends on is a FIFO": (
        text('[models.m]\nsource = GOOD\noutput = OUT\ndepends = ["x"]\n',
             lambda d: os.mkfifo(d / "x")), HARMLESS),
    "lists 50,000 deep": (text("a = " + "[" * 50_000 + "]" * 50_000), REFUSED),
    "tables 20,000 deep": (text("[" + ".".join(["a"] * 20_000) + "]"), REFUSED),
    "a number of 100,000 digits": (text("a = " + "9" * 100_000), REFUSED),
    "a text that is not UTF-8": (text(b"a = '\xff\xfe'"), REFUSED),
    "a text of no character": (text(b"\x00" * 100), REFUSED),
    "a text of half a surrogate": (text('a = "\\ud800"'), REFUSED),
    "models that are a list": (text("models = [1]"), REFUSED),
    "models that are tables in a list": (text("[[models]]\nsource = GOOD"), REFUSED),
    "defaults that are a number": (text("defaults = 3"), REFUSED),
    "10,000 models": (
        text("".join(f'[models.m{i}]\nsource = "no{i}"\n' for i in range(2_000))), REFUSED),
}  # fmt: skip
for what, (make, codes) in FILES.items():
    CORPUS.add(what, make, codes=codes)


def special(prepare: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        prepare(folder / "bnfold.toml")
        return folder / "bnfold.toml"

    return make


CORPUS.add("the file is a FIFO", special(os.mkfifo))
CORPUS.add("the file is a folder", special(Path.mkdir))
CORPUS.add("the file is a device", special(lambda path: path.symlink_to("/dev/zero")))
CORPUS.add("the file is random", special(lambda path: path.symlink_to("/dev/urandom")))
