"""Running out of memory, of the machine or of a GPU: how it shows, and what can be given back."""

import ctypes
import gc
import platform

import torch

SIGNS = ("can't allocate memory", "out of memory", "alloc_failed", "bad_alloc")
"""In messages of torch, oneDNN, cuDNN and cuBLAS that come as a plain RuntimeError."""


def is_short(error: BaseException) -> bool:
    """Whether an error says that memory was asked for and not had."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in told for sign in SIGNS)


def give_back() -> None:
    """To the system and to the GPU, what nothing here holds any more."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
