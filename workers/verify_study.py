"""Verify a study: that all is there that its markers promise, and that its weights err as it says.

That the bytes are those that were written is checked with all other chunks.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from deconvoy.run import Run
from deconvoy.schema import (
    FIRST_LAYER_ARRAYS,
    STUDY_ARRAYS,
    STUDY_GROUP,
    checkpoint_path,
    first_layer_path,
)
from deconvoy.study_spec import StudySpec
from workers.checksums import Chunks, Fault
from workers.parts import marker_path, number_of

MARKERS = "ledger/study"


class StudyGroup:
    """The group ``study``: a row a training."""

    def __init__(self, chunks: Chunks, attributes: dict[str, Any]) -> None:
        self.chunks, self.run = chunks, chunks.run
        self.spec = StudySpec.parse(attributes["spec"])
        self.done = attributes["state"]["status"] == "done"
        self.files = 0
        """Markers and weights read."""
        self.trained: dict[int, tuple[int, int]] = {}
        """Network and repeat of every row that a marker promises."""

    def faults(self) -> Iterator[Fault]:
        names = [name for name in self.run.names(MARKERS) if name.startswith("item-")]
        if not names and not self.done:
            return
        absent = list(self._absent())
        yield from absent
        if absent:
            return
        for name in names:
            yield from self._marker(f"{MARKERS}/{name}")
        rows = len(self.spec.titles) * self.spec.repeats
        for row in sorted(set(range(rows)) - set(self.trained)) if self.done else ():
            yield Fault(marker_path(f"study/item-{row:06d}"), "is missing")
        yield from self._rows()
        yield from self._weights()

    def _absent(self) -> Iterator[Fault]:
        groups = {STUDY_GROUP: STUDY_ARRAYS}
        for network in range(len(self.spec.titles)):
            groups[first_layer_path(network)] = FIRST_LAYER_ARRAYS
        for group, fields in groups.items():
            places = [f"{group}/zarr.json", *(f"{group}/{f.name}/zarr.json" for f in fields)]
            yield from (Fault(path, "is missing") for path in places if not self.run.exists(path))

    def _marker(self, path: str) -> Iterator[Fault]:
        self.files += 1
        try:
            fields = json.loads(self.run.read(path))
            self.trained[number_of(path)] = int(fields["network"]), int(fields["repeat"])
        except (ValueError, KeyError, TypeError) as error:
            yield Fault(path, f"cannot be read: {error}")

    def _rows(self) -> Iterator[Fault]:
        for row, (network, repeat) in self.trained.items():
            for group, fields, place in (
                (STUDY_GROUP, STUDY_ARRAYS, row),
                (first_layer_path(network), FIRST_LAYER_ARRAYS, repeat),
            ):
                for field in fields:
                    path = f"{group}/{field.name}"
                    for missing in self.chunks.missing.get(path, ()):
                        if missing[0] == place:
                            yield self.chunks.absent_at(path, missing)
        for field in STUDY_ARRAYS:
            found = self.chunks.array_at(f"{STUDY_GROUP}/{field.name}")
            for row in self.trained if found is not None else ():
                assert found is not None
                if row >= len(found) or not np.isfinite(found[row]).all():
                    yield Fault(f"{STUDY_GROUP}/{field.name}", f"has no numbers in row {row}")

    def _weights(self) -> Iterator[Fault]:
        for network, repeat in self.trained.values():
            for epoch in self.spec.training.kept_epochs:
                path = checkpoint_path(network, repeat, epoch)
                if not self.run.exists(path):
                    yield Fault(path, "is missing, but the ledger promises it")


def recomputed(url: str, sample: int) -> tuple[int, list[Fault]]:
    """Judge networks again by the weights that are kept; how many, and those that err otherwise.

    Args:
        sample: trainings, at most.

    Raises:
        RequestError: the images of the study are not there any more.
    """
    from workers.replay_study import judge_again

    study = Run(url).study()
    faults, trainings = list[Fault](), 0
    for network, repeat, errors in judge_again(url, sample):
        trainings += 1
        said = study.validation_error[network, repeat, -1]
        # Of one image more or less: another machine's rounding may tip one.
        if np.abs(np.array(errors) - said).max() > 0.01:
            told = f"err in {errors[0]:.4f} of the validation images, but the study says {said[0]}"
            epochs = study.loss.shape[2]
            faults.append(Fault(checkpoint_path(network, repeat, epochs), told))
    return trainings, faults
