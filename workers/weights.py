"""Read weights as people save them, and fit them to a model: tensors only, nothing is executed.

Safetensors, or what ``torch.save`` wrote, read with ``weights_only=True``; the state dict may lie
under a key, and its names may start with the path of the model in a larger one (``module.``, as
DataParallel has it, ``model.``, as Lightning has it).  What is taken and what is left out is said
in the log; what does not fit is told tensor by tensor.
"""

import logging
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from deconvoy.errors import DeconvoyError, RequestError

logger = logging.getLogger(__name__)

KEYS = ("state_dict", "model", "model_state_dict", "ema", "state_dict_ema", "net")
"""Where a state dict lies in a checkpoint; the first that is there is taken."""

SUFFIXES = (".safetensors", ".pt", ".pth")

PREFIXES = ("", "module.", "model.", "_orig_mod.", "net.", "backbone.")
"""Of two models in one file that fit equally well, the one under the earlier prefix is taken."""

AUXILIARY = ("aux", "Aux")
"""Heads that only train the network begin so; they never give the model's output."""

SHOWN = 3

PACKED_BYTES = 16 * 2**20
"""That a checkpoint may grow by: the code of a TorchScript archive is packed."""

MAX_DEPTH = 20
"""Of mappings within mappings in a checkpoint."""


def names_a_file(weights: str) -> bool:
    """Not ``DEFAULT``, ``IMAGENET1K_V1`` or ``SqueezeNet1_1_Weights.IMAGENET1K_V1``."""
    return Path(weights).suffix in SUFFIXES or "/" in weights or Path(weights).exists()


def read_weights(path: str, key: str = "auto") -> dict[str, Tensor]:
    """The tensors of a weights file under the names they have there, floating ones as float32.

    Raises:
        RequestError: no such file, another format, no state dict in it.
    """
    file = Path(path)
    if not file.is_file():
        raise RequestError(
            f"model.weights {path!r} is no file here and no weights name of this model: give a "
            ".safetensors, .pt or .pth file, a torchvision weights name, or null for random ones."
        )
    try:
        if file.suffix == ".safetensors":
            tensors = safetensors.torch.load_file(file)
        else:
            _refuse_zip_bombs(file, path)
            tensors = _state_in(_loaded(file), path, key)
    except DeconvoyError:
        raise
    except Exception as error:  # each format fails with errors of its own
        raise RequestError(f"model.weights {path!r} {_why_unread(error)}") from error
    for name, tensor in tensors.items():
        if tensor.numel() > file.stat().st_size:  # one number told to stand for many
            raise RequestError(
                f"model.weights {path!r}: {name} is {tuple(tensor.shape)}, which a file of "
                f"{file.stat().st_size:,} bytes does not hold: save the state_dict anew, with its "
                "tensors as they are, or as the model has them."
            )
    return {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}


def _refuse_zip_bombs(file: Path, path: str) -> None:
    """torch.save stores its tensors; what is packed, or there twice, can be of any size."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > file.stat().st_size + PACKED_BYTES:
            raise RequestError(
                f"model.weights {path!r} is packed and would be {unpacked:,} bytes, but torch.save "
                "packs nothing: unpack it, or save the state_dict anew, with safetensors or "
                "torch.save."
            )


def _loaded(file: Path) -> Any:
    with warnings.catch_warnings():
        # torch.load warns of a TorchScript archive and then refuses it; we refuse it in a sentence.
        warnings.filterwarnings("ignore", message=".*TorchScript archive.*")
        return torch.load(file, map_location="cpu", weights_only=True)


def _why_unread(error: Exception) -> str:
    """What is wrong with a weights file, and what to do; torch's own text advises to run it."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}."
    text = str(error)
    foreign = re.search(r"GLOBAL ([\w.]+)", text)
    if foreign is not None:
        return (
            f"cannot be read as tensors, since it holds an object of {foreign[1]}: save its "
            "state_dict alone, with safetensors or torch.save; whole pickled models are refused, "
            "as other objects are, since loading one runs its code."
        )
    if "TorchScript" in text:
        return (
            "is a TorchScript archive, which is a program and no file of tensors: save the "
            "state_dict of what torch.jit.load makes of it, with safetensors or torch.save."
        )
    return (
        "cannot be read as tensors: it is damaged or no PyTorch or safetensors file; copy it "
        "again, or save the model's state_dict anew, with safetensors or torch.save."
    )


def first_line(error: BaseException) -> str:
    """What an error says in short; its name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _state_in(content: Any, path: str, key: str) -> dict[str, Tensor]:
    if key != "auto":
        if not isinstance(content, dict) or key not in content:
            there = ", ".join(map(str, content)) if isinstance(content, dict) else "no mapping"
            raise RequestError(f"model.weights_key {key!r} is not in {path!r}: it has {there}.")
        content = content[key]
    for _ in range(MAX_DEPTH):
        if not isinstance(content, dict):
            break
        inside = next((k for k in KEYS if isinstance(content.get(k), dict)), None)
        if inside is None:
            break
        logger.info("weights %s: taking the tensors under %r", path, inside)
        content = content[inside]
    tensors = (
        {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        under = "" if key == "auto" else f" under {key!r}"
        keys = _keys_of_tensors(content)
        if not keys:
            raise RequestError(
                f"model.weights {path!r} holds no tensors{under}: save the model's state_dict, "
                "with safetensors or torch.save."
            )
        if under:
            raise RequestError(
                f"model.weights {path!r} has no state dict{under}, but further below it, under "
                f"{_few(keys)}: save that one in a file of its own."
            )
        raise RequestError(
            f"model.weights {path!r} holds its tensors under {', '.join(keys)}: set "
            "model.weights_key to the one you want."
        )
    if others := content.keys() - tensors.keys():
        logger.info("weights %s: leaving out what is no tensor: %s", path, _few(others))
    return tensors


def _keys_of_tensors(content: Any) -> list[str]:
    """Keys with tensors somewhere below them."""
    seen: set[int] = set()  # a file may hold a mapping many times, even in itself

    def holds(value: Any, depth: int) -> bool:
        if isinstance(value, Tensor):
            return True
        if not isinstance(value, dict) or id(value) in seen or depth > MAX_DEPTH:
            return False
        seen.add(id(value))
        return any(holds(below, depth + 1) for below in value.values())

    found = []
    for key, value in content.items() if isinstance(content, dict) else ():
        seen.clear()
        if holds(value, 0):
            found.append(str(key))
    return found


def fit(model: nn.Module, tensors: Mapping[str, Tensor], weights: str, name: str) -> None:
    """Load tensors into a model, by their names below the model's place in the file.

    Args:
        weights, name: of the tensors and of the model, for people.

    Raises:
        RequestError: tensors are missing, too many, or of another shape.
    """
    own = model.state_dict()
    prefix = _place(own, tensors, weights)
    found = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    if prefix:
        logger.info("weights %s: stripping the prefix %r", weights, prefix)
    extra = found.keys() - own.keys()
    heads = {key for key in extra if key.startswith(AUXILIARY)}
    if others := tensors.keys() - {prefix + key for key in found}:
        logger.info("weights %s: leaving out what is not of the model: %s", weights, _few(others))
    if heads:
        logger.info("weights %s: leaving out the auxiliary heads: %s", weights, _few(heads))
    missing = {k for k in own.keys() - found.keys() if not k.endswith("num_batches_tracked")}
    wrong = [
        f"{key} is {tuple(found[key].shape)}, the model's {tuple(own[key].shape)}"
        for key in sorted(own.keys() & found.keys())
        if own[key].shape != found[key].shape
    ]
    lists = (("missing", missing), ("not in the model", extra - heads), ("of another shape", wrong))
    if any(names for _, names in lists):
        listed = "; ".join(f"{what}: {_few(names)}" for what, names in lists if names)
        raise RequestError(
            f"model.weights {weights!r} do not fit {name!r}: {listed}. "
            "Check model.arguments (num_classes, say) and model.weights_key."
        )
    load_exactly(model, {**own, **{key: found[key] for key in own.keys() & found.keys()}})


def load_exactly(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load all of a model's tensors, as saved by this version of its class.

    Some classes look at the version of what they load, which safetensors does not keep.
    """
    state: Any = model.state_dict()
    state.update(tensors)
    model.load_state_dict(state)


def _place(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], weights: str) -> str:
    """The prefix under which most of the model's names are found."""
    lengths = {len(key): None for key in own}
    found: Counter[str] = Counter()
    for key in tensors:
        for length in lengths:
            prefix, name = key[:-length], key[-length:]
            if name in own and (not prefix or prefix.endswith(".")):
                found[prefix] += 1
    if not found:
        return ""
    most = max(found.values())
    best = sorted(prefix for prefix, count in found.items() if count == most)
    known = [prefix for prefix in PREFIXES if prefix in best]
    if len(best) > 1 and not known:
        raise RequestError(
            f"model.weights {weights!r} hold several models that fit, under {', '.join(best)}: "
            "save the tensors of one in a file of its own."
        )
    return known[0] if known else best[0]


def _few(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = " …" if len(listed) > SHOWN else ""
    return f"{', '.join(listed[:SHOWN])}{more} ({len(listed)})"
