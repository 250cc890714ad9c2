"""Judge the networks of a study again, by the weights it keeps."""

import itertools
from collections.abc import Iterator

import safetensors.torch

from deconvoy.schema import checkpoint_path
from deconvoy.spec import ModelSpec
from workers.models import pack
from workers.study_items import StudyJob
from workers.trainer import Trainer
from workers.training import top_errors
from workers.undertaking import reopen


def judge_again(url: str, sample: int) -> Iterator[tuple[int, int, tuple[float, float]]]:
    """Network, repeat and errors of the validation images; of ``sample`` trainings at most."""
    job, run = reopen(url)
    assert isinstance(job, StudyJob)
    spec = job.spec
    images = Trainer(job.assignment(url, 1)).validation
    pairs = itertools.product(range(len(job.arguments)), range(spec.repeats))
    for network, repeat in itertools.islice(pairs, sample):
        content = run.read(checkpoint_path(network, repeat, spec.training.epochs))
        made = pack(ModelSpec(name=spec.base, arguments=dict(job.arguments[network])), spec.seed)
        model = made.build()
        model.load_state_dict(safetensors.torch.load(content))
        transform = job.transform
        yield (
            network,
            repeat,
            top_errors(model, images.pixels, images.labels, mean=transform.mean, std=transform.std),
        )
