"""What a person asks for of several networks: one architecture and edits of it, each trained alike.

Source: Zeiler & Fergus (ECCV 2014, arXiv:1311.2901): Table 3 for the edits, section 3 for the
recipe.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from deconvoy.refusals import validated
from deconvoy.spec import Auto, ComputeSpec, DataSpec, Section
from deconvoy.spec_file import override_field, read_fields

REMOVABLE = (3, 4, 5, 6, 7)
"""Layers a network can do without: 1 and 2 bring an image to the size that the others work at."""

WIDE = (1, 2, 3, 4, 5, 6, 7)
"""Layers whose number of feature maps or neurons is free; the eighth has the classes."""

Layer = Annotated[int, Field(strict=True, ge=1, le=7)]
Width = Annotated[int, Field(strict=True, ge=1, le=65_536)]
Epoch = Annotated[int, Field(strict=True, ge=1, le=10_000)]


class EditSpec(Section):
    """One edit of the base."""

    name: str | None = None
    """For people; by default what it says."""
    remove: tuple[Annotated[int, Field(strict=True, ge=3, le=7)], ...] = ()
    """Layers that are left out, of 3 to 7."""
    widths: dict[Layer, Width] = Field(default_factory=dict)
    """Layers of another width: ``{3: 512, 6: 2048}``; feature maps of 1 to 5, neurons of 6 and
    7."""

    @model_validator(mode="before")
    @classmethod
    def _numbers_of_layers(cls, given: Any) -> Any:
        """JSON has keys as text."""
        widths = given.get("widths") if isinstance(given, dict) else None
        if not isinstance(widths, dict):
            return given
        numbers = {
            int(key) if isinstance(key, str) and key.isdecimal() else key: value
            for key, value in widths.items()
        }
        return {**given, "widths": numbers}

    @model_validator(mode="after")
    def _edits(self) -> "EditSpec":
        both = sorted(set(self.remove) & set(self.widths))
        if both:
            raise ValueError(f"layers {both} are removed and given a width: leave one of them out")
        if not self.remove and not self.widths:
            raise ValueError("an edit has remove or widths; the base itself is always trained")
        if len(set(self.remove)) < len(self.remove):
            raise ValueError("remove names a layer twice")
        return self

    @property
    def title(self) -> str:
        if self.name is not None:
            return self.name
        parts = [f"without {_listed(self.remove)}"] if self.remove else []
        by_width: dict[int, list[int]] = {}
        for layer, width in sorted(self.widths.items()):
            by_width.setdefault(width, []).append(layer)
        parts += [f"{_listed(layers)}: {width:,} wide" for width, layers in by_width.items()]
        return "; ".join(parts)

    def arguments(self) -> dict[str, Any]:
        """Of the factory of the network."""
        made: dict[str, Any] = {"remove": sorted(self.remove)} if self.remove else {}
        if self.widths:
            made["widths"] = {str(layer): width for layer, width in sorted(self.widths.items())}
        return made


def _listed(layers: Any) -> str:
    return ", ".join(map(str, sorted(layers)))


class RecipeSpec(Section):
    """How every network is trained: stochastic gradient descent of the cross-entropy.

    The learning rate falls in a straight line to nearly nothing.
    """

    epochs: Epoch = 6
    """Passes over the training images."""
    batch_size: Annotated[int, Field(strict=True, ge=1, le=4096)] = 16
    """Images a step.  The paper has 128; of a few thousand images that makes few steps."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.01
    """At the start."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the outputs of layers 6 and 7 that is left out at a time."""
    max_filter_rms: Annotated[float, Field(gt=0)] | None = 0.1
    """Filters of a convolution whose root mean square exceeds it are scaled back to it after every
    step; null: none are."""
    checkpoints: Literal["all", "last"] | Annotated[tuple[Epoch, ...], Field(min_length=1)] = "last"
    """After which epochs weights are kept; those of the last one always are."""

    @model_validator(mode="after")
    def _checkpoints_are_reached(self) -> "RecipeSpec":
        kept = self.checkpoints
        late = [] if isinstance(kept, str) else [epoch for epoch in kept if epoch > self.epochs]
        if late:
            raise ValueError(
                f"checkpoints names epoch {late[0]}, but a training has {self.epochs}: lower it, "
                "or raise epochs"
            )
        return self

    @property
    def kept_epochs(self) -> tuple[int, ...]:
        if self.checkpoints == "all":
            return tuple(range(1, self.epochs + 1))
        chosen = () if self.checkpoints == "last" else self.checkpoints
        return tuple(sorted({*chosen, self.epochs}))


class StudyComputeSpec(Section):
    workers: Auto | Annotated[int, Field(strict=True, ge=1, le=4096)] = "auto"
    """Networks trained at a time; ``auto``: one per GPU, else one per ``threads`` cores."""
    gpus_per_worker: Auto | Annotated[float, Field(ge=0, le=64)] = "auto"
    """``auto``: one where the cluster has GPUs, else none."""
    threads: Auto | Annotated[int, Field(strict=True, ge=1, le=256)] = "auto"
    """Threads a network is trained with; ``auto``: one.  On another number weights differ in their
    last bits, and training makes much of that."""

    @property
    def threads_each(self) -> int:
        return 1 if self.threads == "auto" else self.threads

    def for_workers(self) -> ComputeSpec:
        """What an executor is asked for."""
        return ComputeSpec(
            workers=self.workers, gpus_per_worker=self.gpus_per_worker, threads=self.threads_each
        )


class StudySpec(Section):
    """A study of architectures."""

    kind: Literal["study"]
    version: Literal[1] = 1
    name: str | None = None
    """For people."""
    seed: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)] = 0
    """Of the first weights, of the order of the images and of dropout; a repeat adds 1."""
    base: Literal["deconvoy/zfnet", "deconvoy/zfnet_small"]
    """The network that is edited: the paper's, of 224-pixel images, or one of 64-pixel images."""
    data: DataSpec
    """Labelled images that are learned from; the classes of their labels are the outputs.
    ``boxes``, ``parts`` and ``distinct`` are ignored."""
    validation: Annotated[float, Field(gt=0, lt=1)] | DataSpec = 0.2
    """What is judged by: a share of ``data``, drawn by the seed and not learned from; or other
    images of the same classes."""
    edits: tuple[EditSpec, ...] = ()
    """Trained after the base itself, in that order; empty: the base alone."""
    repeats: Annotated[int, Field(strict=True, ge=1, le=100)] = 1
    """How often each network is trained, from other first weights: what a difference means shows in
    how far repeats lie apart."""
    training: RecipeSpec = RecipeSpec()
    compute: StudyComputeSpec = StudyComputeSpec()

    @model_validator(mode="after")
    def _names_tell_apart(self) -> "StudySpec":
        titles = self.titles
        twice = [title for title in titles if titles.count(title) > 1]
        if twice:
            raise ValueError(f"edits has {twice[0]!r} twice: give each another name")
        return self

    @property
    def titles(self) -> tuple[str, ...]:
        """Of all networks, the base first."""
        return ("base", *(edit.title for edit in self.edits))

    @property
    def network(self) -> str:
        """The name of the base."""
        return self.base

    def arguments(self, network: int) -> dict[str, Any]:
        """Of the factory of a network, by its place in ``titles``."""
        return {} if network == 0 else self.edits[network - 1].arguments()

    @classmethod
    def parse(cls, fields: Any) -> "StudySpec":
        """The spec these plain fields describe.

        Raises:
            RequestError: naming every wrong field, its value and the rule.
        """
        return validated(cls, fields, "`kind: study`, `base: …` and `data: {uri: …}`")

    @classmethod
    def from_file(cls, path: str | Path, overrides: tuple[str, ...] = ()) -> "StudySpec":
        """Read a YAML or JSON file, as ``JobSpec.from_file`` does."""
        fields = read_fields(path)
        for override in overrides:
            override_field(fields, override)
        return cls.parse(fields)

    def to_json(self) -> dict[str, Any]:
        """Plain fields; ``parse`` of them is this spec again."""
        return self.model_dump(mode="json")
