"""Find a model by its name, give it its weights, and pack both so that they reach any actor.

A ``PackedModel`` is what travels: the name of the factory, the source text of a model file, and the
tensors as safetensors bytes.  The actor needs no file of the driver's machine.  Weights are read as
tensors only (safetensors, or ``torch.load`` with ``weights_only=True``).
"""

import difflib
import hashlib
import importlib
import inspect
import logging
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

import safetensors.torch
import torch
import torchvision
from pydantic import ValidationError
from torch import Tensor, nn

from deconvoy.errors import DeconvoyError, ModelUnsupported, RequestError
from deconvoy.spec import ModelSpec, Transform
from workers import zfnet

logger = logging.getLogger(__name__)

Factory = Callable[..., nn.Module]

OWN: Mapping[str, Factory] = {"zfnet": zfnet.zfnet, "zfnet_small": zfnet.zfnet_small}

IMAGENET = Transform(resize=256, crop=224)
"""What a model gets that says nothing of its own."""

WEIGHTS_KEYS = ("state_dict", "model", "model_state_dict", "ema", "net")
WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth")
PREFIXES = ("module.", "model.", "_orig_mod.")


@dataclass(frozen=True)
class PackedModel:
    """A model that can be built anywhere Deconvoy is installed."""

    name: str
    arguments: Mapping[str, Any]
    code: str | None
    """Source text of ``path/to/file.py``; None for factories that are installed."""
    tensors: bytes
    """The state dict, as safetensors."""
    sha256: str
    """Of ``code`` and ``tensors``."""
    transform: Transform
    transform_from: str
    """Where the transform comes from, for people."""
    classes: tuple[str, ...]
    module: nn.Module | None = field(default=None, repr=False, compare=False)
    """A model at hand, where no name leads to it; such a one stays in its process."""

    def build(self) -> nn.Module:
        """The model in evaluation mode, float32, on the CPU."""
        if self.module is not None:
            return self.module
        model = _factory(self.name, self.code)(**self.arguments).float()
        model.load_state_dict(safetensors.torch.load(self.tensors))
        return model.eval()


def pack(spec: ModelSpec, seed: int, transform: Transform | str = "auto") -> PackedModel:
    """Build the model a spec names, with its weights, and pack it.

    Args:
        seed: of the random weights, where the spec names none.
        transform: the spec's; ``auto`` looks where ``DataSpec.transform`` says.

    Raises:
        RequestError: no such model, weights or classes; or they do not fit together.
    """
    code = _source_text(spec.name)
    factory = _factory(spec.name, code)
    preset = _torchvision_weights(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _call(factory, spec)
    if spec.weights is not None:
        tensors = _state_of(preset) if preset else read_weights(spec.weights, spec.weights_key)
        _fit(model, tensors, spec)
    return pack_module(
        model.float().eval(), spec.name, spec.arguments, code, _classes(spec, model, preset),
        *_transform(spec, model, preset, transform),
    )  # fmt: skip


def pack_module(
    model: nn.Module,
    name: str,
    arguments: Mapping[str, Any],
    code: str | None,
    classes: Sequence[str],
    transform: Transform,
    transform_from: str,
) -> PackedModel:
    """Pack a model that is already there; ``name`` and ``code`` say how to build its like."""
    state = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    tensors = safetensors.torch.save({key: value.contiguous() for key, value in state.items()})
    digest = hashlib.sha256((code or "").encode() + tensors).hexdigest()
    return PackedModel(
        name, dict(arguments), code, tensors, digest, transform, transform_from, tuple(classes)
    )


def read_weights(path: str, key: str = "auto") -> dict[str, Tensor]:
    """The tensors of a weights file, floating ones as float32, common prefixes stripped.

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
            tensors = _state_in(torch.load(file, map_location="cpu", weights_only=True), path, key)
    except DeconvoyError:
        raise
    except Exception as error:  # each format fails with errors of its own
        raise RequestError(
            f"model.weights {path!r} cannot be read as tensors ({first_line(error)}): "
            "save a state_dict with safetensors or torch.save; whole pickled models are refused, "
            "since loading one runs its code."
        ) from error
    tensors = _strip_prefixes(tensors, path)
    return {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}


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
    elif isinstance(content, dict):
        inside = next((k for k in WEIGHTS_KEYS if isinstance(content.get(k), dict)), None)
        if inside is not None:
            logger.info("weights %s: taking the tensors under %r", path, inside)
            content = content[inside]
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise RequestError(
            f"model.weights {path!r} holds no state dict: set model.weights_key to the key it lies "
            "under."
        )
    return content


def _strip_prefixes(tensors: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            logger.info("weights %s: stripping the prefix %r", path, prefix)
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _fit(model: nn.Module, tensors: Mapping[str, Tensor], spec: ModelSpec) -> None:
    own = model.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    wrong = [
        f"{key} is {tuple(tensors[key].shape)}, the model's {tuple(own[key].shape)}"
        for key in sorted(own.keys() & tensors.keys())
        if own[key].shape != tensors[key].shape
    ]
    if missing or extra or wrong:
        lists = (("missing", missing), ("not in the model", extra), ("of another shape", wrong))
        listed = "; ".join(
            f"{what}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''} ({len(names)})"
            for what, names in lists
            if names
        )
        raise RequestError(
            f"model.weights {spec.weights!r} do not fit {spec.name!r}: {listed}. "
            "Check model.arguments (num_classes, say) and model.weights_key."
        )
    model.load_state_dict(dict(tensors), strict=False)


def _source_text(name: str) -> str | None:
    path, colon, _ = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"model.name {name!r}: the file {path!r} cannot be read "
            f"({getattr(error, 'strerror', error)})."
        ) from error


def _factory(name: str, code: str | None) -> Factory:
    """The callable behind a model name."""
    if code is not None:
        path, _, attribute = name.rpartition(":")
        digest = hashlib.sha256(code.encode()).hexdigest()[:12]
        module = types.ModuleType(f"deconvoy_model_{Path(path).stem}_{digest}")
        module.__file__ = path
        sys.modules[module.__name__] = module  # dataclasses look their module up by name
        try:
            exec(compile(code, path, "exec"), module.__dict__)
        except Exception as error:  # the user's own code
            raise RequestError(
                f"model.name {name!r}: the file raised {type(error).__name__}: {error}"
            ) from error
        return _attribute(module, attribute, name)
    kind, _, rest = name.partition("/")
    if kind == "torchvision":
        return _torchvision_factory(rest)
    if kind == "deconvoy":
        if rest not in OWN:
            raise RequestError(f"model.name {name!r} is unknown: our own are {_listed(OWN)}.")
        return OWN[rest]
    if kind == "python" and ":" in rest:
        return _installed_factory(name, rest)
    if kind == "object":
        raise RequestError(
            f"model.name {name!r}: this run was made from a model object by workers.analyse, which "
            "no other process has: call workers.analyse again with overwrite=True."
        )
    raise RequestError(
        f"model.name {name!r} is of no known form: torchvision/NAME, deconvoy/zfnet, "
        "deconvoy/zfnet_small, python/pkg.mod:factory or path/to/file.py:factory"
        f"{_wanted(name)}"
    )


def _wanted(name: str) -> str:
    if name.endswith(".py"):
        return f": add the factory, as in {name}:make_model."
    return _near(f"torchvision/{name}", _torchvision_names()) or "."


def _torchvision_names() -> list[str]:
    return [f"torchvision/{n}" for n in torchvision.models.list_models(module=torchvision.models)]


def _torchvision_factory(name: str) -> Factory:
    if f"torchvision/{name}" not in _torchvision_names():
        raise RequestError(
            f"model.name 'torchvision/{name}' is no torchvision classification model"
            f"{_near(f'torchvision/{name}', _torchvision_names()) or '.'}"
        )
    builder: Factory = torchvision.models.get_model_builder(name)
    # GoogLeNet and Inception draw their slow truncated normals unless told; any start will do,
    # since the weights are loaded or random from the seed.
    if "init_weights" in inspect.signature(builder).parameters or name in _SLOW_START:
        return lambda **arguments: builder(**{"init_weights": False, **arguments})
    return builder


_SLOW_START = ("googlenet", "inception_v3")


def _installed_factory(name: str, rest: str) -> Factory:
    module_name, _, attribute = rest.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RequestError(
            f"model.name {name!r}: the module {module_name!r} cannot be imported ({error}); it "
            "must be installed where the workers run."
        ) from error
    return _attribute(module, attribute, name)


def _attribute(module: types.ModuleType, attribute: str, name: str) -> Factory:
    factory = getattr(module, attribute, None)
    if not callable(factory):
        callables = [
            key for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]  # fmt: skip
        raise RequestError(
            f"model.name {name!r}: there is no callable {attribute!r} in it; it has "
            f"{', '.join(callables) or 'none'}."
        )
    made: Factory = factory
    return made


def _call(factory: Factory, spec: ModelSpec) -> nn.Module:
    try:
        model = factory(**spec.arguments)
    except Exception as error:  # the factory's own code
        raise RequestError(
            f"model.name {spec.name!r}: its factory raised {type(error).__name__}: {error} "
            f"(model.arguments: {spec.arguments})."
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelUnsupported(
            f"model.name {spec.name!r}: its factory returned {type(model).__name__}, but it must "
            "return a torch.nn.Module."
        )
    return model


def _torchvision_weights(spec: ModelSpec) -> Any | None:
    """The torchvision weights entry a spec names, if it names one."""
    kind, _, name = spec.name.partition("/")
    if kind != "torchvision" or spec.weights is None or _names_a_file(spec.weights):
        return None
    entries = torchvision.models.get_model_weights(name)
    wanted = spec.weights.rpartition(".")[2]
    if wanted not in entries.__members__:
        raise RequestError(
            f"model.weights {spec.weights!r}: torchvision has {_listed(entries.__members__)} for "
            f"{name}; or give a file."
        )
    return entries[wanted]


def _names_a_file(weights: str) -> bool:
    """Not ``DEFAULT``, ``IMAGENET1K_V1`` or ``SqueezeNet1_1_Weights.IMAGENET1K_V1``."""
    return Path(weights).suffix in WEIGHTS_SUFFIXES or "/" in weights or Path(weights).exists()


def _state_of(preset: Any) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = preset.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        raise RequestError(
            f"model.weights {preset}: torchvision downloads these, and that failed ({error}). "
            "Without a network, download the file elsewhere and give its path."
        ) from error
    return state


def _transform(
    spec: ModelSpec, model: nn.Module, preset: Any | None, asked: Transform | str
) -> tuple[Transform, str]:
    if isinstance(asked, Transform):
        return asked, "the job spec"
    if preset is not None:
        return _of_preset(preset), f"the preset of {preset}"
    declared = getattr(model, "transform", None)
    if isinstance(declared, Mapping):
        return declared_transform(declared), "the model's factory"
    kind, _, name = spec.name.partition("/")
    if kind == "torchvision":
        default = torchvision.models.get_model_weights(name).DEFAULT
        return _of_preset(default), f"torchvision's default preset of {name}"
    return IMAGENET, "ImageNet's, since the model declares none"


def declared_transform(fields: Mapping[str, Any]) -> Transform:
    """The transform a model or a call declares as plain fields.

    Raises:
        RequestError: fields are missing or wrong.
    """
    try:
        return Transform.model_validate(dict(fields))
    except ValidationError as error:
        raise RequestError(
            f"The declared transform {dict(fields)} does not fit: "
            f"{error.errors()[0]['msg']} ({'.'.join(map(str, error.errors()[0]['loc']))}). "
            "It has resize, crop, mean and std."
        ) from None


def _of_preset(preset: Any) -> Transform:
    made = preset.transforms()
    return Transform(
        resize=made.resize_size[0],
        crop=made.crop_size[0],
        mean=tuple(made.mean),
        std=tuple(made.std),
    )


def _classes(spec: ModelSpec, model: nn.Module, preset: Any | None) -> tuple[str, ...]:
    if isinstance(spec.classes, str):
        try:
            lines = Path(spec.classes).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise RequestError(
                f"model.classes {spec.classes!r} cannot be read ({error.strerror}): "
                "it has one name a line."
            ) from error
        return tuple(line.strip() for line in lines if line.strip())
    if spec.classes is not None:
        return spec.classes
    if preset is not None and "categories" in preset.meta:
        return tuple(preset.meta["categories"])
    declared = getattr(model, "classes", None)
    return tuple(map(str, declared)) if isinstance(declared, Sequence) else ()


def _listed(names: Any) -> str:
    return ", ".join(str(name) for name in names) or "none"


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""
