"""What a GPU computes, beside the oracles: both engines on every network, and whole jobs.

The same assertions as on a CPU, with the model on the GPU; the oracles stay where they are.
"""

from pathlib import Path

import numpy as np
import pytest

import deconvoy
from deconvoy.spec import Method
from tests import networks, test_scan
from tests.runs import run_inline, small_spec
from tests.test_deconvnet import METHODS, assert_projections_equal_the_oracles
from tests.test_occlusion import EXACT, GRID_OF_TYPES, assert_sweep_equals_the_oracles
from workers.graph import Network

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
