"""The compute: models, images, top nine, deconvnet, the ledger, the driver, executors.

``import workers; workers.analyse(model, images, out=…)`` is the way in from a notebook, and
``workers.occlude(model, image)`` for one picture.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.fresh import occlude
    from workers.notebook import analyse

__all__ = ["analyse", "occlude"]


def __getattr__(name: str) -> Any:
    """Load torch only when something that computes is asked for."""
    if name == "analyse":
        from workers.notebook import analyse

        return analyse
    if name == "occlude":
        from workers.fresh import occlude

        return occlude
    raise AttributeError(f"module 'workers' has no attribute {name!r}")
