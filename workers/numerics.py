"""In which types and memory layouts a device computes, and which of them are fast."""

import torch

from deconvoy.errors import RequestError

LAYOUTS = {"cpu": "channels_last", "cuda": "contiguous"}
"""Of maps in float32, by kind of device.  Convolutions of CPUs with AVX-512 are up to twice as fast
with channels last, and those of others as fast; layouts differ in the last bits of sums."""

BFLOAT16 = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "arm_bf16")
"""Names of instructions for it, as torch tells them."""


def layout_on(device_type: str) -> torch.memory_format:
    """Of maps in float32."""
    last = LAYOUTS.get(device_type) == "channels_last"
    return torch.channels_last if last else torch.contiguous_format


def fast_types(device: torch.device) -> tuple[torch.dtype, ...]:
    """Types that the device has instructions for: others are computed many times slower.  (oneDNN
    takes bfloat16 on any processor with AVX-512, and emulates it.)"""
    capabilities = {} if device.type == "cuda" else torch.cpu.get_capabilities()
    if device.type == "cuda" or any(capabilities.get(name) for name in BFLOAT16):
        return torch.float32, torch.bfloat16
    return (torch.float32,)


def require_fast(precision: str, device: torch.device | None = None) -> torch.dtype:
    """The type of that name; ``device`` is the CPU if None.

    Raises:
        RequestError: the device has no instructions for it.
    """
    dtype: torch.dtype = getattr(torch, precision)
    if dtype not in fast_types(device or torch.device("cpu")):
        raise RequestError(
            f"compute.precision is {precision}, but the processor that is to compute has no "
            "instructions for it and would take many times as long: take float32."
        )
    return dtype
