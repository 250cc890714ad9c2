"""Find a model by its name, give it its weights, and pack both so that they reach any actor.

A ``PackedModel`` is what travels: the name of the factory, the source text of a model file, and the
tensors as safetensors bytes.  The actor needs no file of the driver's machine.
"""

import difflib
import hashlib
import importlib
import inspect
import sys
import textwrap
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

from deconvoy.errors import ModelUnsupported, RequestError
from deconvoy.spec import ModelSpec, Transform
from workers import zfnet
from workers.weights import fit, load_exactly, names_a_file, read_weights

Factory = Callable[..., nn.Module]

OWN: Mapping[str, Factory] = {"zfnet": zfnet.zfnet, "zfnet_small": zfnet.zfnet_small}

IMAGENET = Transform(resize=256, crop=224)
"""What a model gets that says nothing of its own."""

IMAGENET_GREY = Transform(resize=256, crop=224, mean=(0.449,), std=(0.226,))
"""The same for a model of grey images: the mean of the three."""


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
        load_exactly(model, safetensors.torch.load(self.tensors))
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
    arguments = {**_image_size(spec, preset, transform), **spec.arguments}
    if preset is not None:
        tensors, implied = _preset_state(spec, preset)
        arguments = {**implied, **arguments}
    elif spec.weights is not None:
        tensors = read_weights(spec.weights, spec.weights_key)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _call(factory, spec.name, arguments)
    if spec.weights is not None:
        fit(model, tensors, spec.weights, spec.name)
    return pack_module(
        model.float().eval(), spec.name, arguments, code, _classes(spec, model, preset),
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
        return torchvision_factory(rest)
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


def torchvision_factory(name: str) -> Factory:
    if f"torchvision/{name}" not in _torchvision_names():
        raise RequestError(
            f"model.name 'torchvision/{name}' is no torchvision classification model"
            f"{_near(f'torchvision/{name}', _torchvision_names()) or '.'}"
        )
    builder: Factory = torchvision.models.get_model_builder(name)
    if name in _WITH_HEADS:
        return lambda **arguments: builder(**{**_PLAIN, **arguments})
    return builder


_WITH_HEADS = ("googlenet", "inception_v3")
_PLAIN: Mapping[str, Any] = {"init_weights": False, "aux_logits": False}
"""Without the heads that only train; and any start will do, not their slow truncated normals, since
the weights are loaded or random from the seed."""


def image_size(name: str, side: int) -> dict[str, int]:
    """The argument that tells a model of torchvision how large its images are: of those that are
    made for one size, as models of tokens are."""
    made = inspect.signature(torchvision.models.get_model_builder(name)).return_annotation
    return {"image_size": side} if "image_size" in inspect.signature(made).parameters else {}


def _image_size(spec: ModelSpec, preset: Any | None, transform: Transform | str) -> dict[str, int]:
    kind, _, name = spec.name.partition("/")
    if kind != "torchvision":
        return {}
    if preset is None and isinstance(transform, Transform):
        return image_size(name, transform.crop)
    preset = preset or torchvision.models.get_model_weights(name).DEFAULT
    return image_size(name, _of_preset(preset).crop)


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


def _call(factory: Factory, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        model = factory(**arguments)
    except Exception as error:  # the factory's own code
        raise RequestError(
            f"model.name {name!r}: its factory raised {type(error).__name__}: {error} "
            f"(model.arguments: {dict(arguments)})."
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelUnsupported(
            f"model.name {name!r}: its factory returned {type(model).__name__}, but it must "
            "return a torch.nn.Module."
        )
    return model


def _torchvision_weights(spec: ModelSpec) -> Any | None:
    """The torchvision weights entry a spec names, if it names one."""
    kind, _, name = spec.name.partition("/")
    if kind != "torchvision" or spec.weights is None or names_a_file(spec.weights):
        return None
    entries = torchvision.models.get_model_weights(name)
    wanted = spec.weights.rpartition(".")[2]
    if wanted not in entries.__members__:
        raise RequestError(
            f"model.weights {spec.weights!r}: torchvision has {_listed(entries.__members__)} for "
            f"{name}; or give a file."
        )
    return entries[wanted]


def _preset_state(spec: ModelSpec, preset: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of named weights, and the arguments that go with them.

    torchvision's own builder loads them, since it knows old names of tensors and, of a few models,
    that they were trained on inputs scaled otherwise.
    """
    builder = torchvision.models.get_model_builder(spec.name.partition("/")[2])
    # With weights the builder wants the heads it takes off again; we take them off all the same.
    given = {key: value for key, value in spec.arguments.items() if key != "aux_logits"}
    try:
        made = builder(weights=preset, progress=False, **given)
    except (URLError, OSError) as error:
        raise RequestError(
            f"model.weights {preset}: torchvision downloads these, and that failed ({error}). "
            "Without a network, download the file elsewhere and give its path."
        ) from error
    except Exception as error:  # the builder's own refusals, such as another num_classes
        raise RequestError(
            f"model.weights {preset} do not go with model.arguments {spec.arguments}: "
            f"{textwrap.shorten(str(error), 300)}"
        ) from error
    scaled = getattr(made, "transform_input", False)
    return made.state_dict(), {"transform_input": True} if scaled else {}


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
    return default_transform(model), "ImageNet's, since the model declares none"


def default_transform(model: nn.Module) -> Transform:
    """ImageNet's, grey where the model's first convolution takes one channel."""
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    return IMAGENET_GREY if first is not None and first.in_channels == 1 else IMAGENET


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
        interpolation=made.interpolation.value,
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
