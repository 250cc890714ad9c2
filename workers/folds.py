"""Which images of a probe are learned from and which are judged by, fold by fold.

As in the paper (Zeiler & Fergus, ECCV 2014, arXiv:1311.2901, section 5): so many images of each
class to learn from, at most so many others of each to judge by, drawn anew for each fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from deconvoy.errors import RequestError


@dataclass(frozen=True)
class ProbeFits:
    """Every fit of one layer."""

    classifiers: tuple[str, ...]
    train: tuple[int, ...]
    """Images of each class."""
    test: int
    """Images of each class, at most."""
    folds: int
    c: float
    seed: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.classifiers), len(self.train), self.folds

    def images(self, label: Int64[np.ndarray, " image"], size: int, fold: int) -> "Split":
        """Those of a fold, where ``train[size]`` of each class are learned from."""
        return split(label, self.train[size], max(self.train), self.test, fold, self.seed)


@dataclass(frozen=True)
class Split:
    """Images of one fold."""

    train: Int64[np.ndarray, " learned"]
    test: Int64[np.ndarray, " judged"]


def require_enough(
    label: Int64[np.ndarray, " image"], classes: Sequence[str], train: Sequence[int]
) -> None:
    """Before anything is computed.

    Raises:
        RequestError: there is one class, or a class has no image left to judge by.
    """
    if len(classes) < 2:
        raise RequestError(
            f"analyses.probe.data has images of {len(classes)} class, but a classifier tells at "
            "least 2 apart: give class folders, or labels."
        )
    counts = np.bincount(label[label >= 0], minlength=len(classes))
    fewest = int(counts.argmin())
    if counts[fewest] <= max(train):
        raise RequestError(
            f"analyses.probe.train takes {max(train)} images of each class, but the class "
            f"{classes[fewest]!r} has {counts[fewest]} in all, and one at least must be left to "
            "judge by: take fewer, or leave the class out."
        )


def split(
    label: Int64[np.ndarray, " image"], train: int, most: int, test: int, fold: int, seed: int
) -> Split:
    """Images of one fold, drawn by seed and fold alone.

    Args:
        label: −1: the image takes no part.
        train: images of each class to learn from; those of a smaller number are among them.
        most: the largest such number: what is judged by is the same for all.
        test: images of each class to judge by, at most.
    """
    learned, judged = [], []
    for number in np.unique(label[label >= 0]).tolist():
        rng = np.random.Generator(np.random.PCG64([seed, fold, number]))
        own = rng.permutation(np.flatnonzero(label == number))
        learned.append(own[:train])
        judged.append(own[most : most + test])
    return Split(np.sort(np.concatenate(learned)), np.sort(np.concatenate(judged)))
