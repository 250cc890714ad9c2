"""What a GPU computes, beside the oracles: both engines on every network, and whole jobs.

The same assertions as on a CPU, with the model on the GPU; the oracles stay where they are.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

import deconvoy
from deconvoy.errors import JobFailed
from deconvoy.spec import Method
from tests import networks, test_scan
from tests.runs import resume_inline, run_inline, small_spec
from tests.studies import run_study, spec_of
from tests.test_deconvnet import METHODS, assert_projections_equal_the_oracles
from tests.test_evolution import training as training
from tests.test_occlusion import EXACT, GRID_OF_TYPES, assert_sweep_equals_the_oracles
from workers.graph import Network
from workers.training import draw_shapes, train
from workers.zfnet import SHAPES_MEAN, SHAPES_STD, zfnet_small

pytestmark = pytest.mark.gpu

GPU = "cuda"

INEXACT = {"hardswish_functional": 1e-6}
"""torch's own kernel multiplies by a sixth in float32, whatever the type."""

ALL = [
    {"kind": "top"},
    {"kind": "projection", "units": {"ids": [0, 1, 40]}},
    {"kind": "occlusion", "images": {"ids": [0, 7]}, "patch": 12, "stride": 8, "units": ["relu2"]},
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", networks.TINY)
def test_projections_of_a_tiny_network_equal_the_oracles(name: str, method: Method) -> None:
    assert_projections_equal_the_oracles(networks.TINY[name], 1, device=GPU, method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", networks.REAL)
def test_projections_of_a_real_network_equal_the_oracles(name: str, method: Method) -> None:
    case = networks.REAL[name]
    every = max(len(case.unrectified) // 2, 4)
    assert_projections_equal_the_oracles(case, every, device=GPU, method=method)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", GRID_OF_TYPES)
def test_a_sweep_over_a_tiny_network_equals_the_oracles(name: str) -> None:
    case = GRID_OF_TYPES[name]
    model, image = case.model(), case.images(1)
    exact = INEXACT.get(name, EXACT)
    assert_sweep_equals_the_oracles(model, image, case.unrectified, 4, 3, exact, device=GPU)


@pytest.mark.parametrize("name", test_scan.WHOLE)
def test_a_scan_equals_brute_force(name: str) -> None:
    case = test_scan.WHOLE[name]
    # In float64 whole numbers stay whole; in float32 cuDNN may go through a Fourier transform.
    model = test_scan.whole(case).double()
    network = Network(model, case.shape).to(GPU)
    images, ids = test_scan.pictures(23).double(), test_scan.spread(23)
    found = test_scan.scanned(network, images, ids, batch=5)
    assert test_scan.lists_of(network, found.hits()) == test_scan.brute_force(
        model, images, ids, case
    )


def test_a_job_finds_what_one_on_the_cpu_finds(tmp_path: Path) -> None:
    """Rounding differs, so hits may change places; nearly all are the same, and alike."""
    found = [
        run_inline(
            small_spec(compute={"gpus_per_worker": gpus}, analyses=ALL), tmp_path / str(gpus)
        )
        for gpus in (0, 1)
    ]
    assert [one["images"] for one in found] == [40, 40]
    on_cpu, on_gpu = (deconvoy.open(tmp_path / str(gpus)) for gpus in (0, 1))
    for layer in on_cpu.layer_names:
        here, there = on_gpu.layer_group(layer), on_cpu.layer_group(layer)
        same = np.asarray(here["image"]) == np.asarray(there["image"])
        assert same.mean() > 0.99, layer
        for name, near in ("score", 1e-3), ("occlusion", 1e-3), ("projection", 2):
            if name in there:
                ours, theirs = np.asarray(here[name])[same], np.asarray(there[name])[same]
                close = np.isclose(ours, theirs, rtol=1e-3, atol=near, equal_nan=True)
                assert close.mean() > 0.99, (layer, name)
    for image in (0, 7):
        ours, theirs = (run.occlusion(image).probability for run in (on_gpu, on_cpu))
        assert np.allclose(ours, theirs, atol=1e-4)


FURTHER: list[dict[str, Any]] = [
    {"kind": "top", "k": 4},
    {"kind": "invariance", "images": {"ids": [0, 5]}, "rotation": [0, 30, 90]},
    {"kind": "correspondence", "images": {"sample": 3}, "parts": ["nose"], "random": 9},
    {"kind": "evolution", "layers": ["relu2"], "units": {"ids": [0, 1]}},
    {"kind": "probe", "data": {"uri": "shapes?size=60&seed=7"}, "train": [3], "test": 2,
     "folds": 2, "features": 64},
]  # fmt: skip

NEAR = {
    "invariance/distance": 1e-2,
    "invariance/norm": 1e-2,
    "invariance/probability": 1e-4,
    "correspondence/delta": 1e-2,
    "evolution/overlap": 0.0,
    "evolution/cosine": 1e-5,
    "probe/features": 1e-3,
}
"""How far apart two devices may be, by the end of an array's path; all but a hundredth of it."""


def test_the_other_analyses_find_what_they_find_on_the_cpu(
    training: list[str], tmp_path: Path
) -> None:
    for gpus in (0, 1):
        spec = small_spec(
            compute={"gpus_per_worker": gpus},
            analyses=FURTHER,
            model={"weights": training[-1], "checkpoints": training},
        )
        run_inline(spec, tmp_path / str(gpus))
    on_cpu, on_gpu = (zarr.open_group(tmp_path / str(gpus), mode="r") for gpus in (0, 1))
    seen = set()
    for kind in sorted({name.partition("/")[0] for name in NEAR}):
        group: Any = on_cpu[kind]
        for path, array in group.members(max_depth=None):
            name = f"{kind}/{path.rpartition('/')[2]}"
            if name in NEAR and isinstance(array, zarr.Array):
                ours, theirs = np.asarray(on_gpu[f"{kind}/{path}"]), np.asarray(array)
                close = np.isclose(ours, theirs, rtol=1e-3, atol=NEAR[name], equal_nan=True)
                assert close.mean() > 0.99, (path, float(np.abs(ours - theirs).max()))
                seen.add(name)
    assert seen == set(NEAR)


def test_a_worker_without_gpu_memory_tells_so_and_with_it_the_job_goes_on(tmp_path: Path) -> None:
    """A batch is 200 MB of pixels; the model has room in 64."""
    spec = small_spec(compute={"gpus_per_worker": 1, "batch_size": 4096})
    few = 64 * 2**20 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(few)
    try:
        with pytest.raises(JobFailed, match="ran out of its GPU's memory with one batch"):
            run_inline(spec, tmp_path / "run")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    resume_inline(tmp_path / "run")
    assert deconvoy.open(tmp_path / "run").status == "done"


def test_training_goes_the_way_it_goes_on_the_cpu() -> None:
    """The first steps are alike; later ones drift apart, as rounding does in any training."""
    images, labels = draw_shapes(seed=1, size=32)
    losses = []
    for device in ("cpu", GPU):
        torch.manual_seed(0)
        model = zfnet_small()
        for part in (model.dropout6, model.dropout7):
            part.p = 0.0  # their draws are the device's own
        found = train(model.to(device), images, labels, mean=SHAPES_MEAN, std=SHAPES_STD, epochs=2)
        losses.append([epoch.loss for epoch in found])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_study_trains_on_it_what_it_trains_on_the_cpu(tmp_path: Path) -> None:
    """From the same first weights; dropout draws differ, so the first epoch is near, no more."""
    for gpus in (0, 1):
        spec = spec_of(compute={"gpus_per_worker": gpus}, repeats=1)
        run_study(spec, tmp_path / str(gpus))
    ours, theirs = (deconvoy.open(tmp_path / gpus).study() for gpus in "10")
    assert ours.loss[:, 0, 0] == pytest.approx(theirs.loss[:, 0, 0], rel=0.1)
    assert np.isfinite(ours.first_layers[0].filter).all() and (ours.first_layers[0].peak >= 0).all()
    assert deconvoy.open(tmp_path / "1").attributes["provenance"]["device"] == ["cuda"]
