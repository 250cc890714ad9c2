"""The traced graph against the untraced module: the same layers, by name, with the same values.

The oracle counts rectifier calls of the plain module; ours finds them in the graph.
"""

import copy
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18, squeezenet1_1
from torchvision.models.feature_extraction import get_graph_node_names

from deconvoy.errors import ModelUnsupported, RequestError
from tests import networks, reference
from tests.networks import Case
from tests.shared_data import needs_shared
from workers.deconvnet import project
from workers.graph import Layer, Network
from workers.switches import Switches

WITHOUT_RULE = {name: case for name, (case, _) in networks.WITHOUT_RULE.items()}
EVERY = {**networks.TINY, **WITHOUT_RULE, **networks.REAL}
EXACT = 1e-9

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def visited(network: Network, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and what each layer's visitor sees, copied at once."""
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        output = network.forward(
            images.clone(), lambda layer, maps: seen.update({layer.name: maps.clone()})
        )
    return output, seen


def as_maps(layer: Layer, values: Tensor) -> Tensor:
    return values.reshape(len(values), layer.units, layer.height, layer.width)


def assert_layers_equal_the_oracles(case: Case) -> None:
    model, images = case.model(), case.images(2)
    network = Network(model, case.shape)
    expected = reference.layers(model, images.clone(), case.unrectified)
    output, seen = visited(network, images)
    assert len(network.layers) == len(expected) == len(seen)
    for layer, truth in zip(network.layers, expected, strict=True):
        values = as_maps(layer, seen[layer.name])
        assert layer.rectified == truth.rectified, layer.name
        size = truth.activation.abs().max()
        if layer.ceiling is not None:  # the visitor sees what scores are taken from
            values = values.clamp(min=0)
            assert (values - truth.ranking).abs().max() <= EXACT * size, layer.name
            values = values.clamp(max=layer.ceiling)
        assert values.shape == truth.activation.shape, layer.name
        assert (values - truth.activation).abs().max() <= EXACT * size, layer.name
    logits = as_maps(network.layers[-1], output)
    assert torch.equal(logits, as_maps(network.layers[-1], seen["logits"]))


@pytest.mark.parametrize("name", EVERY)
def test_every_layer_equals_the_oracles(name: str) -> None:
    assert_layers_equal_the_oracles(EVERY[name])


@needs_shared
@pytest.mark.parametrize("name", networks.OF_SHARED_FILES)
def test_every_layer_of_a_shared_network_equals_the_oracles(name: str) -> None:
    assert_layers_equal_the_oracles(networks.OF_SHARED_FILES[name])


# --- names ---


# torchvision cannot trace the one, and of the other it keeps a convolution with its norm and its
# rectifier as one node.
UNNAMED = {"arguments_left_at_defaults", "mobilenet_v2"}


@pytest.mark.parametrize("name", sorted(set(EVERY) - UNNAMED))
def test_layers_are_named_as_torchvision_names_nodes_in_order(name: str) -> None:
    case = EVERY[name]
    model = case.model()
    _, nodes = get_graph_node_names(model)
    *ours, last = [layer.name for layer in Network(model, case.shape).layers]
    assert last == "logits"
    assert [node for node in nodes if node in ours] == ours


def layer_names(model: nn.Module, side: int) -> list[str]:
    return [layer.name for layer in Network(model.eval(), (3, side, side)).layers]


def test_squeezenet_has_26_rectifiers_and_logits() -> None:
    names = layer_names(squeezenet1_1(), 64)
    fires = [
        f"features.{fire}.{part}_activation"
        for fire in (3, 4, 6, 7, 9, 10, 11, 12)
        for part in ("squeeze", "expand1x1", "expand3x3")
    ]
    assert names == ["features.1", *fires, "classifier.2", "logits"]


def test_a_rectifier_called_twice_is_two_layers() -> None:
    names = layer_names(resnet18(), 32)
    blocks = [f"layer{stage}.{block}.relu{call}" for stage in (1, 2, 3, 4) for block in (0, 1)
              for call in ("", "_1")]  # fmt: skip
    assert names == ["relu", *blocks, "logits"]


def test_linear_bottlenecks_of_mobilenet_are_layers_named_after_their_norm() -> None:
    network = Network(mobilenet_v2().eval(), (3, 32, 32))
    linear = [layer.name for layer in network.layers[:-1] if not layer.rectified]
    assert linear == networks.BOTTLENECKS
    rectified = [layer for layer in network.layers if layer.rectified]
    assert {layer.ceiling for layer in rectified} == {6.0}
    names = [layer.name for layer in rectified]
    assert names[:3] == ["features.0.2", "features.1.conv.0.2", "features.2.conv.0.2"]


@pytest.mark.parametrize("name", EVERY)
def test_exactly_the_known_convolutions_are_unrectified_layers(name: str) -> None:
    case = EVERY[name]
    layers = Network(case.model(), case.shape).layers
    assert [layer.name for layer in layers if not layer.rectified] == [*case.unrectified, "logits"]


# --- obstacles ---


@pytest.mark.parametrize("name", [*networks.TINY, *networks.REAL])
def test_what_has_rules_has_no_obstacle(name: str) -> None:
    case = EVERY[name]
    assert not any(layer.obstacle for layer in Network(case.model(), case.shape).layers)


@pytest.mark.parametrize("name", networks.WITHOUT_RULE)
def test_an_operation_without_rule_is_named_above_it_and_not_below(name: str) -> None:
    case, operation = networks.WITHOUT_RULE[name]
    layers = Network(case.model(), case.shape).layers
    for layer in layers[-2:]:
        assert layer.obstacle is not None
        assert operation in layer.obstacle and "no rule" in layer.obstacle
    below = layers[:-2]
    assert not any(layer.obstacle for layer in below)


# --- the model is left as it was ---


def test_the_model_is_left_untouched() -> None:
    model = networks.TINY["sum_with_projection"].model().train()
    before = copy.deepcopy(model.state_dict())
    modules = [(name, type(module)) for name, module in model.named_modules()]
    network = Network(model, (3, 13, 11))
    visited(network, torch.ones(2, 3, 13, 11, dtype=torch.float64))
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [(name, type(module)) for name, module in model.named_modules()] == modules
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not module._backward_hooks
    for name, values in model.state_dict().items():
        assert torch.equal(values, before[name]), name


def test_forward_leaves_the_images_alone() -> None:
    case = networks.TINY["norm_first"]
    images = case.images(2)
    before = images.clone()
    with torch.no_grad():
        Network(case.model(), case.shape).forward(images, lambda layer, maps: None)
    assert torch.equal(images, before)


def test_the_forward_pass_keeps_no_maps_that_nobody_needs() -> None:
    makers: list[Callable[[], nn.Module]] = [networks.conv(1, 1, 3, padding=1), nn.ReLU] * 6
    network = Network(networks.chain(*makers).model().float(), (1, 4, 4))
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def count(layer: Layer, maps: Tensor) -> None:
        alive.append(sum(maps_seen() is not None for maps_seen in seen))
        seen.append(weakref.ref(maps))

    with torch.no_grad():
        network.forward(torch.zeros(1, 1, 4, 4), count)
    assert max(alive[:-1]) == 0  # but that logits are the last rectifier's output


def test_an_image_axis_survives_a_squeeze() -> None:
    case = networks.called(lambda x, a: a(x).mean((2, 3), True).squeeze(), networks.conv(3, 4, 3))
    *_, logits = Network(case.model(), case.shape).layers
    assert (logits.units, logits.height, logits.width) == (4, 1, 1)


def test_layers_pickle() -> None:
    layers = Network(networks.TINY["concat"].model(), (3, 13, 11)).layers
    assert [layer.name for layer in pickle.loads(pickle.dumps(layers))] == [
        layer.name for layer in layers
    ]


def test_switches_of_a_layer_below_every_pool_are_none() -> None:
    case = networks.TINY["pool_overlapping"]
    network = Network(case.model(), case.shape)
    first, *_, last = network.layers
    assert network.switches(case.images(1), network.path_to(first)).codes == {}
    assert len(network.switches(case.images(1), network.path_to(last)).codes) == 2


# --- refusals ---


def branching(images: Tensor, layer: nn.Module) -> Tensor:
    maps: Tensor = layer(images)
    return maps if maps.sum() > 0 else F.relu(maps)


def two_outputs(images: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    maps = layer(images)
    return maps, F.relu(maps)


def hidden_write(images: Tensor, layer: nn.Module) -> Tensor:
    maps = layer(images)
    first = maps[:, :2]
    maps.add_(1.0)
    return F.relu(first)


def hidden_write_of_turned_maps(images: Tensor, layer: nn.Module) -> Tensor:
    """With channels last in memory they are turned without a copy."""
    maps = layer(images)
    turned = maps.permute(0, 2, 3, 1).contiguous().relu_()
    return torch.cat([maps.flatten(1), turned.flatten(1)], 1)


def hidden_write_below(images: Tensor, layer: nn.Module) -> Tensor:
    maps = layer(images)
    first = maps[:, :2]
    first += 1.0
    return F.relu(maps)


def of_three_axes(images: Tensor, layer: nn.Module) -> Tensor:
    return F.relu(layer(images).flatten(2))


class TwoInputs(nn.Module):
    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return F.relu(images + others)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (branching, ["Functional", "cannot be traced", ". Its forward must not branch", "wrap"]),
        (hidden_write, ["add_", "overwrites memory that", "x = x + y for x += y"]),
        (hidden_write_of_turned_maps, ["relu_", "overwrites memory that", "inplace=False"]),
        (hidden_write_below, ["iadd", "overwrites memory that", "inplace=False"]),
        (two_outputs, ["Functional", "returns tuple", "one tensor"]),
        (of_three_axes, ["relu", "2 axes", "feature maps"]),
        (lambda x, layer: layer(x).view(1, 2, 3), ["Functional", "13×11", "view", "invalid"]),
        (lambda x, layer: layer(layer(x)), ["13×11 pixels", "parts.0", "channels", "crop"]),
        (lambda x, layer: layer.bias + 1, ["logits", "does not depend on the image"]),
    ],
)
def test_a_model_that_does_not_fit_gets_a_sentence(
    function: Callable[..., Tensor], words: list[str]
) -> None:
    model = networks.called(function, networks.conv(3, 4, 3)).model()
    with pytest.raises(ModelUnsupported) as caught:
        Network(model, (3, 13, 11))
    message = str(caught.value)
    assert all(word in message for word in words), message


def test_a_model_of_two_inputs_gets_a_sentence() -> None:
    with pytest.raises(ModelUnsupported, match="TwoInputs takes 2 inputs, but a model takes one"):
        Network(TwoInputs(), (3, 8, 8))


def test_an_unknown_layer_is_told_with_the_nearest() -> None:
    network = Network(networks.TINY["stride_2"].model(), (3, 13, 11))
    with pytest.raises(RequestError, match="no layer 'logit': did you mean logits"):
        network.layer("logit")
    with pytest.raises(RequestError, match="no layer 'x': it has 1, 3, logits"):
        network.layer("x")


# --- axes ---


def test_layers_of_turned_maps_are_shown_as_the_image_lies() -> None:
    case = networks.called(lambda x, a: F.relu(a(x).transpose(2, 3)), networks.conv(3, 4, 3))
    model, images = case.model(), case.images(2)
    network = Network(model, case.shape)
    _, seen = visited(network, images)
    layer, _ = network.layers
    assert (layer.units, layer.height, layer.width, layer.order) == (4, 11, 9, (0, 2, 1))
    assert layer.field.window_size == (3, 3)
    with torch.no_grad():
        assert torch.allclose(seen[layer.name], model(images).transpose(2, 3))
    zero, place = torch.zeros(1, dtype=torch.int64), torch.tensor([[10, 2]])
    one = torch.ones(1, dtype=torch.float64)
    signal = project(network, layer, Switches({}), zero, zero, place, one)[0]
    filters = dict(model.named_parameters())["parts.0.weight"].detach()
    assert torch.allclose(signal[:, 10:13, 2:5], filters[0])


def test_a_rectifier_of_parameters_alone_is_no_layer() -> None:
    model = networks.called(
        lambda x, a: F.relu(a(x)) + F.relu(a.bias).sum(), networks.conv(3, 4, 3)
    ).model()
    assert [layer.name for layer in Network(model, (3, 13, 11)).layers] == ["relu", "logits"]
