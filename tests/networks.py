"""The networks that the numeric engines are tested on: a grid of tiny ones, and real ones.

A tiny network has one feature each and an odd, oblong input, so that a slip in an axis, a stride or
a border shows.  Every network comes in float64 and evaluation mode with weights, biases and
BatchNorm statistics drawn from a seed; the signals of all layers have about the image's size.
"""

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from tests.shared_data import DATA

# Threads that work on one tiny convolution and share their cores with other processes wait for each
# other: measured on two busy cores, a depthwise one takes up to 100 times as long.
torch.set_num_threads(1)

# --- how a network is made -----------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A network and what is known about it beforehand."""

    build: Callable[[], nn.Module]
    shape: tuple[int, int, int] = (3, 13, 11)
    unrectified: Sequence[str] = ()
    """Modules whose output is a layer though no rectifier follows."""

    def model(self, seed: int = 0) -> nn.Module:
        with torch.device("meta"):  # spares torch's own, slow initialisation
            model = self.build()
        return randomised(model.to_empty(device="cpu").double().eval(), seed)

    def images(self, count: int, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.shape, generator=generator, dtype=torch.float64)


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """Weights that keep the signal's size; biases and BatchNorm statistics that all matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, values in [*model.named_parameters(), *model.named_buffers()]:
            last = name.rpartition(".")[2]
            if values.ndim > 1 and last == "weight":
                values.normal_(0, math.sqrt(2 / values[0].numel()), generator=generator)
            elif last in ("weight", "running_var"):
                values.uniform_(0.5, 1.5, generator=generator)
            elif values.is_floating_point():
                values.normal_(0, 0.3, generator=generator)
            else:
                values.zero_()
    return model


class Functional(nn.Module):
    """A module made of one function of the images and some submodules (``parts.0``, ``.1`` …)."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images, *self.parts)


def chain(*make: Callable[[], nn.Module], **known: Any) -> Case:
    """Modules one after another."""
    return Case(lambda: nn.Sequential(*(build() for build in make)), **known)


def called(function: Callable[..., Any], *make: Callable[[], nn.Module], **known: Any) -> Case:
    """A function of the images and of modules."""
    return Case(lambda: Functional(function, *(build() for build in make)), **known)


def conv(inputs: int, outputs: int, *kernel: Any, **options: Any) -> Callable[[], nn.Conv2d]:
    return lambda: nn.Conv2d(inputs, outputs, *kernel, **options)


def linear(inputs: int, outputs: int) -> Callable[[], nn.Linear]:
    return lambda: nn.Linear(inputs, outputs)


def norm(channels: int) -> Callable[[], nn.BatchNorm2d]:
    return lambda: nn.BatchNorm2d(channels)


def pool(*kernel: Any, **options: Any) -> Callable[[], nn.MaxPool2d]:
    return lambda: nn.MaxPool2d(*kernel, **options)


def mean_pool(*kernel: Any, **options: Any) -> Callable[[], nn.AvgPool2d]:
    return lambda: nn.AvgPool2d(*kernel, **options)


def cells(*size: Any) -> Callable[[], nn.AdaptiveAvgPool2d]:
    return lambda: nn.AdaptiveAvgPool2d(size)


# --- tiny networks with a rule for everything ----------------------------------------------------


class PooledParameters(nn.Module):
    """Adds parameters that are pooled to the size of the maps; holds another of five axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.places = nn.Parameter(torch.zeros(1, 4, 22, 18))
        self.unused = nn.Parameter(torch.zeros(1, 1, 1, 2, 2))

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.conv(images) + F.adaptive_avg_pool2d(self.places, (11, 9)))


class Biased(nn.Module):
    """Adds parameters that depend on no image, one of them shaped like a batch of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.offset = nn.Parameter(torch.zeros(4, 1, 1))
        self.map = nn.Parameter(torch.zeros(1, 4, 11, 9))

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.map + (self.conv(images) + self.offset))


class Optional(nn.Module):
    """Branches on arguments that have a default."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(
        self, images: Tensor, twice: bool = False, extra: Tensor | None = None, mode: str = "max"
    ) -> Tensor:
        maps = torch.relu(self.conv(images))
        if extra is not None:
            maps = maps + extra
        return torch.relu(self.conv(maps)) if twice else maps.mean((2, 3))


class Shared(nn.Module):
    """One rectifier and one convolution, both called twice, and both followed by one BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.first(images))
        maps = self.relu(self.norm(self.again(maps)))
        last: Tensor = self.relu(self.norm(self.again(maps)))
        return last.mean((2, 3))


def _rectified_in_place(images: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    maps = first(images)
    F.relu(maps, inplace=True)  # what it returns is not used, what it does is
    sum_: Tensor = second(maps) + maps
    return sum_


def _rectified_by_method(images: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    maps: Tensor = second(first(images).relu_())
    return maps.add_(images[:, :1]).relu_().flatten(1)


def _residual(images: Tensor, way: nn.Module, short: nn.Module) -> Tensor:
    sum_: Tensor = way(images)
    sum_ += short(images)
    return torch.relu(sum_)


def _shrinking_shortcut(images: Tensor, stem: nn.Module, way: nn.Module) -> Tensor:
    maps = F.relu(stem(images))
    return F.relu(way(maps) + F.pad(maps[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)))


def _branches(images: Tensor, *ways: nn.Module) -> Tensor:
    return torch.cat([F.relu(way(images)) for way in ways], 1)


def _global_context(images: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    maps = F.relu(first(images))
    return F.relu(second(maps) + maps.mean((2, 3), keepdim=True))


def _flattened(images: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    maps = F.relu(first(images))
    hidden = F.relu(second(maps.view(maps.size(0), -1)))
    return F.dropout(hidden, 0.5, training=False)


def _pooled_to_one(images: Tensor, first: nn.Module) -> Tensor:
    maps = F.relu(first(images))
    return F.avg_pool2d(maps, maps.size()[2:]).squeeze(3).squeeze(2)


def _bottleneck(images: Tensor, wide: nn.Module, narrow: nn.Module, norm: nn.Module) -> Tensor:
    return torch.relu(wide(norm(narrow(images))))


def _normalised_late(images: Tensor, one: nn.Module, two: nn.Module, norm: nn.Module) -> Tensor:
    return torch.relu(norm(torch.cat([one(images), two(images)], dim=1)))


def _shuffled(images: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    """Channels in two groups, dealt out in turn, as in ShuffleNet."""
    maps = F.relu(one(images))
    count, channels, height, width = maps.size()
    maps = maps.view(count, 2, channels // 2, height, width).transpose(1, 2).contiguous()
    first, second = maps.view(count, -1, height, width).chunk(2, dim=1)
    return F.relu(torch.cat([second, two(first)], 1))


def _turned_and_back(images: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    maps = F.relu(one(images)).transpose(2, 3)
    return F.relu(two(maps).permute(0, 1, 3, 2))


def _padded_beyond(images: Tensor, one: nn.Module, two: nn.Module, three: nn.Module) -> Tensor:
    """Near the border of each map, positions whose kernels meet nothing but padding."""
    maps = F.max_pool2d(F.relu(one(images)), 2)
    return F.relu(three(F.relu(two(maps)))).mean((2, 3))


def _pooled_and_overwritten(
    images: Tensor, one: nn.Module, pooled: nn.Module, two: nn.Module
) -> Tensor:
    """The pool changes nothing, and what comes after overwrites its output."""
    maps = one(images)
    rectified = pooled(F.dropout(maps, training=False)).relu_()
    return F.relu(two(torch.cat([rectified, maps], 1)))


def _channels_last(images: Tensor, one: nn.Module, neurons: nn.Module, two: nn.Module) -> Tensor:
    maps = neurons(F.relu(one(images)).permute(0, 2, 3, 1))
    return F.relu(two(F.relu(maps.permute(0, 3, 1, 2))))


def _channels_scaled(images: Tensor, one: nn.Module) -> Tensor:
    """Channel by channel to another mean and deviation, as Inception does with ImageNet's."""
    scaled = [torch.unsqueeze(images[:, c], 1) * 0.7 - (0.1 + c) / 0.5 for c in range(3)]
    maps: Tensor = one(torch.cat(scaled, 1))
    return torch.relu(0.5 * (1 - maps / 4))


def _split_unevenly(images: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    narrow, wide = torch.split(F.relu(one(images)), [1, 3], dim=1)
    return F.relu(two(wide) + narrow[:, :, 1:-1, 1:-1])


def _overwritten_sum(images: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    maps = F.relu(one(images))
    same = F.dropout(maps, training=False)
    maps += images[:, :1, 1:-1, 1:-1]
    maps *= -0.5
    return F.relu(two(same) + maps)


def _read_twice(images: Tensor, one: nn.Module, norm: nn.Module) -> Tensor:
    maps = one(images)
    return torch.relu(norm(maps) + maps)


RELU = nn.ReLU

TINY: Mapping[str, Case] = {
    "stride_2": chain(
        conv(3, 4, 3, stride=2), RELU, conv(4, 4, 3, stride=2, padding=1), RELU, conv(4, 2, 2)
    ),
    "stride_3": chain(conv(3, 4, 2, stride=3), RELU, conv(4, 4, 3, stride=3, padding=2), RELU),
    "stride_that_skips_pixels": chain(conv(3, 4, 1, stride=2), RELU, conv(4, 3, 1, stride=4), RELU),
    "even_kernels": chain(
        conv(3, 4, 2), RELU, conv(4, 4, 4, padding=1), RELU, conv(4, 4, 6, stride=2, padding=3)
    ),
    "oblong_kernels": chain(
        conv(3, 4, (1, 3), stride=(2, 1), padding=(0, 2)), RELU, conv(4, 4, (3, 2), dilation=(1, 2))
    ),
    "dilation": chain(
        conv(3, 4, 3, dilation=2), RELU, conv(4, 4, 3, stride=2, padding=3, dilation=3), RELU
    ),
    "groups": chain(conv(3, 6, 3, groups=3), RELU, conv(6, 4, 3, stride=2, groups=2), RELU),
    "depthwise": chain(
        conv(3, 3, 3, padding=1, groups=3), RELU, conv(3, 5, 1), RELU, conv(5, 5, 3, groups=5)
    ),
    "wide_padding": chain(
        conv(3, 4, 1, padding=2), RELU, conv(4, 4, 3, padding=4), RELU, conv(4, 4, 2, stride=3)
    ),
    "wide_padding_and_stride": chain(
        conv(3, 4, 2, stride=4, padding=5), RELU, conv(4, 4, 3, padding=1, stride=1), RELU
    ),
    "padding_in_words": chain(
        conv(3, 4, 3, padding="same"),
        RELU,
        conv(4, 4, 3, padding="same", dilation=2),
        RELU,
        conv(4, 4, 5, padding="valid"),
        RELU,
    ),
    "pool_ceil_mode": chain(
        conv(3, 4, 3, padding=1),
        RELU,
        pool(2, ceil_mode=True),
        pool(3, 2, ceil_mode=True),
        conv(4, 4, 2),
        RELU,
    ),
    "pool_overlapping": chain(
        conv(3, 4, 3, padding=1), RELU, pool(3, 1), pool(5, 2), conv(4, 2, 1), RELU
    ),
    "pool_padded": chain(
        conv(3, 4, 3, padding=1), RELU, pool(3, 2, padding=1), conv(4, 4, 2), RELU, pool(2, 1, 1)
    ),
    "pool_dilated": chain(conv(3, 4, 1), RELU, pool(2, 1, dilation=3), conv(4, 4, 3), RELU),
    "pool_first": chain(pool(3, 2), conv(3, 4, 3), RELU, cells(1, 1), nn.Flatten),
    "mean_pool_counts_padding": chain(
        conv(3, 4, 3), RELU, mean_pool(3, 2, 1, count_include_pad=True), conv(4, 4, 2), RELU
    ),
    "mean_pool_without_padding": chain(
        conv(3, 4, 3), RELU, mean_pool(3, 2, 1, count_include_pad=False), conv(4, 4, 2), RELU
    ),
    "mean_pool_ceil_mode": chain(
        conv(3, 4, 2), RELU, mean_pool(3, 2, ceil_mode=True), conv(4, 4, 2), RELU
    ),
    "adaptive_uneven": chain(conv(3, 4, 3, stride=2), RELU, cells(4, 3), conv(4, 4, 2), RELU),
    "adaptive_even": chain(conv(3, 4, 2), RELU, cells(6, 5), conv(4, 4, 2), RELU),
    "adaptive_to_its_own_size": chain(
        conv(3, 4, 3, stride=2), RELU, cells(6, 5), conv(4, 4, 2), RELU, pool(2)
    ),
    "adaptive_to_its_own_size_overwritten": called(
        _pooled_and_overwritten,
        conv(3, 4, 3, stride=2),
        cells(6, 5),
        conv(8, 4, 2),
        unrectified=["parts.0"],
    ),
    "adaptive_parameters": Case(PooledParameters),
    "adaptive_upwards": chain(
        conv(3, 4, 3, stride=3), RELU, cells(6, 5), nn.Flatten, linear(120, 5), RELU
    ),
    "adaptive_to_one": chain(conv(3, 4, 1, stride=3), RELU, cells(1, 1), nn.Flatten, linear(4, 5)),
    "local_response_norm": chain(
        conv(3, 6, 3), RELU, lambda: nn.LocalResponseNorm(3, alpha=0.5), conv(6, 4, 3), RELU
    ),
    "relu6": chain(conv(3, 4, 3), nn.ReLU6, conv(4, 4, 3), lambda: nn.ReLU6(inplace=True)),
    "relu6_otherwise": called(
        lambda x, a, b, c: F.hardtanh(c(F.relu6(b(a(x).clamp(0, 6)), inplace=True)), 0.0, 6.0),
        conv(3, 4, 3),
        conv(4, 4, 3),
        conv(4, 4, 3),
    ),
    "relu_in_place": chain(
        conv(3, 4, 3),
        lambda: nn.ReLU(inplace=True),
        conv(4, 4, 3),
        norm(4),
        lambda: nn.ReLU(inplace=True),
    ),
    "relu_functional": called(
        lambda x, a, b, c: F.relu(c(torch.relu(input=b(F.relu(input=a(x)))))),
        conv(3, 4, 3),
        conv(4, 4, 3),
        conv(4, 4, 3),
    ),
    "relu_by_clamping": called(
        lambda x, a, b: b(a(x).clamp(min=0)).clamp_min(0), conv(3, 4, 3), conv(4, 4, 3)
    ),
    "relu_in_place_unreturned": called(
        _rectified_in_place, conv(3, 4, 3), conv(4, 4, 1), unrectified=["parts.1"]
    ),
    "relu_by_method": called(
        _rectified_by_method, conv(3, 4, 3, padding=1), conv(4, 4, 3, padding=1)
    ),
    "relu_twice": chain(conv(3, 4, 3), RELU, RELU, conv(4, 4, 3), RELU),
    "pool_functional": called(
        lambda x, a, b: b(F.relu(F.max_pool2d(input=a(x), kernel_size=3, stride=2, padding=1))),
        conv(3, 4, 3),
        conv(4, 4, 2),
    ),
    "mean_pool_of_computed_size": called(_pooled_to_one, conv(3, 4, 3)),
    "norm_folded": chain(
        conv(3, 4, 3, bias=False), norm(4), RELU, conv(4, 4, 3, stride=2), norm(4), RELU
    ),
    "norm_first": chain(norm(3), RELU, conv(3, 4, 3), RELU, norm(4), conv(4, 3, 3)),
    "norm_after_concat": called(_normalised_late, conv(3, 2, 3), conv(3, 3, 3), norm(5)),
    "norm_of_what_another_reads": called(_read_twice, conv(3, 4, 3), norm(4)),
    "modules_used_twice": Case(Shared),
    "linear_bottleneck": called(
        _bottleneck, conv(2, 4, 3), conv(3, 2, 1), norm(2), unrectified=["parts.2"]
    ),
    "linear_bottleneck_bare": chain(
        conv(3, 2, 1), conv(2, 4, 3), RELU, conv(4, 4, 1), unrectified=["0"]
    ),
    "linear_layers": chain(
        conv(3, 2, 3, stride=2),
        RELU,
        nn.Flatten,
        linear(60, 6),
        linear(6, 5),
        RELU,
        nn.Dropout,
        linear(5, 4),
        unrectified=["3"],
    ),
    "concat": called(_branches, conv(3, 2, 1), conv(3, 3, 3, padding=1), conv(3, 2, 5, padding=2)),
    "concat_of_strides": called(
        _branches, conv(3, 2, 3, stride=2), lambda: nn.Sequential(pool(3, 2)(), conv(3, 2, 1)())
    ),
    "concat_with_the_image": called(
        lambda x, a, b: F.relu(
            b(torch.cat([a(x), x[:, :, 1:-1, 1:-1], x[..., 1:-1, :-2]], dim=-3))
        ),
        conv(3, 2, 3),
        conv(8, 4, 3),
        unrectified=["parts.0"],
    ),
    "concat_of_one_twice": called(
        lambda x, a, b: F.relu(b(torch.cat([m := F.relu(a(x)), m], dim=1))),
        conv(3, 2, 3),
        conv(4, 4, 3),
    ),
    "sum_with_projection": called(
        _residual,
        lambda: nn.Sequential(
            conv(3, 4, 3, stride=2, padding=1)(), nn.ReLU(), conv(4, 4, 3, padding=1)(), norm(4)()
        ),
        lambda: nn.Sequential(conv(3, 4, 1, stride=2)(), norm(4)()),
    ),
    "sum_with_shrinking_shortcut": called(
        _shrinking_shortcut, conv(3, 2, 3), conv(2, 5, 3, stride=2, padding=1)
    ),
    "sum_of_one_twice": called(
        lambda x, a, b: F.relu(b((m := F.relu(a(x))) + m + 1.5)), conv(3, 2, 3), conv(2, 4, 3)
    ),
    "sum_of_a_repeated_map": called(_global_context, conv(3, 4, 3, stride=2), conv(4, 4, 1)),
    "sum_with_parameters": Case(Biased),
    "pad": called(
        lambda x, a, b: F.relu(b(F.pad(F.relu(a(F.pad(x, (0, 1, 2, 3)))), (1, -2), value=2.0))),
        conv(3, 4, 3, stride=2),
        conv(4, 4, 2),
    ),
    "pad_by_reflection": called(
        lambda x, a, b: F.relu(b(F.pad(F.relu(a(x)), (2, 1, 1, 2), mode="reflect"))),
        conv(3, 4, 3, stride=2),
        conv(4, 4, 2),
    ),
    "pad_by_module": chain(lambda: nn.ZeroPad2d((1, 2, 0, 3)), conv(3, 4, 3), RELU),
    "slices": called(
        lambda x, a, b: F.relu(b(F.relu(a(x[:, :, 2:, ::2]))[..., -7:-1, 1:])),
        conv(3, 4, 2),
        conv(4, 4, 2),
    ),
    "slices_of_channels": called(
        lambda x, a, b: F.relu(b((m := F.relu(a(x)))[:, 1:3]) + m[:, -1:]),
        conv(3, 4, 3),
        conv(2, 4, 1),
    ),
    "flattened_by_view": called(_flattened, conv(3, 4, 3, stride=4), linear(36, 5)),
    "mean_over_rows_and_columns": called(
        lambda x, a, b: b(F.relu(a(x)).mean((2, 3))), conv(3, 4, 1, stride=2), linear(4, 5)
    ),
    "arguments_left_at_defaults": Case(Optional),
    "channels_shuffled": called(_shuffled, conv(3, 4, 3), conv(2, 3, 3, padding=1)),
    "channels_shuffled_of_one_position": called(
        _shuffled, conv(3, 4, (13, 11)), conv(2, 3, 3, padding=1)
    ),
    "channels_split_unevenly": called(_split_unevenly, conv(3, 4, 3), conv(3, 2, 3)),
    "channels_last": called(_channels_last, conv(3, 4, 3), linear(4, 6), conv(6, 3, 3)),
    "channels_scaled": called(_channels_scaled, conv(3, 4, 3)),
    "sees_padding_only": called(
        _padded_beyond, conv(3, 4, 3, padding=5), conv(4, 3, 3, padding=4), conv(3, 3, 2, stride=2)
    ),
    "turned_and_back": called(_turned_and_back, conv(3, 4, 3, stride=2), conv(4, 3, (2, 3))),
    "sum_overwrites_what_is_read_later": called(
        _overwritten_sum, conv(3, 4, 3), conv(4, 4, 3, padding=1)
    ),
}


# --- tiny networks with an operation that has no rule --------------------------------------------


def _cropped_like_another(images: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    maps = one(images)
    return F.relu(two(images[:, :, : maps.size(2), : maps.size(3)]))


def _pooled_with_places(images: Tensor, one: nn.Module) -> Tensor:
    return F.relu(F.max_pool2d(one(images), 2, return_indices=True)[0])


def _stacked_rows(images: Tensor, one: nn.Module) -> Tensor:
    maps = F.relu(one(images))
    return F.relu(torch.cat([maps, maps], dim=2))


def _batch_mixed(images: Tensor, one: nn.Module) -> Tensor:
    maps = one(images)
    return F.relu(maps.reshape(-1, 11, 9).reshape(-1, 4, 11, 9))


class Scaled(nn.Module):
    """Scales each channel by a parameter, as ConvNeXt does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.scale * self.conv(images))


def _normalised_channels(images: Tensor, one: nn.Module, norm: nn.Module) -> Tensor:
    return F.relu(norm(one(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def _parts_overwritten(images: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    first, second = one(images).chunk(2, 1)
    first += 1.0  # of the same memory as its sibling and the whole, which nobody reads later
    return F.relu(two(torch.sigmoid(torch.cat([first, second], 1))))


def _gated(images: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    maps = F.relu(one(images))
    return F.relu(maps * torch.sigmoid(two(maps.mean((2, 3), keepdim=True))))


WITHOUT_RULE: Mapping[str, tuple[Case, str]] = {
    "silu": (chain(conv(3, 4, 3), nn.SiLU, conv(4, 4, 3), RELU, unrectified=["0"]), "SiLU"),
    "silu_functional": (called(lambda x, a: F.relu(F.silu(a(x))), conv(3, 4, 3)), "silu"),
    "leaky_relu": (
        chain(conv(3, 4, 3), nn.LeakyReLU, conv(4, 4, 3), RELU, unrectified=["0"]),
        "LeakyReLU",
    ),
    "sigmoid_gate": (called(_gated, conv(3, 4, 3), conv(4, 4, 1)), "sigmoid"),
    "layer_norm": (chain(conv(3, 4, 3), lambda: nn.LayerNorm([11, 9]), RELU), "LayerNorm"),
    "instance_norm": (chain(conv(3, 4, 3), lambda: nn.InstanceNorm2d(4), RELU), "InstanceNorm2d"),
    "norm_without_statistics": (
        chain(conv(3, 4, 3), lambda: nn.BatchNorm2d(4, track_running_stats=False), RELU),
        "BatchNorm2d",
    ),
    "transposed_conv": (
        chain(conv(3, 4, 3), RELU, lambda: nn.ConvTranspose2d(4, 3, 2, stride=2), RELU),
        "ConvTranspose2d",
    ),
    "padding_mode": (chain(conv(3, 4, 3, padding=1, padding_mode="reflect"), RELU), "Conv2d"),
    "same_padding_of_an_even_kernel": (chain(conv(3, 4, 2, padding="same"), RELU), "Conv2d"),
    "weighted_sum": (
        called(lambda x, a: F.relu(torch.add(a(x), x, alpha=-2)), conv(3, 3, 3, padding=1)),
        "add",
    ),
    "crop_to_a_computed_size": (
        called(_cropped_like_another, conv(3, 4, 3, stride=2), conv(3, 4, 3)),
        "getitem",
    ),
    "pool_with_places": (called(_pooled_with_places, conv(3, 4, 3)), "max_pool"),
    "concat_of_rows": (called(_stacked_rows, conv(3, 4, 3)), "cat"),
    "product": (called(lambda x, a, b: F.relu(a(x) * b(x)), conv(3, 4, 3), conv(3, 4, 3)), "mul"),
    "divided_by_a_signal": (called(lambda x, a: F.relu(2 / a(x)), conv(3, 4, 3)), "div"),
    "scaled_by_parameters": (Case(Scaled), "mul"),
    "norm_of_channels": (
        called(_normalised_channels, conv(3, 4, 3), lambda: nn.LayerNorm(4)),
        "LayerNorm",
    ),
    "hardswish_functional": (
        called(lambda x, a: F.relu(F.hardswish(a(x))), conv(3, 4, 3)),
        "swish",
    ),
    "parts_overwritten": (
        called(_parts_overwritten, conv(3, 4, 3), conv(4, 4, 3), unrectified=["parts.0"]),
        "sigmoid",
    ),
    "reshape_across_images": (called(_batch_mixed, conv(3, 4, 3)), "reshape"),
    "clamp_elsewhere": (called(lambda x, a: F.relu(a(x).clamp(min=-1)), conv(3, 4, 3)), "clamp"),
}
"""The network, and the operation that its obstacle must name."""


# --- real networks -------------------------------------------------------------------------------


def _narrow_classifier(name: str, flat: int, side: int) -> Callable[[], nn.Module]:
    """A torchvision model with 16 neurons instead of 4096: 100 million weights test nothing."""

    def build() -> nn.Module:
        model: Any = models.get_model(name)
        model.classifier = nn.Sequential(
            *(nn.Dropout(), nn.Linear(flat * side**2, 16), nn.ReLU(inplace=True)),
            *(nn.Linear(16, 16), nn.ReLU(inplace=True), nn.Linear(16, 10)),
        )
        return model  # type: ignore[no-any-return]

    return build


def _zfnet() -> nn.Module:
    from workers.zfnet import zfnet

    model: Any = zfnet()
    model.fc6, model.fc7, model.fc8 = nn.Linear(9216, 16), nn.Linear(16, 16), nn.Linear(16, 10)
    return model  # type: ignore[no-any-return]


def _zfnet_small() -> nn.Module:
    from workers.zfnet import zfnet_small

    return zfnet_small()


def _of_shared_file(file: str, factory: str, *arguments: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        spec = importlib.util.spec_from_file_location(file, DATA / "weights" / f"{file}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model: nn.Module = getattr(module, factory)(*arguments)
        return model

    return build


BOTTLENECKS = ["features.1.conv.2", *(f"features.{block}.conv.3" for block in range(2, 18))]
"""MobileNetV2 projects to few channels without a rectifier; the last modules are BatchNorms."""

REAL: Mapping[str, Case] = {
    "alexnet": Case(_narrow_classifier("alexnet", 256, 6), (3, 96, 96)),
    "vgg11": Case(_narrow_classifier("vgg11", 512, 7), (3, 64, 64)),
    "squeezenet1_1": Case(lambda: models.squeezenet1_1(), (3, 96, 96)),
    "resnet18": Case(lambda: models.resnet18(), (3, 64, 64)),
    "mobilenet_v2": Case(lambda: models.mobilenet_v2(width_mult=0.25), (3, 64, 64), BOTTLENECKS),
    "zfnet": Case(_zfnet, (3, 224, 224)),
    "zfnet_small": Case(_zfnet_small, (3, 64, 64)),
}

OF_SHARED_FILES: Mapping[str, Case] = {
    "bvlc_googlenet": Case(_of_shared_file("bvlc_googlenet", "BVLCGoogLeNet"), (3, 96, 96)),
    "resnet20": Case(_of_shared_file("small_nets", "ResNetCifar", 3), (3, 32, 32)),
}
"""In ``../shared/data/weights``; without their weights."""
