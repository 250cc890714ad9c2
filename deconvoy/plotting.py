"""Pages of curves, by matplotlib."""

import io
from typing import Any

from PIL import Image

from deconvoy.errors import MissingExtra

DOTS = 110
"""An inch."""


def page(width: float, height: float) -> Any:
    """An empty one, in inches.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("figures", "Drawing curves") from None
    return Figure((width, height), dpi=DOTS, layout="constrained")


def drawn(figure: Any) -> Image.Image:
    """As a picture."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return Image.open(content).convert("RGB")
