"""The driver's part in a probe: features are computed, then every layer's are classified by."""

import json

import numpy as np
import zarr

from deconvoy.arrays import read
from deconvoy.errors import TooManyBadImages
from deconvoy.schema import PROBE_GROUP
from deconvoy.store import RunStore
from workers.job import Job
from workers.leases import ProbeFeaturesLease, ProbeLease, ProbeResult
from workers.parts import marker_path, spans
from workers.probe_items import Probing
from workers.probe_writer import WEIGHTS, create_probe
from workers.stages import Work

FEATURES = "probe-features"


def features_work(job: Job, run: RunStore, probing: Probing) -> Work:
    """Features of the probe's images, by each of the weights."""
    images, size = len(probing.listing), job.spec.compute.shard_size
    items = {
        f"{FEATURES}/{WEIGHTS[number]}/item-{part:06d}": (number, start, stop)
        for number in range(probing.weights)
        for part, (start, stop) in enumerate(spans([images], size))
    }
    left = [name for name in items if not run.exists(marker_path(name))]
    if len(left) == len(items):  # with a marker its arrays must not be made anew
        create_probe(
            run, probing.layers, probing.label, probing.classes, probing.fits, probing.weights,
            size, probing.spec.pool, probing.spec.features, probing.spec.scratch,
        )  # fmt: skip

    def lease_of(name: str) -> ProbeFeaturesLease:
        number, start, stop = items[name]
        return ProbeFeaturesLease(name, number, start, tuple(probing.listing.uris[start:stop]))

    def commit(name: str, result: ProbeResult) -> int:
        fields = {"images": list(items[name][1:])}
        run.write(marker_path(name), json.dumps(fields).encode())
        return result.done

    def count(name: str) -> int:
        _, start, stop = items[name]
        return stop - start

    total = sum(map(count, items))
    return Work("probe-features", left, lease_of, commit, total - sum(map(count, left)), total)


def fits_work(run: RunStore, probing: Probing) -> Work:
    """Classifiers of every layer, by each of the weights.

    Raises:
        TooManyBadImages: more could not be read than ``data.max_bad`` of the probe allows.
    """
    _judge(run, probing)
    items = {
        f"probe/{WEIGHTS[number]}/item-{layer:06d}": (number, layer)
        for number in range(probing.weights)
        for layer in range(len(probing.layers))
    }
    left = [name for name in items if not run.exists(marker_path(name))]
    each = int(np.prod(probing.fits.shape))

    def lease_of(name: str) -> ProbeLease:
        return ProbeLease(name, *items[name], probing.fits)

    def commit(name: str, result: ProbeResult) -> int:
        fields = {"layer": probing.layers[items[name][1]].name, "fits": result.done}
        run.write(marker_path(name), json.dumps(fields).encode())
        return result.done

    done = (len(items) - len(left)) * each
    return Work("probe", left, lease_of, commit, done, len(items) * each)


def _judge(run: RunStore, probing: Probing) -> None:
    group = run.zarr()[PROBE_GROUP]
    assert isinstance(group, zarr.Group)
    there = read(group, "read").all(0)
    bad, allowed = int((~there).sum()), probing.spec.data.max_bad * len(there)
    if bad > allowed:
        first = probing.listing.uris[int((~there).argmax())]
        raise TooManyBadImages(
            f"{bad} of {len(there)} images of analyses.probe.data are unreadable, more than "
            f"max_bad = {probing.spec.data.max_bad:g} allows (the first is {first!r}): mend or "
            "remove them, or raise analyses.probe.data.max_bad, and start a new run."
        )
