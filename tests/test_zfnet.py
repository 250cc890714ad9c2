"""Test the built-in networks' sizes against the paper's, their names, and what factories owe."""

import pickle

import pytest
import torch
from torch import Tensor, nn, no_grad
from torchvision.models.feature_extraction import get_graph_node_names

from workers.shapes import CLASSES, SIDE
from workers.training import MAX_FILTER_RMS, draw_shapes
from workers.zfnet import SHAPES_MEAN, SHAPES_STD, ZFNet, zfnet, zfnet_small

PAPER_SIZES = {
    "conv1": (96, 110, 110),
    "pool1": (96, 55, 55),
    "conv2": (256, 26, 26),
    "pool2": (256, 13, 13),
    "conv3": (384, 13, 13),
    "conv4": (384, 13, 13),
    "conv5": (256, 13, 13),
    "pool5": (256, 6, 6),
    "fc6": (4096,),
    "fc7": (4096,),
    "fc8": (1000,),
}
"""Zeiler & Fergus, Fig. 3."""

SMALL_SIZES = {
    "conv1": (32, 32, 32),
    "conv2": (64, 16, 16),
    "conv3": (96, 8, 8),
    "conv4": (96, 8, 8),
    "conv5": (64, 8, 8),
    "fc6": (256,),
    "fc7": (256,),
    "fc8": (len(CLASSES),),
}


@no_grad()
def _sizes(model: nn.Sequential, side: int) -> dict[str, tuple[int, ...]]:
    signal, sizes = torch.zeros(1, 3, side, side), {}
    for name, module in model.named_children():
        signal = module(signal)
        sizes[name] = tuple(signal.shape[1:])
    return sizes


def test_zfnet_has_the_sizes_of_figure_3() -> None:
    sizes = _sizes(zfnet(), side=224)
    assert {name: sizes[name] for name in PAPER_SIZES} == PAPER_SIZES


def test_zfnet_small_keeps_maps_of_eight_pixels_up_to_conv5() -> None:
    sizes = _sizes(zfnet_small(), side=SIDE)
    assert {name: sizes[name] for name in SMALL_SIZES} == SMALL_SIZES


def test_traced_names_are_the_papers_layers() -> None:
    names = get_graph_node_names(zfnet_small())[1]
    rectifiers = [name for name in names if name.startswith("relu")]
    assert rectifiers == [f"relu{number}" for number in range(1, 8)]
    assert names[-1] == "fc8"


@pytest.mark.parametrize("factory", [zfnet, zfnet_small])
def test_no_module_works_in_place_or_normalises(factory: type[ZFNet]) -> None:
    modules = list(factory().children())
    assert not any(getattr(module, "inplace", False) for module in modules)
    allowed = (nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Linear, nn.Dropout)
    assert all(isinstance(module, allowed) for module in modules)
    assert [module.p for module in modules if isinstance(module, nn.Dropout)] == [0.5, 0.5]


def test_the_networks_declare_their_transforms() -> None:
    assert zfnet().transform == {
        "resize": 256,
        "crop": 224,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    small = zfnet_small().transform
    assert (small["resize"], small["crop"]) == (SIDE, SIDE)


def test_the_declared_mean_and_std_are_those_of_shapes() -> None:
    images, _ = draw_shapes(seed=9, size=500)
    values = images.double() / 255
    torch.testing.assert_close(
        values.mean(dim=(0, 2, 3)), torch.tensor(SHAPES_MEAN).double(), atol=0.03, rtol=0
    )
    torch.testing.assert_close(
        values.std(dim=(0, 2, 3)), torch.tensor(SHAPES_STD).double(), atol=0.02, rtol=0
    )


def test_outputs_carry_the_class_names_only_when_they_are_those_classes() -> None:
    assert zfnet_small().classes == list(CLASSES)
    assert zfnet_small(num_classes=3).classes is None
    assert zfnet_small(num_classes=3).fc8.out_features == 3
    assert zfnet(num_classes=7).classes is None


def test_the_same_seed_makes_the_same_weights() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in zfnet_small().parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@no_grad()
def test_a_new_network_neither_loses_nor_blows_up_its_signal() -> None:
    torch.manual_seed(0)
    model = zfnet_small().eval()
    signal = torch.randn(16, 3, SIDE, SIDE)
    for module in model:
        signal = module(signal)
        if isinstance(module, nn.ReLU):
            assert 0.02 < signal.std() < 5
    assert signal.std() < 0.5  # undecided outputs


def test_no_first_weight_is_far_above_the_radius_that_training_clips_to() -> None:
    for model in (zfnet_small(),):
        for module in model:
            if isinstance(module, nn.Conv2d):
                assert module.weight.square().mean().sqrt() < 1.05 * MAX_FILTER_RMS


def test_a_network_survives_pickling_with_what_it_declares() -> None:
    model = zfnet_small()
    copy = pickle.loads(pickle.dumps(model))
    assert (copy.transform, copy.classes) == (model.transform, model.classes)
    assert torch.equal(copy.conv1.weight, model.conv1.weight)
