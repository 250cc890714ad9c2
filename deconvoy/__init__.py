"""Deconvoy: what each feature map of a convolutional network sees, at data-set scale.

What a notebook imports.  No torch and no Ray here: a run can be read where neither is installed.
"""

from typing import TYPE_CHECKING, Any

from deconvoy.run import Run, open
from deconvoy.spec import JobSpec
from deconvoy.study_spec import StudySpec
from deconvoy.unit import Unit

if TYPE_CHECKING:
    from deconvoy.client import Client, ClientJob

__all__ = ["Client", "ClientJob", "JobSpec", "Run", "StudySpec", "Unit", "open"]


def __getattr__(name: str) -> Any:
    """The client comes when it is asked for: loading what speaks HTTP takes a tenth of a second."""
    if name in ("Client", "ClientJob"):
        from deconvoy import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
