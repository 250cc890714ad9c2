"""Trace a model once: its steps, its layers, their receptive fields, and what cannot be projected.

A layer is the output of a rectifier, wherever the graph has one, and the model's output, always
called ``logits``; besides, the output of a convolution (after its BatchNorm) that some path carries
to another convolution or to the output without a rectifier between.  Names are those of
``torchvision.models.feature_extraction.get_graph_node_names``.  No model is known by name here.
"""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.feature_extraction import NodePathTracer

from deconvoy.errors import ModelUnsupported
from workers.fields import (
    AxisField,
    Field,
    Window,
    through_cells,
    through_everything,
    through_selection,
    through_window,
    union,
)
from workers.ops import AS_MODULE, FUNCTION_RULES, Down, Reach, Rule, module_rule


@dataclass(frozen=True)
class Step:
    """One operation of the traced graph."""

    index: int
    name: str
    node: fx.Node
    call: Callable[..., Any]
    rule: Rule | None
    module: nn.Module | None
    inputs: tuple[int, ...]
    """Steps whose tensors it takes, in the order of its arguments, one taken twice twice."""
    shape: tuple[int, ...] = ()
    """Of its output for one image, without the image axis; empty if it gives no such tensor."""
    depends: bool = False
    """Whether its output holds tensors computed from the image."""

    def apply_to(self, tensor: Tensor) -> Tensor:
        """Call it on another tensor than the traced one; its other arguments are constants."""
        result: Tensor
        if self.module is not None:
            result = self.call(tensor)
        else:
            args = fx.node.map_arg(self.node.args, lambda _: tensor)
            kwargs = fx.node.map_arg(self.node.kwargs, lambda _: tensor)
            result = self.call(*args, **kwargs)
        return result


@dataclass(frozen=True)
class Layer:
    """A layer of the model: its units are its channels, or its neurons."""

    name: str
    step: int
    op: str
    units: int
    height: int
    width: int
    rectified: bool
    ceiling: float | None
    field: Field = field(repr=False)
    obstacle: str | None
    """Why it cannot be projected to pixels; None where it can."""

    @property
    def is_map(self) -> bool:
        return self.height * self.width > 1


Visit = Callable[[Layer, Tensor], None]

_GIVES_NEW_TENSOR = (Down.FILTER, Down.MATRIX, Down.COPY)

_MEASURED_IMAGES = 2
"""Images of the run that measures shapes; not one, so that ``squeeze`` leaves their axis alone."""


class Network:
    """A traced model in evaluation mode, on one device, for one input size.

    Args:
        model: left untouched; a copy is traced and its BatchNorms are folded into the convolutions
            before them.
        input_shape: (channels, height, width) of one preprocessed image.

    Raises:
        ModelUnsupported: the model cannot be traced, does not run on images of this size, or does
            not return one tensor of one row an image.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
        self.input_shape = input_shape
        model = copy.deepcopy(model).eval().requires_grad_(False)
        tracer, graph = _trace(model)
        self._nodes = [node for node in graph.nodes if node.op != "output"]
        (returned,) = (node for node in graph.nodes if node.op == "output")
        if not isinstance(returned.args[0], fx.Node):
            raise ModelUnsupported(
                f"{type(model).__name__} returns {type(returned.args[0]).__name__}, but a model "
                "must return one tensor of class scores: wrap it to return that one."
            )
        self._modules = dict(model.named_modules())
        self._attributes = model
        names = {node: tracer.node_to_qualname.get(node, node.name) for node in self._nodes}
        self.steps = self._measure(names)
        self._output: fx.Node = returned.args[0]  # an in-place step may have become it only now
        self._fold()
        self._fields = self._receptive_fields()
        # What comes after the output in the graph is computed for nothing.
        self.layers = tuple(sorted(self._find_layers(), key=lambda layer: layer.name == "logits"))
        self._layers_at = {
            step.index: [layer for layer in self.layers if layer.step == step.index]
            for step in self.steps
        }
        self._last_use = self._last_uses(range(len(self.steps)))

    def layer(self, name: str) -> Layer:
        return next(layer for layer in self.layers if layer.name == name)

    def forward(self, images: Tensor, visit: Visit) -> Tensor:
        """One pass; ``visit`` sees each layer's output the moment it exists (it may be overwritten
        in place right after).  Of a layer with a ceiling it sees the rectifier's input instead,
        from which scores are taken.

        Returns:
            The model's output.
        """
        values: dict[int, Any] = {}
        for step in self.steps:
            here = self._layers_at[step.index]
            for layer in (layer for layer in here if layer.ceiling is not None):
                visit(layer, values[step.inputs[0]])
            values[step.index] = self._run(step, values, images)
            for layer in (layer for layer in here if layer.ceiling is None):
                visit(layer, values[step.index])
            for done in self._last_use.get(step.index, ()):
                del values[done]
        output: Tensor = values[self._index[self._output]]
        return output

    def path_to(self, layer: Layer) -> list[Step]:
        """The steps a layer is computed from, itself the last, in execution order."""
        needed = {layer.step}
        for step in reversed(self.steps[: layer.step + 1]):
            if step.index in needed:
                needed.update(self._sources(step))
        return [step for step in self.steps if step.index in needed]

    def switches(
        self, images: Float[Tensor, "image channel row col"], path: Sequence[Step]
    ) -> dict[int, Tensor]:
        """Run ``path`` and keep the place of every maximum its max pools take.

        Returns:
            For each max pool its indices, (image, channel, row, col) → flat place in its input.
        """
        pools = [step.index for step in path if step.rule and step.rule.down is Down.UNPOOL]
        if not pools:
            return {}
        places: dict[int, Tensor] = {}
        values: dict[int, Any] = {}
        last_use = self._last_uses([step.index for step in path])
        for step in path:
            if step.index > pools[-1]:
                break
            if step.index in pools and isinstance(step.module, nn.MaxPool2d):
                pool = step.module
                values[step.index], places[step.index] = nn.functional.max_pool2d(
                    values[step.inputs[0]],
                    pool.kernel_size,
                    pool.stride,
                    pool.padding,
                    pool.dilation,
                    ceil_mode=pool.ceil_mode,
                    return_indices=True,
                )
            else:
                values[step.index] = self._run(step, values, images)
            for done in last_use.get(step.index, ()):
                values.pop(done, None)
        return places

    def to(self, device: torch.device | str) -> "Network":
        """Move the parameters; returns itself."""
        self._attributes.to(device)
        for step in self.steps:
            if step.module is not None:
                step.module.to(device)
        return self

    def _run(self, step: Step, values: Mapping[int, Any], images: Tensor) -> Any:
        node = step.node
        if node.op == "placeholder":
            return node.args[0] if node.args else images  # an argument left at its default
        if node.op == "get_attr":
            return step.call()
        args = fx.node.map_arg(node.args, lambda n: values[self._index[n]])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: values[self._index[n]])
        if step.module is not None:  # its parameters are its own, not the call's
            return step.call(values[step.inputs[0]])
        return step.call(*args, **kwargs)

    def _measure(self, names: Mapping[fx.Node, str]) -> list[Step]:
        """Run once on zeros to learn every shape, and look every operation up in the table."""
        self._index = {node: index for index, node in enumerate(self._nodes)}
        parameter = next(self._attributes.parameters(), torch.zeros(()))
        images = torch.zeros(
            _MEASURED_IMAGES, *self.input_shape, dtype=parameter.dtype, device=parameter.device
        )
        values: dict[int, Any] = {}
        steps: list[Step] = []
        for index, node in enumerate(self._nodes):
            call, module, rule = self._look_up(node, values)
            sources = [i for i in self._arguments(node) if _holds_tensors(values[i])]
            draft = Step(index, names[node], node, call, rule, module, tuple(sources))
            versions = {i: v._version for i, v in values.items() if isinstance(v, Tensor)}
            values[index] = self._try(draft, values, images)
            for source in sources:
                if source in versions and values[source]._version > versions[source]:
                    self._read_later(values, source, index)
            depends = _holds_tensors(values[index]) and (
                any(steps[source].depends for source in sources)
                or (node.op == "placeholder" and not node.args)
            )
            draft = replace(draft, depends=depends, shape=_shape(values[index]) if depends else ())
            steps.append(replace(draft, rule=None) if _bends_rule(draft, steps) else draft)
        return steps

    def _try(self, step: Step, values: Mapping[int, Any], images: Tensor) -> Any:
        try:
            with torch.no_grad():
                return self._run(step, values, images)
        except Exception as error:  # whatever torch raises for shapes that do not fit
            _, height, width = self.input_shape
            raise ModelUnsupported(
                f"{type(self._attributes).__name__} does not run on images of {height}×{width} "
                f"pixels: {step.name} ({_op_name(step)}) fails with: {error} "
                "Check the transform's crop."
            ) from error

    def _read_later(self, values: Mapping[int, Any], source: int, index: int) -> None:
        """Step ``index`` has overwritten ``source``: let all that comes after read its output."""
        for i, value in values.items():
            if i != index and value is values[source]:  # also what eval-mode dropout hands on
                for user in list(self._nodes[i].users):
                    if self._index.get(user, len(self._nodes)) > index:
                        user.replace_input_with(self._nodes[i], self._nodes[index])

    def _arguments(self, node: fx.Node) -> list[int]:
        """The steps in a node's arguments, in order; one that is there twice comes twice."""
        found: list[int] = []
        fx.node.map_arg((node.args, node.kwargs), lambda n: found.append(self._index[n]))
        return found

    def _look_up(
        self, node: fx.Node, values: Mapping[int, Any]
    ) -> tuple[Callable[..., Any], nn.Module | None, Rule | None]:
        if node.op == "placeholder":
            return _no_call, None, Rule("input", Reach.SAME, Down.PASS)
        target: Any = node.target
        if node.op == "get_attr":
            return (lambda: _attribute(self._attributes, target)), None, None
        if node.op == "call_module":
            module = self._modules[target]
            return module, module, module_rule(module)
        as_module = AS_MODULE.get(target)
        if as_module is not None:
            named = {key: value for key, value in node.kwargs.items() if key != "input"}
            constants = fx.node.map_arg((node.args[1:], named), lambda n: values[self._index[n]])
            made = as_module(*constants[0], **constants[1])
            if made is not None:
                made.eval()
                return made, made, module_rule(made)
        call = _method(target) if node.op == "call_method" else target
        return call, None, FUNCTION_RULES.get(target)

    def _fold(self) -> None:
        """Fold each BatchNorm into the convolution right before it, where nothing else reads it,
        and let rectifiers overwrite what only they read."""
        calls = [step.node.target for step in self.steps if step.node.op == "call_module"]
        fresh = {s.index for s in self.steps if s.rule and s.rule.down in _GIVES_NEW_TENSOR}
        for step in list(self.steps):
            if not step.inputs or step.module is None:
                continue
            before = self.steps[step.inputs[0]]
            if len(before.node.users) > 1 or before.node is self._output:
                continue
            norm, conv = step.module, before.module
            once = calls.count(before.node.target) == 1 and step.rule is not None
            if isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d) and once:
                self._replace(before.index, fuse_conv_bn_eval(conv, norm), before.rule)
                self._replace(step.index, nn.Identity(), module_rule(nn.Identity()))
                fresh.add(step.index)
            elif isinstance(step.module, nn.ReLU) and before.index in fresh:
                self._replace(step.index, nn.ReLU(inplace=True), step.rule)

    def _replace(self, index: int, module: nn.Module, rule: Rule | None) -> None:
        self.steps[index] = replace(self.steps[index], call=module, rule=rule, module=module)

    def _receptive_fields(self) -> list[Field | None]:
        _, *image = self.input_shape
        fields: list[Field | None] = []
        for step in self.steps:
            axes = [self._axis_field(step, fields, axis, image[axis]) for axis in (0, 1)]
            if axes[0] is None or axes[1] is None:
                fields.append(None)
            else:
                fields.append(Field(axes[0], axes[1], (image[0], image[1])))
        return fields

    def _axis_field(
        self, step: Step, fields: list[Field | None], axis: int, image: int
    ) -> AxisField | None:
        if not step.depends:
            return None
        if step.node.op == "placeholder":
            return AxisField.of_input(image)
        length = step.shape[1 + axis] if len(step.shape) == 3 else 1
        below = [(f.rows, f.cols)[axis] for i in step.inputs if (f := fields[i]) is not None]
        shapes = [self.steps[i].shape for i in step.inputs if fields[i] is not None]
        reach = step.rule.reach if step.rule else Reach.WHOLE
        if reach is Reach.WHOLE or any(len(shape) != 3 for shape in (step.shape, *shapes)):
            return through_everything(union([through_everything(b, 1) for b in below]), length)
        if reach is Reach.WINDOW:
            return through_window(below[0], _window(step.module, axis), length)
        if reach is Reach.CELLS:
            return through_cells(below[0], length)
        if reach is Reach.SELECTION:
            return through_selection(below[0], _source(step, shapes[0], axis))
        return union(below)

    def _find_layers(self) -> Iterator[Layer]:
        output = self._index[self._output]
        for step in self.steps:
            if step.rule is not None and step.rule.rectifier:
                yield self._layer(step.name, step, step.rule)
            if step.index == output:
                yield self._layer("logits", step)
            elif (named := self._unrectified(step)) is not None and named.index != output:
                yield self._layer(named.name, named)

    def _unrectified(self, step: Step) -> Step | None:
        """The step that is a layer because of the convolution ``step``: its BatchNorm if it has
        one, else itself; None if every way on from it passes a rectifier first."""
        if step.rule is None or not step.rule.filters:
            return None
        frontier, seen, found = list(step.node.users), set[fx.Node](), False
        while frontier and not found:
            node = frontier.pop()
            if node.op == "output":
                found = True
                break
            user = self.steps[self._index[node]]
            found = user.rule is not None and user.rule.filters
            rectified = user.rule is not None and user.rule.rectifier
            if node not in seen and user.depends and not rectified:
                frontier.extend(node.users)
            seen.add(node)
        if not found:
            return None
        users = list(step.node.users)
        after = self.steps[self._index[users[0]]] if users and users[0].op != "output" else None
        was_norm = after is not None and isinstance(
            self._modules.get(str(after.node.target)), nn.BatchNorm2d
        )
        return after if len(users) == 1 and was_norm else step

    def _layer(self, name: str, step: Step, rectifier: Rule | None = None) -> Layer:
        field_ = self._fields[step.index]
        if field_ is None:
            raise ModelUnsupported(f"Layer {name!r} does not depend on the image.")
        if len(step.shape) not in (1, 3):
            raise ModelUnsupported(
                f"Layer {name!r} has {len(step.shape)} axes an image ({step.shape}), but a layer "
                "is a stack of feature maps (channel, row, col) or a vector of neurons."
            )
        units, height, width = step.shape if len(step.shape) == 3 else (*step.shape, 1, 1)
        return Layer(
            name=name,
            step=step.index,
            op=step.rule.name if step.rule else str(step.node.target),
            units=units,
            height=height,
            width=width,
            rectified=rectifier is not None,
            ceiling=rectifier.ceiling if rectifier else None,
            field=field_,
            obstacle=self._obstacle(step),
        )

    def _obstacle(self, top: Step) -> str | None:
        needed = {top.index}
        lowest: Step | None = None
        for step in reversed(self.steps[: top.index + 1]):
            if step.index not in needed:
                continue
            if step.depends and (step.rule is None or step.rule.down is None):
                lowest = step
            needed.update(step.inputs)
        if lowest is None:
            return None
        return f"{lowest.name} ({_op_name(lowest)}) has no rule for the way down"

    def _sources(self, step: Step) -> list[int]:
        return [self._index[node] for node in step.node.all_input_nodes]

    def _last_uses(self, indices: Sequence[int]) -> dict[int, list[int]]:
        """Step → values nobody needs after it (the output and parameters stay)."""
        last: dict[int, int] = {}
        for index in indices:
            for source in self._sources(self.steps[index]):
                last[source] = index
        keep = self._index[self._output]
        uses: dict[int, list[int]] = {}
        for source, index in last.items():
            if source != keep:
                uses.setdefault(index, []).append(source)
        return uses


def _trace(model: nn.Module) -> tuple[NodePathTracer, fx.Graph]:
    tracer = NodePathTracer()
    try:
        with warnings.catch_warnings():
            # fx cannot assert that defaults which are no numbers keep their value: nobody sets them
            warnings.filterwarnings("ignore", message="Was not able to add assertion")
            graph = tracer.trace(model, _defaults(model))
    except Exception as error:  # whatever the model's own code raises under tracing
        raise ModelUnsupported(
            f"{type(model).__name__} cannot be traced by torch.fx: {error} "
            "Its forward must not branch on values or shapes of tensors."
        ) from error
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    needed = [node for node in inputs if not node.args]
    if len(needed) != 1:
        raise ModelUnsupported(
            f"{type(model).__name__} takes {len(needed)} inputs, but a model takes one: a batch "
            "of images."
        )
    return tracer, graph


def _defaults(model: nn.Module) -> dict[str, Any] | None:
    """Arguments that have a default keep it, so that a forward may branch on them."""
    parameters = inspect.signature(model.forward).parameters.values()
    given = {p.name: p.default for p in parameters if p.default is not p.empty}
    return given or None


def _no_call() -> None:
    raise AssertionError("the input is given, not called")


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _method(name: str) -> Callable[..., Any]:
    return lambda tensor, *args, **kwargs: getattr(tensor, name)(*args, **kwargs)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_tensors(part) for part in value)
    return isinstance(value, Tensor)


def _shape(value: Any) -> tuple[int, ...]:
    """Without the image axis; empty where there is none."""
    if isinstance(value, Tensor) and value.ndim > 0 and len(value) == _MEASURED_IMAGES:
        return tuple(value.shape[1:])
    return ()


def _bends_rule(step: Step, below: Sequence[Step]) -> bool:
    """Whether the call's arguments make it something else than its row in the table says."""
    if step.rule is None or step.module is not None or step.node.op == "placeholder":
        return False
    if not step.shape or not all(below[i].shape for i in step.inputs if below[i].depends):
        return True
    match step.rule.down:
        case Down.TRANSPOSE:  # not one linear map: its other arguments are computed
            return len(step.node.all_input_nodes) > 1
        case Down.COPY:
            return "alpha" in step.node.kwargs
        case Down.SPLIT:
            dim = step.node.args[1] if len(step.node.args) > 1 else step.node.kwargs.get("dim", 0)
            constant = not all(below[i].depends for i in step.inputs)
            return constant or dim not in (1, -len(step.shape))
    return False


def _op_name(step: Step) -> str:
    if step.module is not None:
        return type(step.module).__name__
    return getattr(step.node.target, "__name__", str(step.node.target))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _window(module: Any, axis: int) -> Window:
    return Window(
        kernel=_pair(module.kernel_size)[axis],
        stride=_pair(module.stride)[axis],
        padding=padding_of(module)[axis],
        dilation=_pair(getattr(module, "dilation", 1))[axis],
    )


def padding_of(module: Any) -> tuple[int, int]:
    """Padding before the first row and column; kernels padded unevenly have no row in the table."""
    if module.padding == "same":
        reach = (np.array(module.kernel_size) - 1) * np.array(module.dilation)
        return int(reach[0]) // 2, int(reach[1]) // 2
    return (0, 0) if module.padding == "valid" else _pair(module.padding)


def _source(step: Step, shape: tuple[int, ...], axis: int) -> Int[np.ndarray, " position"]:
    """From which row (or column) below each one comes that a padding or slicing leaves; −1 where
    from none.  Found by putting a map of its own row numbers through the step."""
    numbers = torch.arange(1, shape[1 + axis] + 1).view((-1, 1) if axis == 0 else (1, -1))
    numbered = numbers.expand(1, *shape).double()
    # Affine: what remains of the difference is the numbers, not the constant of a padding.
    moved = step.apply_to(numbered) - step.apply_to(torch.zeros_like(numbered))
    others = [1, 3 - axis]  # channels, and the other axis of the map
    source: Int[np.ndarray, " position"] = moved.amax(others)[0].long().numpy() - 1
    return source
