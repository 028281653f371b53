"""What the shell offers where click itself cannot know: lists with commas, models of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def each_of(choices: Callable[[], Iterable[str]]) -> Complete:
    """Completes the last name of a list with commas by those of `choices` not yet in it."""

    def complete(
        context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [
            CompletionItem(f"{before}{comma}{name}")
            for name in choices()
            if name.startswith(last) and name not in given
        ]

    return complete


def target_names() -> Iterable[str]:
    """The formats that a model can be exported to."""
    from bnfold.verbs.targets import TARGETS

    return TARGETS


def provider_names() -> Iterable[str]:
    """The execution providers of the installed ONNX Runtime, and CUDA, by short name."""
    from bnfold.runtimes.providers import built_in

    return dict.fromkeys((*built_in(), "cuda"))


def pipeline_models(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The models of the pipeline file, if there is one that can be read."""
    from bnfold.errors import BnfoldError
    from bnfold.verbs.pipeline import read_pipeline

    try:
        names = read_pipeline(Path(context.params["path"]))
    except BnfoldError:
        return []
    given = context.params.get("names") or ()
    return [
        CompletionItem(name) for name in names if name.startswith(incomplete) and name not in given
    ]
