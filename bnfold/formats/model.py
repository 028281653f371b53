"""What every native form of a model offers: read a Graph, write a Plan, run, save."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from bnfold.algebra.graph import Graph
from bnfold.algebra.plan import Plan
from bnfold.algebra.refusal import Refusal
from bnfold.algebra.rounding import Weights
from bnfold.errors import BnfoldError, EnvironmentLacksError, ExportError, ModelError
from bnfold.formats.capabilities import Damage, Decisions, Intermediates, NotSupportedError
from bnfold.inputs import Inputs
from bnfold.preprocessing import Contract
from bnfold.proof.written import Written
from bnfold.protocol import DEFAULT, Protocol
from bnfold.runtimes import Integers, Runner, Sample, TensorSpec


class Format(StrEnum):
    """The native forms, by the name that reports show."""

    MODULE = "module"  # a pickled torch.nn.Module
    STATE_DICT = "state_dict"  # tensors only, written by torch.save
    SAFETENSORS = "safetensors"
    FOLDER = "folder"  # weights beside the config.json of their library
    TORCHSCRIPT = "torchscript"
    EXPORTED_PROGRAM = "exported_program"
    ONNX = "onnx"


WEIGHTS = (Format.STATE_DICT, Format.SAFETENSORS, Format.FOLDER)
"""The forms that need the class of their network to be opened."""

MODULES = (Format.MODULE, *WEIGHTS)
"""The forms that are an nn.Module once they are open."""

OF_TORCH = (*MODULES, Format.TORCHSCRIPT, Format.EXPORTED_PROGRAM)
"""The forms that PyTorch runs."""


@contextmanager
def blaming(model: Model) -> Iterator[None]:
    """Tell an invalid model from a fault of bnfold, or of an exporter, once something failed."""
    try:
        yield
    except BnfoldError as error:
        if isinstance(error, ExportError):
            _refuse_invalid(model, error)
        raise
    except MemoryError as error:
        raise ModelError(
            f"there is not enough memory for {model.origin[0] if model.origin else 'the model'}",
            "free some, or take a machine with more; --no-verify needs about half",
        ) from error
    except Exception as error:
        _refuse_invalid(model, error)
        raise


def _refuse_invalid(model: Model, error: Exception) -> None:
    """Raise ModelError if its framework's own checker finds fault with the model."""
    if problem := model.diagnose():
        raise ModelError(
            f"the {model.format} model is invalid: {problem}", "export or download it again"
        ) from error


def off(number: float, size: float) -> float:
    """`number` with the damage done."""
    return number * (1 + size) if number else size


class Model(ABC):
    """A model in one native form. It is never changed: writing makes a new one."""

    format: ClassVar[Format]
    notes: tuple[str, ...] = ()
    """What was found and done on the way in, for the report: "was in train mode", ..."""

    origin: tuple[Path, Any] | None = None
    """The file that this is the whole content of, and the Opening that it was opened with."""

    keep_classes: bool = False
    """Whether a module is folded in place alone, and no part of it is generated."""

    compact: bool = False
    """Whether weights are written without regard to the class that they would be loaded into."""

    whole: bool = True
    """Whether the last graph read is of the whole model, rather than of parts of it."""

    stored: int | None = None
    """Bytes of the files it was loaded from, where they are more than one."""

    @property
    def merging(self) -> bool:
        """Whether the form can hold fewer linear nodes than there are."""
        return True

    @property
    @abstractmethod
    def native(self) -> Any:
        """The framework's own object."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model wants, as far as the native form says."""

    @abstractmethod
    def read(self, sample: Sample | None) -> Graph:
        """The neutral graph. `sample` is an input that works, for forms that only running tells."""

    def veto(self, plan: Plan) -> Mapping[str, Refusal]:
        """The nodes of the last graph read that `plan` edits and this form cannot, and why."""
        return {}

    def free(self) -> frozenset[str]:
        """The nodes of the last graph read that this form can make anew for other channels."""
        return frozenset()

    def told(self) -> tuple[str, ...]:
        """What the plan that was made last takes beyond edits in place."""
        return ()

    def how_to_load(self, path: Path) -> tuple[str, ...]:
        """Who can load what was saved to `path`, where that needs a word."""
        return ()

    def diagnose(self) -> str | None:
        """What its framework's own checker finds wrong with the model; None if nothing is."""
        return None

    def require_small(self) -> None:  # noqa: B027 (most forms tell nothing before they run)
        """Raise ModelError, before it runs, if the model asks for more memory than it explains."""

    def suggest(self) -> tuple[int, ...] | None:
        """A shape for the model's one input that works, guessed from its first layer, if any."""
        return None

    def locked(self) -> Mapping[str, Refusal]:
        """The nodes of the last graph read that this form cannot edit, and why."""
        return {}

    def damages(self) -> Iterator[Damage]:
        """The numbers that a self-test can change."""
        raise NotSupportedError(
            f"--self-test is not supported by a {self.format}: nothing can be damaged",
            "leave it out, or give a candidate of another format",
        )

    def part(self, values: Sample, output: str) -> tuple[Model, dict[str, Any]] | None:
        """What computes the value `output` from some of `values`, with those that it reads.

        None where no part can be cut out.
        """
        return None

    @property
    def provable(self) -> bool:
        """Whether the format tells a proof all that it asks for."""
        return False

    @contextmanager
    def written(self) -> Iterator[Written]:
        """The model as a proof is told of it, read again from what is, or would be, written."""
        raise NotSupportedError(f"nothing is proved of a {self.format}", "verify measures it")
        yield

    def intermediates(self, provider: str) -> Intermediates:
        """This model with its values shown, run where the runner `provider` runs."""
        raise NotSupportedError(f"a {self.format} shows no values between inputs and outputs")

    def bounds(self) -> tuple[float, ...]:
        """Of every output, in order, the size of what bounds it last, such as 1 for a sigmoid.

        0 where nothing does; shorter, or empty, where a form does not tell.
        """
        return ()

    def decisions(self) -> Decisions:
        """Which outputs follow from a choice, such as of an index, and by what it is made."""
        return Decisions()

    def deciding(self, other: Model) -> tuple[Model, Model, list[str]] | None:
        """This model and `other` with what their choices and bounds are made of as their outputs.

        The texts say what each is. None where a form does not show it, or there is nothing.
        """
        return None

    def integers(self, sample: Sample) -> Mapping[str, Integers]:
        """Input of integers -> what the model does with them, as far as that can be seen."""
        return {}

    def selecting(self, outputs: Sequence[str]) -> Model:
        """This model with some of its outputs, by name. Raises UsageError for what is none."""
        raise NotSupportedError(
            f"the outputs of a {self.format} cannot be chosen: they have no names of their own",
            "export it to ONNX, and choose there",
        )

    def cast(self, dtype: str) -> Model:
        """This model with every float in `dtype` ("float32", "float16", "bfloat16"); itself if
        they are. Raises UsageError for what that type cannot hold, or the form cannot say."""
        raise NotSupportedError(f"a {self.format} stays in its type", "export it first")

    def preprocessed(self, contract: Contract, inputs: Inputs) -> Model:
        """This model with its own preprocessing, as `contract` says; it then takes `inputs`."""
        raise NotSupportedError(f"a {self.format} takes no preprocessing", "export it first")

    @abstractmethod
    def write(self, plan: Plan, weights: Weights) -> Model:
        """A new model of the same form with the plan carried out."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write to `path`, which must not be in use yet; callers rename it into place."""

    @abstractmethod
    def truth(self) -> Runner:
        """This model computed in float64."""

    @abstractmethod
    def runners(self, protocol: Protocol = DEFAULT) -> list[Runner]:
        """This model as is, on every provider and level of `protocol` where it can run."""

    def deployed(self, provider: str) -> Runner:
        """This model as it is in use: on one provider, optimised."""
        for runner in self.runners(Protocol(providers=(provider,))):
            if runner.name in (provider, f"torch {provider}"):
                return runner
        raise EnvironmentLacksError(
            f"the {self.format} model does not run on {provider} here", "try --providers cpu"
        )
