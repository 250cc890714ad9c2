"""Small jobs, and what two runs are compared by: for tests of everything that makes a run.

The job is small in every way: an untrained network of 64-pixel images, a few units a layer.  Two
runs are equal when every file of their results is, byte for byte.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from deconvoy.spec import JobSpec
from deconvoy.store import FolderStore, RunStore
from tests import reference
from workers import pipeline
from workers.executors.inline import InlineExecutor
from workers.job import Job, trace

LAYERS = ("relu2", "relu5", "relu7", "logits")

RESULTS = ("layers", "images")
"""The folders of a run that hold what was found; the ledger holds how."""


def small_spec(**changes: Any) -> JobSpec:
    """40 images in five shards, four layers; ``changes`` replace or fill whole sections."""
    fields: dict[str, Any] = {
        "model": {"name": "deconvoy/zfnet_small"},
        "data": {"uri": "shapes?size=40&seed=1"},
        "layers": list(LAYERS),
        "analyses": [{"kind": "top"}, {"kind": "projection", "units": {"ids": [0, 1, 40]}}],
        "compute": {"shard_size": 8, "batch_size": 4},
    }
    for name, value in changes.items():
        merge = isinstance(value, Mapping) and isinstance(fields.get(name), Mapping)
        fields[name] = {**fields[name], **value} if merge else value
    return JobSpec.parse(fields)


def ignore(_: pipeline.Advance) -> None:
    """Observe nothing."""


def run_inline(
    spec: JobSpec, url: Path | str, observe: pipeline.Observe = ignore
) -> dict[str, Any]:
    job, run = pipeline.create(spec, str(url))
    return pipeline.execute(job, run, InlineExecutor(), observe)


def run_on_ray(
    spec: JobSpec, url: Path, observe: pipeline.Observe = ignore, workers: int = 1
) -> dict[str, Any]:
    """On the cluster of the fixture ``ray_cluster``, without the GPUs it pretends to have."""
    from workers.executors.ray import RayExecutor

    compute = spec.compute.model_copy(update={"workers": workers, "gpus_per_worker": 0.0})
    job, run = pipeline.create(spec.model_copy(update={"compute": compute}), str(url))
    return pipeline.execute(job, run, RayExecutor(compute), observe)


def resume_inline(url: Path | str) -> dict[str, Any]:
    job, run = pipeline.reopen(str(url))
    return pipeline.execute(job, run, InlineExecutor(), ignore)


def results_of(url: Path | str) -> dict[str, bytes]:
    """Every file of the results, by its path."""
    run = RunStore(url)
    paths = [path for path in run.paths() if path.split("/")[0] in RESULTS]
    return {path: run.read(path) for path in paths}


def assert_same_results(one: Path | str, other: Path | str) -> None:
    of_one, of_other = results_of(one), results_of(other)
    assert of_one.keys() == of_other.keys()
    differing = [path for path, content in of_one.items() if of_other[path] != content]
    assert not differing, f"{len(differing)} of {len(of_one)} files differ: {differing[:5]}"


def assert_same_files(one: Path, other: Path, *folders: str) -> None:
    """Every file below these folders of two runs is the same, and there is one below the first of
    them; what is computed is, and so are the markers of what follows the scan."""
    of_one, of_other = (
        {
            path.relative_to(url).as_posix(): path.read_bytes()
            for folder in folders
            for path in (url / folder).rglob("*")
            if path.is_file()
        }
        for url in (one, other)
    )
    assert of_one.keys() == of_other.keys()
    assert any(path.startswith(f"{folders[0]}/") for path in of_one)
    assert [path for path in of_one if of_one[path] != of_other[path]] == []


class Killed(Exception):
    """Whoever writes goes down here."""


def killed_at(monkeypatch: pytest.MonkeyPatch, prefix: str, *times: int) -> None:
    """Writing a marker below a folder fails at these times, counted from 1: what it stands for is
    computed by then, and not committed."""
    whole, written = FolderStore.write, itertools.count(1)

    def write(self: FolderStore, path: str, content: bytes) -> None:
        if path.startswith(prefix) and next(written) in times:
            raise Killed(path)
        whole(self, path, content)

    monkeypatch.setattr(FolderStore, "write", write)


def log_of(url: Path | str) -> list[dict[str, Any]]:
    """The ledger's log; a last line that is still being written is left out."""
    return [json.loads(line) for line in RunStore(url).lines(pipeline.LOG)]


def grants_of(url: Path | str) -> Counter[str]:
    """How often each work item was granted."""
    return Counter(event["item"] for event in log_of(url) if event["event"] == "granted")


def committed_in(url: Path | str) -> set[str]:
    """Items with a marker."""
    files = [
        path.removeprefix("ledger/") for path in RunStore(url).paths() if path.startswith("ledger/")
    ]
    markers = [path for path in files if re.fullmatch(r".+/(part|item)-\d{6}\.\w+", path)]
    return {path.rpartition(".")[0] for path in markers}


def model_of(job: Job) -> nn.Module:
    """The untraced module with the job's weights, for the oracle."""
    return job.packed.build()


def images_of(job: Job, leave_out: Collection[str] = ()) -> list[tuple[int, Tensor]]:
    """Every image of the job as the model's input, with its id; normalised by the oracle."""
    transform, images = job.packed.transform, []
    for number, uri in enumerate(job.listing.uris):
        if uri not in leave_out:
            pixels = job.listing.source.read(uri, transform).pixels
            images.append((number, reference.normalise(pixels, transform.mean, transform.std)))
    return images


def write_photographs(folder: Path, count: int, side: int = 80) -> list[Path]:
    """Images of noise in files, in two class folders: what a folder of photographs looks like."""
    generator = torch.Generator().manual_seed(count)
    places = []
    for number in range(count):
        place = folder / "ab"[number % 2] / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        size = (3, side + number, side)
        pixels = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place)
        places.append(place)
    return places


def places_of(job: Job) -> list[int]:
    """The place of each of the job's layers among all layers, as the oracle counts them."""
    names = [layer.name for layer in trace(job.packed).layers]
    return [names.index(layer.name) for layer in job.layers]


def all_maxima(url: Path) -> dict[str, np.ndarray]:
    """Layer → maxima, "image unit", by the untraced module."""
    job, _ = pipeline.reopen(str(url))
    model, images = model_of(job), images_of(job)
    found: dict[str, list[torch.Tensor]] = {layer.name: [] for layer in job.layers}
    for _, pixels in images:
        layers = reference.layers(model, pixels[None])
        for layer, place in zip(job.layers, places_of(job), strict=True):
            found[layer.name].append(layers[place].ranking[0].flatten(1).amax(1))
    return {name: torch.stack(rows).double().numpy() for name, rows in found.items()}
