"""Judge the networks of a study again, by the weights it keeps."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import safetensors.torch
from jaxtyping import Bool, Float32, Float64

from deconvoy.schema import checkpoint_path
from deconvoy.spec import ModelSpec
from workers.first_layer import bands_of, filters_of, peaks_of, rms_of
from workers.models import pack
from workers.study_items import StudyJob
from workers.trainer import Trainer
from workers.undertaking import reopen


@dataclass(frozen=True)
class Judged:
    """What the weights of one training come to."""

    network: int
    repeat: int
    training: Float64[np.ndarray, " top"]
    validation: Float64[np.ndarray, " top"]
    counts: tuple[int, int]
    """Images of training and validation that can be read."""
    filter: Float32[np.ndarray, "unit row col channel"]
    rms: Float64[np.ndarray, " unit"]
    frequency: Float64[np.ndarray, "unit band"]
    peak: Float32[np.ndarray, " unit"]


def judge_again(
    url: str, sample: int, finished: Bool[np.ndarray, "network repeat"]
) -> Iterator[Judged]:
    """Of ``sample`` trainings at most, of those that came to their end."""
    job, run = reopen(url)
    assert isinstance(job, StudyJob)
    spec = job.spec
    trainer = Trainer(job.assignment(url, 1))
    for pair in itertools.islice(np.argwhere(finished), sample):
        network, repeat = map(int, pair)
        made = pack(ModelSpec(name=spec.base, arguments=dict(job.arguments[network])), spec.seed)
        model = made.build()
        content = run.read(checkpoint_path(network, repeat, spec.training.epochs))
        model.load_state_dict(safetensors.torch.load(content))
        filters = filters_of(model)
        yield Judged(
            network=network,
            repeat=repeat,
            training=np.array(trainer.errors(model, trainer.training)),
            validation=np.array(trainer.errors(model, trainer.validation)),
            counts=(len(trainer.training.labels), len(trainer.validation.labels)),
            filter=filters,
            rms=rms_of(filters),
            frequency=bands_of(filters),
            peak=peaks_of(model, trainer.batches(trainer.validation)),
        )
