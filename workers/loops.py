"""Compile a loop over single numbers, for what no operation on whole tensors does well.

The loops run without the lock of the interpreter, so that lanes do not wait for each other.  What
is compiled is kept beside the source, or in the user's cache, or nowhere where neither can be
written.
"""

from collections.abc import Callable
from typing import Any

import numba
import torch


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The function, compiled when it is first called for each combination of types."""
    try:
        loop: Callable[..., Any] = numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # Numba's, where it finds no folder that it may write to
        loop = numba.njit(nogil=True, **options)(function)
    return loop


def serve(device: torch.device) -> bool:
    """Whether they can be used for tensors there; where not, operations on whole tensors do the
    same."""
    return device.type == "cpu"
