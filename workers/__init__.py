"""The compute: models, images, top nine, deconvnet, the ledger, the driver, executors.

``import workers; workers.analyse(model, images, out=…)`` is the way in from a notebook.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.notebook import analyse

__all__ = ["analyse"]


def __getattr__(name: str) -> Any:
    """Load torch only when something that computes is asked for."""
    if name == "analyse":
        from workers.notebook import analyse

        return analyse
    raise AttributeError(f"module 'workers' has no attribute {name!r}")
