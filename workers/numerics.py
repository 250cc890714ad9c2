"""In which types and memory layouts a device computes, and which of them are fast."""

from collections.abc import Mapping

import torch

from deconvoy.errors import RequestError

LAYOUTS: Mapping[str, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


def fast_types(device: torch.device) -> tuple[torch.dtype, ...]:
    """Types that the device has instructions for: others are computed many times slower."""
    if device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32, torch.bfloat16
    return (torch.float32,)


def require_fast(precision: str, device: torch.device) -> torch.dtype:
    """The type of that name.

    Raises:
        RequestError: the device has no instructions for it.
    """
    dtype: torch.dtype = getattr(torch, precision)
    if dtype not in fast_types(device):
        raise RequestError(
            f"compute.precision is {precision}, but the processor of this worker has no "
            "instructions for it and would take many times as long: take float32, and for a "
            "faster scan compute.layout: channels_last."
        )
    return dtype
