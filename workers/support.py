"""Say of every classification model of torchvision what works with it: the page docs/models.md, and
service/torchvision.json, from which the service answers without torch.

Nothing is computed and no weights are made: models are built and traced on torch's meta device, at
the size of their own preset.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from deconvoy.errors import ModelUnsupported
from workers.graph import Layer, Network
from workers.models import image_size, torchvision_factory


@dataclass(frozen=True)
class Support:
    """A row of the page."""

    model: str
    side: int
    """Of its images, in pixels."""
    layers: int
    units: int
    works: str
    why: str
    """Why not more than that works; empty where everything does."""


class _WeightsOnMeta(TorchFunctionMode):
    """Puts weights on the meta device, but not the numbers that give widths."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def names() -> list[str]:
    """All classification models of this version of torchvision."""
    found: list[str] = models.list_models(module=models)
    return found


def outline(name: str, side: int) -> nn.Module:
    """The model for images of ``side`` pixels, without any weights."""
    with _WeightsOnMeta():
        return torchvision_factory(name)(**image_size(name, side)).to("meta").eval()


def support(name: str) -> Support:
    """Trace one model and say what works."""
    preset: Any = models.get_model_weights(name).DEFAULT
    side = int(preset.transforms().crop_size[0])
    try:
        layers = Network(outline(name, side), (3, side, side)).layers
    except ModelUnsupported as error:
        return Support(name, side, 0, 0, "nothing", str(error))
    units = sum(layer.units for layer in layers)
    return Support(name, side, len(layers), units, *_verdict(layers))


def _verdict(layers: Sequence[Layer]) -> tuple[str, str]:
    free = [layer for layer in layers if layer.obstacle is None]
    if len(free) == len(layers):
        return "scan and projection", ""
    first = next(layer.obstacle for layer in layers if layer.obstacle is not None)
    count = "1 layer" if len(free) == 1 else f"{len(free)} layers"
    return f"scan; projection of {count}", f"above those, {first}"


def write(page_path: Path, data_path: Path) -> None:
    """Both files, of all models; a minute's work."""
    rows = [support(name) for name in names()]
    page_path.write_text("\n".join(page(rows)) + "\n", encoding="utf-8")
    data_path.write_text(as_json(rows), encoding="utf-8")


def as_json(rows: Iterable[Support]) -> str:
    """The rows, one a line."""
    return "[\n" + ",\n".join(json.dumps(asdict(row), ensure_ascii=False) for row in rows) + "\n]\n"


def page(rows: Iterable[Support]) -> Iterator[str]:
    yield "# What works with torchvision's models\n"
    yield (
        "Every classification model of torchvision, at the image size of its default weights. This "
        "page is written by tracing them without weights (`make docs`), and the tests trace every "
        "model anew and compare its row. That what is traced is true is tested by numbers, on a "
        "small model of each family that is projected: its layers and projections equal those of "
        "a slow second implementation.\n"
    )
    yield (
        "**Scan** finds the strongest patches of all units of all layers. **Projection** needs a "
        "rule for the way down through every operation below a layer; Zeiler & Fergus give rules "
        "for convolutions, max pools and rectifiers, and what is linear has its transposed map. "
        "Gates (squeeze-and-excitation), SiLU, Hardswish, GELU and LayerNorm bend the signal, and "
        "no rule is made up for them: layers above the first such operation can be scanned, and "
        "`projection` leaves them out. Models of tokens or attention windows have no feature maps "
        "and are refused.\n"
    )
    yield "| model | image | layers | units | works | why not more |"
    yield "|---|---|---|---|---|---|"
    yield from map(line, rows)


def line(row: Support) -> str:
    """The row as it stands on the page."""
    count = f"{row.layers} | {row.units:,}" if row.layers else "– | –"
    return f"| `{row.model}` | {row.side} px | {count} | {row.works} | {row.why} |"
