"""The driver's part in training from scratch: a network for every fold and number of images."""

import json

from deconvoy.store import RunStore
from workers.leases import ScratchLease, ScratchResult
from workers.parts import marker_path
from workers.probe_items import Probing
from workers.probe_writer import read_labels, write_scratch
from workers.scratch_items import images_of, recipe_of
from workers.stages import Work


def scratch_work(run: RunStore, probing: Probing) -> Work | None:
    """Trainings by the images that the features were computed of; None where none is asked for."""
    asked, fits = probing.spec.scratch, probing.fits
    if asked is None:
        return None
    label, uris = read_labels(run, 0), probing.listing.uris
    cells = [(size, fold) for size in range(len(fits.train)) for fold in range(fits.folds)]
    items = {f"probe-scratch/item-{number:06d}": cell for number, cell in enumerate(cells)}
    images = {name: fits.images(label, *cell) for name, cell in items.items()}
    left = [name for name in items if not run.exists(marker_path(name))]

    def lease_of(name: str) -> ScratchLease:
        train, test = images[name].train, images[name].test
        return ScratchLease(
            name, len(probing.classes), recipe_of(asked), probing.seed,
            tuple(uris[row] for row in train), label[train],
            tuple(uris[row] for row in test), label[test],
        )  # fmt: skip

    def commit(name: str, result: ScratchResult) -> int:
        size, fold = items[name]
        write_scratch(run, size, fold, result.accuracy)
        fields = {"train": fits.train[size], "fold": fold}
        run.write(marker_path(name), json.dumps(fields).encode())
        return count(name)

    def count(name: str) -> int:
        return images_of(asked, len(images[name].train), len(images[name].test))

    total = sum(map(count, items))
    return Work("probe-scratch", left, lease_of, commit, total - sum(map(count, left)), total)
