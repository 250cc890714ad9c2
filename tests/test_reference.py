"""The oracle itself, against tensors worked out by hand.

Every expected number below was computed on paper, and the comment shows how; only the AlexNet test
compares with code, a chain of transposed convolutions written out stage by stage.
"""

import ast
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import alexnet

from tests import reference
from tests.reference import MISSING, Hit, Seed

INF = math.inf


def conv(weight: list[list[list[list[float]]]], bias: float = 0.0, **options: object) -> nn.Conv2d:
    """A float64 convolution with the given "unit channel row col" weights and one bias for all."""
    filters = torch.tensor(weight, dtype=torch.float64)
    units, channels, height, width = filters.shape
    layer = nn.Conv2d(channels, units, (height, width), dtype=torch.float64, **options)  # type: ignore[arg-type]
    layer.weight.data, layer.bias.data = filters, torch.full((units,), bias, dtype=torch.float64)  # type: ignore[union-attr]
    return layer


def pointwise(*weight: list[float], bias: float = 0.0) -> nn.Conv2d:
    """A 1x1 convolution: one list of channel weights a unit."""
    return conv([[[[value]] for value in unit] for unit in weight], bias)


def picture(rows: list[list[float]]) -> Tensor:
    """One channel as "channel row col"."""
    return torch.tensor([rows], dtype=torch.float64)


def fill(module: nn.Module, weight: float, bias: float = 0.0) -> None:
    """Set all weights to one value and all biases to another."""
    for name, parameter in module.named_parameters():
        parameter.data.fill_(bias if name == "bias" else weight)


class Functional(nn.Module):
    """A module made of one function of the image and some submodules."""

    def __init__(self, forward: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.function = forward
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images, *self.parts)


# --- layers ---


@pytest.mark.parametrize(
    "rectify",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        F.relu,
        F.relu_,
        torch.relu,
        torch.relu_,
        Tensor.relu,
        Tensor.relu_,
        nn.ReLU6(),
        F.relu6,
        lambda x: F.relu(x, True),
        lambda x: F.relu(input=x),
        lambda x: F.hardtanh(x, 0.0, 6.0),
        lambda x: F.hardtanh_(x, min_val=0.0, max_val=6.0),
        lambda x: torch.clamp(x, min=0),
        lambda x: x.clamp_(0),
        lambda x: x.clip(0.0, 6.0),
        lambda x: torch.clamp_min(x, 0),
        nn.Threshold(0.0, 0.0),
    ],
)
def test_every_way_to_rectify_is_one_layer_and_has_the_same_projection(
    rectify: Callable[[Tensor], Tensor],
) -> None:
    # Image (-1, 2) -> the layer (0, 2), sum 2 -> logits 5*2.
    # Down from the logits: 10 * 5 = 50 at both pixels; the forward mask would leave (0, 50).
    net = Functional(lambda x, head: head(rectify(x).sum((2, 3))), nn.Linear(1, 1).double())
    fill(net.parts[0], weight=5.0)
    image = picture([[-1.0, 2.0]])
    rectified, logits = reference.layer_outputs(net, image[None])
    assert rectified.tolist() == [[[[0.0, 2.0]]]]
    assert logits.tolist() == [[[[10.0]]]]
    assert reference.deconvnet(net, image, -1, 0).tolist() == [[[50.0, 50.0]]]


@pytest.mark.parametrize(
    "bend",
    [
        lambda x: x.clamp(min=-1),
        lambda x: F.hardtanh(x),
        lambda x: F.threshold(x, 0.0, 1.0),
        lambda x: x.clamp(max=0),
    ],
)
def test_a_clamp_elsewhere_than_at_zero_is_no_layer(bend: Callable[[Tensor], Tensor]) -> None:
    net = Functional(lambda x: bend(x).flatten(1))
    assert len(reference.layer_outputs(net, picture([[1.0]])[None])) == 1


def test_a_later_in_place_write_does_not_alter_a_recorded_layer() -> None:
    def forward(x: Tensor) -> Tensor:
        x = F.relu(x)
        x += 100
        return x.flatten(1)

    outputs = reference.layer_outputs(Functional(forward), picture([[-1.0, 2.0]])[None])
    assert [layer.flatten().tolist() for layer in outputs] == [[0.0, 2.0], [100.0, 102.0]]


@pytest.mark.parametrize("rectify", [nn.ReLU6(inplace=True), F.relu6, lambda x: x.clamp(0, 6)])
def test_a_saturated_relu6_is_ranked_by_its_input_and_projected_from_its_output(
    rectify: Callable[[Tensor], Tensor],
) -> None:
    net = Functional(lambda x, double: rectify(double(x)).flatten(1), pointwise([2.0]))
    image = picture([[5.0, -1.0, 4.0]])  # times 2: 10, -2, 8
    layer = reference.layers(net, image[None])[0]
    assert layer.activation.flatten().tolist() == [6.0, 0.0, 6.0]
    assert layer.ranking.flatten().tolist() == [10.0, 0.0, 8.0]
    assert reference.deconvnet(net, image, 0, 0, 0, 2).tolist() == [[[0.0, 0.0, 12.0]]]


def test_a_named_bottleneck_is_a_signed_layer_in_its_place() -> None:
    # Image 1 -> relu 1 -> bottleneck -3 -> relu 0 -> logits 0.
    net = nn.Sequential(nn.ReLU(), pointwise([-3.0]), nn.ReLU(inplace=True), nn.Flatten()).eval()
    image = picture([[1.0]])
    seen = reference.layers(net, image[None], also=("1",))
    assert [layer.activation.item() for layer in seen] == [1.0, -3.0, 0.0, 0.0]
    assert [layer.rectified for layer in seen] == [True, False, True, False]
    # Seed -3, through the filter -3: 9.
    assert reference.deconvnet(net, image, 1, 0, also=("1",)).item() == 9.0


def test_no_hook_is_left_behind_after_a_failure() -> None:
    net = nn.Sequential(pointwise([1.0]), nn.Sigmoid()).eval()
    with pytest.raises(NotImplementedError, match="sigmoid"):
        reference.deconvnet(net, picture([[1.0]]), 0, 0, also=("0",))
    with pytest.raises(AttributeError):
        reference.layers(net, picture([[1.0]])[None], also=("0", "absent"))
    assert not net[0]._forward_hooks


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.eval"):
        reference.layer_outputs(nn.Sequential(nn.ReLU(), nn.Dropout()), torch.zeros(1, 2))


# --- the strongest nine ---


def test_an_image_has_one_hit_at_its_first_maximum() -> None:
    maps = torch.tensor([[[1.0, 7.0], [7.0, 7.0]]])
    assert reference.top_nine([(4, maps)], k=2) == [[Hit(7.0, 4, 0, 1), MISSING]]


def test_equal_scores_stand_in_the_order_of_image_ids() -> None:
    scores = [(30, torch.tensor([2.0])), (5, torch.tensor([2.0])), (7, torch.tensor([3.0]))]
    assert [hit.image for hit in reference.top_nine(scores, k=3)[0]] == [7, 5, 30]


def test_units_that_are_only_negative_are_ranked_where_the_layer_is_not_rectified() -> None:
    scores = [(0, torch.tensor([-5.0])), (1, torch.tensor([-2.0]))]
    assert reference.top_nine(scores, k=3, rectified=False) == [
        [Hit(-2.0, 1, 0, 0), Hit(-5.0, 0, 0, 0), MISSING]
    ]


def test_a_zero_of_a_rectified_layer_is_no_hit_and_a_zero_logit_is_one() -> None:
    scores = [(0, torch.tensor([0.0, 1.0]))]
    assert reference.top_nine(scores, k=1) == [[MISSING], [Hit(1.0, 0, 0, 0)]]
    assert reference.top_nine(scores, k=1, rectified=False)[0] == [Hit(0.0, 0, 0, 0)]


@pytest.mark.parametrize("bad", [math.nan, INF])
def test_a_score_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="image 3"):
        reference.top_nine([(3, torch.tensor([bad]))])
    net = nn.Sequential(nn.Flatten()).eval()
    with pytest.raises(ValueError, match="image 3"):
        reference.brute_force(net, [(3, picture([[bad]]))])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_brute_force_over_images_is_the_top_nine_of_every_layer(batch_size: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.ReLU6(), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()).eval()
    # Whole numbers from -8 to 8, so that ties within and between images are common.
    images = [(id_, torch.randint(-8, 9, (2, 4, 4)).double()) for id_ in (9, 2, 40, 3, 8, 21, 5)]
    found = reference.brute_force(net, iter(images), batch_size, k=5)
    for index, hits in enumerate(found):
        seen = [(id_, reference.layers(net, image[None])[index]) for id_, image in images]
        scores = [(id_, layer.ranking[0]) for id_, layer in seen]
        assert hits == reference.top_nine(scores, k=5, rectified=seen[0][1].rectified)
    assert len(found) == 3
    assert any(hit.score > 6 for hits in found[0] for hit in hits)


def test_an_image_id_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        reference.brute_force(nn.Flatten().eval(), [(1, picture([[1.0]]))] * 2)


# --- the deconvnet ---


def test_a_convolution_is_projected_by_its_own_filter() -> None:
    # Filter [[1 -2] [3 -1]] over the image: -4 2 / 4 -6, rectified 0 2 / 4 0.
    # From (0, 1), activation 2: twice the filter, at rows 0-1 and columns 1-2.
    net = nn.Sequential(conv([[[[1.0, -2.0], [3.0, -1.0]]]]), nn.ReLU(), nn.Flatten()).eval()
    image = picture([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0], [2.0, 0.0, 1.0]])
    assert reference.layer_outputs(net, image[None])[0].tolist() == [[[[0.0, 2.0], [4.0, 0.0]]]]
    expected = [[[0.0, 2.0, -4.0], [0.0, 6.0, -2.0], [0.0, 0.0, 0.0]]]
    assert reference.deconvnet(net, image, 0, 0, 0, 1).tolist() == expected
    halved = [[[value / 2 for value in row] for row in expected[0]]]
    assert reference.deconvnet(net, image, 0, 0, 0, 1, seed=1.0).tolist() == halved


@pytest.mark.parametrize("inplace", [False, True])
def test_the_signal_is_rectified_by_its_own_sign_not_by_the_forward_mask(inplace: bool) -> None:
    # Up: 5 -> (5, -5) -> (5, 0) -> 100 - 2*5 + 3*0 = 90.
    # Down: 90 -> (-180, 270) -> rectified (0, 270) -> 1*0 - 1*270 = -270.
    # The plain gradient would keep -180 of the first alone, guided backprop nothing.
    net = nn.Sequential(
        pointwise([1.0], [-1.0]),
        nn.ReLU(inplace),
        pointwise([-2.0, 3.0], bias=100.0),
        nn.ReLU(inplace),
        nn.Flatten(),
    ).eval()
    assert reference.deconvnet(net, picture([[5.0]]), 1, 0).item() == -270.0


def test_overlapping_pools_add_up_where_they_share_a_maximum() -> None:
    # Windows (1 5) and (5 2): both maxima are pixel 1.  Their sum 10 comes down as 10 a window.
    net = nn.Sequential(
        nn.ReLU(), nn.MaxPool2d((1, 2), 1), conv([[[[1.0, 1.0]]]]), nn.ReLU(), nn.Flatten()
    ).eval()
    image = picture([[1.0, 5.0, 2.0]])
    assert reference.deconvnet(net, image, 1, 0).tolist() == [[[0.0, 20.0, 0.0]]]


def test_the_switch_is_the_first_of_equal_maxima() -> None:
    net = nn.Sequential(nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()).eval()
    image = picture([[1.0, 3.0], [3.0, 3.0]])
    assert reference.deconvnet(net, image, 0, 0).tolist() == [[[0.0, 3.0], [0.0, 0.0]]]


def test_contrast_normalisation_passes_the_signal_unchanged() -> None:
    # 2 -> 2 / (1 + 2*2) = 0.4 -> 3 * 0.4 = 1.2.  Down: 1.2 * 3 = 3.6, not a fifth of it.
    norm = nn.LocalResponseNorm(1, alpha=1.0, beta=1.0, k=1.0)
    net = nn.Sequential(nn.ReLU(), norm, pointwise([3.0]), nn.ReLU(), nn.Flatten()).eval()
    image = picture([[2.0]])
    assert reference.layer_outputs(net, image[None])[1].item() == pytest.approx(1.2, rel=1e-12)
    assert reference.deconvnet(net, image, 1, 0).item() == pytest.approx(3.6, rel=1e-12)


def test_batch_norm_is_transposed_without_its_offset() -> None:
    # (3 - 1) / sqrt(3 + 1) * 4 + 7 = 11.  Down: 11 * 4 / 2 = 22.
    norm = nn.BatchNorm2d(1, eps=1.0).double()
    norm.running_mean, norm.running_var = torch.ones(1).double(), torch.full((1,), 3.0).double()
    fill(norm, weight=4.0, bias=7.0)
    net = nn.Sequential(norm, nn.ReLU(), nn.Flatten()).eval()
    assert reference.deconvnet(net, picture([[3.0]]), 0, 0).item() == 22.0


def test_an_average_pool_spreads_the_signal_evenly() -> None:
    net = nn.Sequential(nn.AvgPool2d(2), nn.ReLU(), nn.Dropout(), nn.Flatten()).eval()
    image = picture([[1.0, 2.0], [3.0, 6.0]])
    assert reference.deconvnet(net, image, 0, 0).tolist() == [[[0.75, 0.75], [0.75, 0.75]]]


def test_a_residual_sum_sends_the_signal_down_both_ways() -> None:
    # 4 -> relu(2*4) = 8 -> relu(8 - 8/4) = 6.  Down: 6 + 6*(-1/4) = 4.5, rectified, times 2 = 9.
    def forward(x: Tensor, stem: nn.Module, block: nn.Module) -> Tensor:
        shortcut = F.relu(stem(x))
        branch = block(shortcut)
        branch += shortcut
        return F.relu_(branch).flatten(1)

    net = Functional(forward, pointwise([2.0]), pointwise([-0.25]))
    assert reference.deconvnet(net, picture([[4.0]]), 1, 0).item() == 9.0


def test_an_in_place_rectifier_changes_what_the_shortcut_carries_as_in_the_model() -> None:
    # x = -3 rectified in place is 0 for the shortcut, too: 0 + (0 + 5) = 5.  Down: the shortcut
    # brings 5, the branch 5*2; both go through the rectifier, then the stem's -1: -15.
    def forward(x: Tensor, stem: nn.Module, block: nn.Module) -> Tensor:
        x = stem(x)
        branch = block(torch.relu_(x))
        return F.relu(x + branch).flatten(1)

    net = Functional(forward, pointwise([-1.0]), pointwise([2.0], bias=5.0))
    image = picture([[3.0]])
    assert [v.item() for v in reference.layer_outputs(net, image[None])] == [0.0, 5.0, 5.0]
    assert reference.deconvnet(net, image, 1, 0).item() == -15.0


def test_a_concatenation_splits_the_signal() -> None:
    # Branches 1*2 and max(0, -2) = 0; head 3*2 + 4*0 = 6.  Down: (18, 24) -> 18 - 24 = -6.
    def forward(x: Tensor, left: nn.Module, right: nn.Module, head: nn.Module) -> Tensor:
        return F.relu(head(torch.cat([F.relu(left(x)), F.relu(right(x))], 1))).flatten(1)

    net = Functional(forward, pointwise([1.0]), pointwise([-1.0]), pointwise([3.0, 4.0]))
    assert reference.deconvnet(net, picture([[2.0]]), 2, 0).item() == -6.0


def test_a_logit_is_projected_with_its_sign() -> None:
    # 2 -> -3*2 = -6.  Down: -6 * -3 = 18.
    net = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(1, 1).double()).eval()
    fill(net[2], weight=-3.0)
    assert reference.deconvnet(net, picture([[2.0]]), -1, 0).item() == 18.0


def test_several_seeds_share_a_forward_pass() -> None:
    net = nn.Sequential(nn.ReLU(), pointwise([2.0]), nn.ReLU(), nn.Flatten()).eval()
    image = picture([[1.0, 3.0]])
    seeds = [Seed(1, 0, 0, 1), Seed(0, 0, 0, 0), Seed(1, 0, 0, 0, value=5.0)]
    rows = [projection[0, 0].tolist() for projection in reference.deconvnets(net, image, seeds)]
    assert rows == [[0.0, 12.0], [1.0, 0.0], [10.0, 0.0]]
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("name", "bend"),
    [
        ("sigmoid", lambda x: x.sigmoid()),
        ("silu", F.silu),
        ("leaky_relu", F.leaky_relu),
        ("clamp", lambda x: x.clamp(-1, 1)),
        ("softmax", lambda x: F.softmax(x, 1)),
        ("mul", lambda x: x * x),
        ("max", lambda x: x.max(3, keepdim=True).values),
    ],
)
def test_an_op_without_a_rule_is_refused_by_name(
    name: str, bend: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(NotImplementedError, match=f"'{name}'"):
        reference.deconvnet(Functional(lambda x: bend(x).flatten(1)), picture([[1.0]]), 0, 0)


def explicit_projection(
    stages: list[nn.Module], image: Tensor, unit: int, y: int, x: int
) -> Tensor:
    """Stage by stage: record the switches going up; then unpool, rectify and filter coming down."""
    inputs, switches, values = [], [], image[None]
    for stage in stages:
        inputs.append(values)
        if isinstance(stage, nn.MaxPool2d):
            values, places = F.max_pool2d(values, 3, 2, return_indices=True)
        else:
            values, places = stage(values.clone()), torch.empty(0)
        switches.append(places)
    signal = torch.zeros_like(values)
    signal[0, unit, y, x] = values[0, unit, y, x]
    for stage, below, places in zip(stages[::-1], inputs[::-1], switches[::-1], strict=True):
        if isinstance(stage, nn.MaxPool2d):
            flat = torch.zeros_like(below).flatten(2)
            signal = flat.scatter_add(2, places.flatten(2), signal.flatten(2)).view_as(below)
        elif isinstance(stage, nn.ReLU):
            signal = signal.clamp(min=0)
        elif isinstance(stage, nn.Conv2d):
            pad, stride = int(stage.padding[0]), stage.stride[0]
            full = F.conv_transpose2d(signal, stage.weight, stride=stride)
            full = F.pad(full, (0, stride, 0, stride))  # rows the last stride did not reach
            signal = full[..., pad : pad + below.shape[2], pad : pad + below.shape[3]]
    return signal[0]


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_alexnet_agrees_with_the_chain_written_out(dtype: torch.dtype, error: float) -> None:
    torch.manual_seed(1)
    features = alexnet(weights=None).features[:12].to(dtype).eval()  # up to the last rectifier
    stages = list(features)
    image = torch.randn(3, 96, 80, dtype=dtype)
    with torch.no_grad():
        top = features(image[None])[0]
        unit, y, x = (int(i) for i in torch.unravel_index(top.argmax(), top.shape))
        expected = explicit_projection(stages, image, unit, y, x)
    projection = reference.deconvnet(features, image, 4, unit, y, x)
    assert projection.dtype == dtype
    largest = float(expected.abs().max())
    assert largest > 0
    assert float((projection - expected).abs().max()) <= error * largest


# --- switches that rounding may flip ---


def pooled(rows: list[list[float]]) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.MaxPool2d((1, 2)), nn.ReLU(), nn.Flatten()).eval(), picture(rows)


@pytest.mark.parametrize(
    ("row", "close"),
    [
        ([1.0, 1.0 + 1e-8], True),
        ([1.0, 1.0 + 1e-5], False),
        ([3.0, 3.0], True),  # a tie that is not zero
        ([0.0, 0.0], False),  # a tie of zeros
        ([0.0, -1.0], False),
        ([-2.0, -2.0 - 1e-8], True),
    ],
)
def test_a_switch_is_close_if_the_two_largest_nearly_agree(row: list[float], close: bool) -> None:
    net, image = pooled([row])
    assert reference.has_close_switch(net, image, 0) is close


def test_a_close_switch_off_the_signals_way_is_no_excuse() -> None:
    net, image = pooled([[1.0, 2.0, 5.0, 5.0]])
    assert reference.has_close_switch(net, image, 0)
    assert reference.has_close_switch(net, image, 0, seed=Seed(0, 0, 0, 1))
    assert not reference.has_close_switch(net, image, 0, seed=Seed(0, 0, 0, 0))
    # (2 - 1) / 2 where the signal passes, infinite where it does not.
    margins = reference.pooling_margins(net, image, Seed(0, 0, 0, 0))
    assert [margin.tolist() for margin in margins] == [[[[0.5, INF]]]]


def test_a_close_switch_above_the_layer_is_no_excuse() -> None:
    net = nn.Sequential(nn.ReLU(), nn.MaxPool2d((1, 2)), nn.ReLU(), nn.Flatten()).eval()
    image = picture([[4.0, 4.0]])
    assert [reference.has_close_switch(net, image, i) for i in (0, 1, 2)] == [False, True, True]
    assert reference.pooling_margins(net, image, Seed(0, 0)) == []


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, padding=1),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d((1, 3), stride=(2, 1)),
        nn.AdaptiveMaxPool2d((3, None)),
        nn.AdaptiveMaxPool2d(1),
    ],
)
def test_margins_look_at_the_windows_that_torch_pools(pool: nn.Module) -> None:
    # The largest value of each window we look at must be the value torch pooled there.
    torch.manual_seed(2)
    net = nn.Sequential(pool, nn.ReLU(), nn.Flatten()).eval()
    image = torch.randn(2, 8, 7, dtype=torch.float64)
    ascent = reference._ascend(net, image, ())
    outputs = ascent.pools[0].output[0].detach()
    for row in range(outputs.shape[1]):
        for col in range(outputs.shape[2]):
            window = ascent.pools[0].window(row, col)
            assert window.amax(1).tolist() == outputs[:, row, col].tolist()


# --- receptive fields ---


@pytest.mark.parametrize(
    ("stages", "place", "box"),
    [
        # 3x3 stride 2 padding 1: output i sees 2i-1 .. 2i+1, clipped at the border.
        ([nn.Conv2d(1, 2, 3, 2, 1)], (0, 2), (0, 3, 2, 6)),
        # Dilation 3: output i sees i, i+3, i+6; the box is the hull.
        ([nn.Conv2d(1, 2, 3, dilation=3)], (1, 0), (1, 0, 8, 7)),
        # ceil_mode over 9: windows start at 0 2 4 6 8 for 2x2; the last sees pixel 8 alone.
        ([nn.MaxPool2d(2, ceil_mode=True)], (4, 0), (8, 0, 9, 2)),
        # A 3x3 pool of stride 2 over a 3x3 convolution: i sees 2i .. 2i+4.
        ([nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, 2)], (1, 0), (2, 0, 7, 5)),
        # LRN looks at neighbouring channels, not at neighbouring pixels.
        ([nn.Conv2d(1, 6, 1), nn.LocalResponseNorm(5)], (3, 4), (3, 4, 4, 5)),
        ([nn.ReLU(inplace=True), nn.AvgPool2d(3)], (1, 2), (3, 6, 6, 9)),
        # A 1x1 convolution with padding: its corner sees padding only.
        ([nn.Conv2d(1, 1, 1, padding=1)], (0, 0), (0, 0, 0, 0)),
    ],
)
def test_a_receptive_field_is_the_one_counted_by_hand(
    stages: list[nn.Module], place: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    net = nn.Sequential(*stages).eval()  # its output is the last layer
    assert reference.receptive_box(net, (1, 9, 9), -1, *place) == box


def test_the_field_of_a_sum_covers_both_branches_and_weights_of_zero_count() -> None:
    # The branch's 3x3 sees 1 around, the shortcut the pixel itself; all filters are zero.
    net = Functional(lambda x, c: F.relu(c(x) + x), nn.Conv2d(1, 1, 3, padding=1, bias=False))
    fill(net.parts[0], weight=0.0)
    assert reference.receptive_box(net, (1, 6, 8), 0, 0, 4) == (0, 3, 2, 6)


def test_the_field_of_a_layer_is_the_largest_of_its_units() -> None:
    # Unit 0 sees its own pixel, unit 1 one pixel around it.
    net = Functional(
        lambda x, *branches: torch.cat([branch(x) for branch in branches], 1),
        nn.Conv2d(1, 1, 1),
        nn.Conv2d(1, 1, 3, padding=1),
    )
    assert reference.receptive_box(net, (1, 6, 6), -1, 3, 2) == (2, 1, 5, 4)


def test_one_sweep_serves_many_places_and_a_neuron_sees_everything() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 3 * 4, 5)).eval()
    boxes = reference.receptive_boxes(net, (3, 5, 6), [(0, 0, 0), (0, 2, 3), (1, 0, 0)])
    assert boxes == [(0, 0, 3, 3), (2, 3, 5, 6), (0, 0, 5, 6)]
    assert next(net.parameters()).dtype == torch.float32  # probed in float64, left as it was


# --- images ---


def test_an_image_is_turned_upright_made_rgb_resized_and_cropped(tmp_path: Path) -> None:
    # Stored 40 wide, 20 high, black left and white right; orientation 6 turns it clockwise, so
    # upright it is 20 wide, 40 high, black on top.  Shorter side to 10: 10 x 20; the middle 8.
    stored = Image.new("L", (40, 20), 0)
    stored.paste(255, (20, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "turned.png", exif=exif)
    pixels = reference.preprocess(tmp_path / "turned.png", 10, 8)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == torch.uint8
    assert bool((pixels[:, :3] == 0).all())
    assert bool((pixels[:, 5:] == 255).all())


def test_normalising_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel() -> None:
    pixels = torch.tensor([[[255]], [[0]], [[51]]], dtype=torch.uint8)  # 1, 0, 0.2
    values = reference.normalise(pixels, (0.5, 0.25, 0.2), (0.5, 0.125, 1.0), torch.float64)
    assert values.flatten().tolist() == [1.0, -2.0, 0.0]
    assert reference.normalise(pixels, (0, 0, 0), (1, 1, 1)).dtype == torch.float32


# --- independence ---


def test_the_oracle_imports_nothing_of_ours_and_no_tracer() -> None:
    tree = ast.parse(Path(reference.__file__).read_text(encoding="utf-8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import would be one of ours"
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    allowed = set(sys.stdlib_module_names) - {"importlib", "runpy"}
    allowed |= {"torch", "torchvision", "numpy", "PIL"}
    assert {name.split(".")[0] for name in imported} <= allowed
    dotted = imported | {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    tracers = ("torch.fx", "torch.jit", "torch.export", "torchvision.models")
    assert not [name for name in dotted if name.startswith(tracers)]
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "__import__"]
