"""What follows from training from scratch beside a probe: can it be done, and how much it is.

Source: Zeiler & Fergus (ECCV 2014, arXiv:1311.2901), section 5: of the same images a network that
was trained on many others is told to know more than one that has seen them alone.
"""

from deconvoy.errors import RequestError
from deconvoy.spec import JobSpec, ScratchSpec, Transform
from workers.graph import Layer
from workers.models import PackedModel
from workers.training import MAX_BYTES, Recipe, learns_from_several


def recipe_of(asked: ScratchSpec) -> Recipe:
    return Recipe(
        asked.epochs, asked.batch_size, asked.learning_rate,
        rate_field="analyses.probe.scratch.learning_rate",
    )  # fmt: skip


def images_of(asked: ScratchSpec, learned: int, judged: int) -> int:
    """Images of one training as its progress counts them: those it learns from as they are read and
    then in every epoch, and those it is judged by."""
    return (asked.epochs + 1) * learned + judged


def require_trainable(
    spec: JobSpec, start: PackedModel, logits: Layer, transform: Transform, classes: int
) -> None:
    """Before anything is computed.

    Args:
        start: where the network begins.
        logits: its output.
        classes: that are to be told apart.

    Raises:
        RequestError: the network has too few outputs, cannot learn from one image at a time, or the
            images take too much memory.
    """
    probe, name = spec.probe, spec.model.name
    assert probe is not None and probe.scratch is not None
    if probe.scratch.batch_size == 1 and learns_from_several(start.build()):
        raise RequestError(
            f"analyses.probe.scratch.batch_size is 1, but {name} has BatchNorm, which learns from "
            "2 images or more at a time: raise it."
        )
    if logits.is_map:
        raise RequestError(
            f"analyses.probe.scratch takes an output for a class, but the output of {name} is a "
            f"map of {logits.height} × {logits.width}: leave scratch out."
        )
    if logits.units < classes:
        raise RequestError(
            f"analyses.probe.scratch takes an output for each of the {classes} classes of "
            f"analyses.probe.data, but {name} has {logits.units} outputs: give it more "
            "(model.arguments), take images of fewer classes, or leave scratch out."
        )
    each = transform.channels * transform.crop**2
    images = classes * max(probe.train)
    if images * each > MAX_BYTES:
        raise RequestError(
            f"analyses.probe.scratch keeps the training images in the memory of each worker, and "
            f"{max(probe.train)} (analyses.probe.train) of each of {classes} classes take "
            f"{images * each / 2**30:.0f} GiB, more than {MAX_BYTES // 2**30}: take "
            f"{MAX_BYTES // (each * classes)} at most, or leave scratch out."
        )
