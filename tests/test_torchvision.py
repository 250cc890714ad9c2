"""Torchvision's models: the page of what works, and the small ones of each family by the oracle.

Every row of the page is traced anew, on the meta device: less than a second each.
"""

import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.shufflenetv2 import ShuffleNetV2

from deconvoy.errors import ModelUnsupported
from deconvoy.spec import DataSpec, ModelSpec, Transform
from tests.networks import Case
from tests.shared_data import DATA, needs_shared
from tests.test_deconvnet import assert_projections_equal_the_oracles
from tests.test_graph import assert_layers_equal_the_oracles
from workers.datasets import list_images
from workers.graph import Network
from workers.images import normalise
from workers.models import image_size, pack
from workers.support import Support, line, names, outline, support

PAGE = (Path(__file__).resolve().parents[1] / "docs/models.md").read_text(encoding="utf-8")
ROWS = {row.split("`")[1]: row for row in PAGE.splitlines() if row.startswith("| `")}

LONG = pytest.mark.skipif("DECONVOY_LONG" not in os.environ, reason="minutes: set DECONVOY_LONG=1")

PROJECTED = re.compile(
    "alexnet|vgg|squeezenet|resnet|resnext|wide_resnet|densenet|googlenet|inception|mobilenet_v2|"
    "shufflenet|mnasnet|regnet_x"
)


def test_the_page_has_a_row_for_every_model() -> None:
    assert list(ROWS) == names()


@pytest.mark.parametrize("name", names())
def test_a_row_of_the_page_is_what_tracing_finds(name: str) -> None:
    assert line(support(name)) == ROWS[name], "run `make docs`"


def test_the_models_of_convolutions_and_rectifiers_alone_are_projected() -> None:
    projected = {name for name, row in ROWS.items() if "scan and projection" in row}
    assert projected == {name for name in ROWS if PROJECTED.match(name)}


@pytest.mark.parametrize("name", ROWS)
def test_what_does_not_work_names_the_operation_and_the_way_out(name: str) -> None:
    *_, works, why, _ = (cell.strip() for cell in ROWS[name].split("|"))
    if works == "scan and projection":
        assert not why
    elif works == "nothing":
        assert "(" in why
        assert why.endswith("Models of tokens or attention windows cannot be analysed: take a "
                            "convolutional one.")  # fmt: skip
    else:
        assert re.fullmatch(r"scan; projection of [1-9]\d* layers?", works)
        assert "has no rule for the way down" in why


def test_a_row_says_where_projection_ends() -> None:
    assert (
        line(Support("net", 8, 2, 1234, "scan", "why"))
        == "| `net` | 8 px | 2 | 1,234 | scan | why |"
    )


# --- by the oracle -------------------------------------------------------------------------------


def resnet(**options: int) -> Callable[[], nn.Module]:
    return lambda: ResNet(Bottleneck, [1, 2, 1, 1], num_classes=10, **options)


def vgg_with_norms() -> nn.Module:
    model = models.vgg11_bn()
    model.classifier = nn.Sequential(
        nn.Linear(512 * 49, 16), nn.ReLU(inplace=True), nn.Linear(16, 10)
    )
    return model


MNASNET = ["layers.7", *(f"layers.{stage}.{block}.layers.7"
           for stage, blocks in zip(range(8, 14), (3, 3, 3, 2, 4, 1), strict=True)
           for block in range(blocks))]  # fmt: skip
SHUFFLENET = [f"stage{stage}.{part}" for stage in (2, 3, 4)
              for part in ("0.branch1.1", "0.branch2.4", "1.branch2.4")]  # fmt: skip

# Here, since it computes widths with tensors, which the meta device does not have.
REGNET = BlockParams.from_init_params(depth=6, w_0=24, w_a=24.48, w_m=2.54, group_width=16)

SMALL: Mapping[str, Case] = {
    "vgg11_bn": Case(vgg_with_norms, (3, 64, 64)),
    "squeezenet1_0": Case(lambda: models.squeezenet1_0(num_classes=10), (3, 65, 70)),
    "resnet50": Case(resnet(), (3, 64, 64)),
    "resnext50": Case(resnet(groups=32, width_per_group=4), (3, 64, 64)),
    "wide_resnet50": Case(resnet(width_per_group=128), (3, 64, 64)),
    "densenet121": Case(
        lambda: DenseNet(growth_rate=8, block_config=(2, 3, 2, 2), num_init_features=16),
        (3, 64, 72),
    ),
    "googlenet": Case(
        lambda: models.googlenet(transform_input=True, aux_logits=False, init_weights=False),
        (3, 64, 64),
    ),
    "inception_v3": Case(
        lambda: models.inception_v3(transform_input=True, aux_logits=False, init_weights=False),
        (3, 79, 75),
    ),
    "mnasnet": Case(lambda: models.MNASNet(0.5), (3, 64, 64), MNASNET),
    "shufflenet_v2": Case(
        lambda: ShuffleNetV2([2, 2, 2], [24, 48, 96, 192, 256], num_classes=10),
        (3, 64, 96),
        SHUFFLENET,
    ),
    "regnet_x": Case(
        lambda: RegNet(REGNET, num_classes=10),
        (3, 64, 64),
    ),
}
"""With what each family has of its own; alexnet, vgg11, squeezenet1_1, resnet18 and mobilenet_v2
are among ``networks.REAL``."""


@pytest.mark.parametrize("name", SMALL)
def test_layers_of_a_family_equal_the_oracles(name: str) -> None:
    assert_layers_equal_the_oracles(SMALL[name])


@pytest.mark.parametrize("name", SMALL)
def test_projections_of_a_family_equal_the_oracles(name: str) -> None:
    case = SMALL[name]
    layers = len(Network(case.model(), case.shape).layers)
    assert_projections_equal_the_oracles(case, every=max(layers // 2, 1))


# --- what bends is scanned, and what has other axes is refused -----------------------------------


CONVNEXT = ["features.0.0", *(f"features.{stage}.0.block.{part}"
            for stage in (1, 3) for part in (0, 3, 5))]  # fmt: skip
CONVNEXT.insert(4, "features.2.1")


def convnext() -> nn.Module:
    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    return ConvNeXt(blocks, num_classes=5)


def test_maps_whose_channels_come_last_are_scanned_like_others() -> None:
    case = Case(convnext, (3, 40, 33), CONVNEXT)
    assert_layers_equal_the_oracles(case)
    layers = {layer.name: layer for layer in Network(case.model(), case.shape).layers}
    assert list(layers) == [*CONVNEXT, "logits"]
    spatial, last = layers["features.1.0.block.0"], layers["features.1.0.block.3"]
    assert (last.units, last.height, last.width) == (32, spatial.height, spatial.width)
    assert last.field.window_size == spatial.field.window_size == (28, 28)
    assert last.obstacle is not None and "layer_norm" in last.obstacle


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "swin_v2_t", "maxvit_t"])
def test_a_model_of_tokens_or_windows_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        Network(outline(name, 224), (3, 224, 224))
    message = str(pickle.loads(pickle.dumps(caught.value)))
    assert "mixed rows and columns with others" in message
    assert "take a convolutional one" in message


@pytest.mark.parametrize("asked", ["auto", Transform(resize=64, crop=64)], ids=["auto", "64"])
def test_a_model_made_for_one_size_is_made_for_that_of_the_transform(
    asked: Transform | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def vit(**arguments: int) -> nn.Module:
        made.append(arguments)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())

    monkeypatch.setattr("workers.models.torchvision_factory", lambda _: vit)
    packed = pack(ModelSpec(name="torchvision/vit_h_14"), 0, asked)
    packed.build()
    side = 518 if asked == "auto" else 64
    assert packed.transform.crop == side
    assert made == [{"image_size": side}] * 2


def test_other_models_are_built_as_they_were() -> None:
    assert image_size("resnet18", 224) == image_size("convnext_tiny", 224) == {}


# --- with trained weights ------------------------------------------------------------------------


def share_right(spec: ModelSpec, transform: Transform | str, uri: str, count: int) -> float:
    """Share of some images whose most probable class is the true one, by our own pass."""
    packed = pack(spec, 0, transform)
    side = packed.transform.crop
    network = Network(packed.build(), (3, side, side))
    labels = DATA / uri / "labels.csv"
    data = DataSpec(
        uri=str(DATA / uri), limit=count, labels=str(labels) if labels.exists() else None
    )
    listing = list_images(data, packed.classes, network.layers[-1].units)
    right = 0
    for start in range(0, count, 50):
        uris, labelled = listing.uris[start : start + 50], listing.labels[start : start + 50]
        pictures = [listing.source.read(uri, packed.transform).pixels for uri in uris]
        images = normalise(torch.stack(pictures), packed.transform)
        with torch.inference_mode():
            found = network.forward(images, lambda layer, maps: None).argmax(1).tolist()
        right += sum(a == label for a, label in zip(found, labelled, strict=True))
    return right / count


@needs_shared
def test_resnet20_knows_cifar_as_well_as_the_plain_module() -> None:
    weights = DATA / "weights/resnet20_cifar10.safetensors"
    name = f"{DATA / 'weights/small_nets.py'}:ResNetCifar"
    spec = ModelSpec(name=name, weights=str(weights), arguments={"n": 3})
    share = share_right(spec, Transform(resize=32, crop=32), "cifar10-1000", 1000)
    assert share == pytest.approx(0.804)  # the plain module's, on pixels read with Pillow alone


@needs_shared
@pytest.mark.slow
@LONG
def test_mobilenet_knows_photographs_as_well_as_it_is_said_to() -> None:
    weights = DATA / "weights/mobilenet_v2.safetensors"
    spec = ModelSpec(name="torchvision/mobilenet_v2", weights=str(weights))
    share = share_right(spec, Transform(resize=256, crop=224), "imagenet1k-sample", 1000)
    assert share == pytest.approx(0.791, abs=0.002)
