"""The layers of a model: what they are called, what they see, and what cannot be projected.

A layer is the output of a rectifier, wherever the graph has one, and the model's output, always
called ``logits``; besides, the output of a convolution (after its BatchNorm) that some path carries
to another convolution or to the output without a rectifier between.  Names are those of
``torchvision.models.feature_extraction.get_graph_node_names``.  No model is known by name here.
"""

import copy
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, device, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deconvoy.errors import ModelUnsupported, RequestError
from deconvoy.spec import Method
from workers import numerics
from workers.fields import Field
from workers.ops import Down, Rule, module_rule
from workers.sight import Sight, field_of, sights
from workers.steps import Program, Step, op_name
from workers.switches import Switches, passed, pooled, recorded, recorded_bytes


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
    order: tuple[int, ...]
    """The axes of unit, row and column in the step's output, (0, 1, 2) but for turned maps; (0,) of
    a vector.  The image axis is not counted."""
    obstacle: str | None
    """Why it cannot be projected to pixels; None where it can."""

    @property
    def is_map(self) -> bool:
        return self.height * self.width > 1

    def as_maps(self, values: Tensor) -> Tensor:
        """The step's values as (image, unit, row, col), or (image, neuron)."""
        return values.permute(0, *(axis + 1 for axis in self.order))

    def as_output(self, signal: Float[Tensor, "hit unit row col"]) -> Tensor:
        """Back from maps to the axes of the step's output."""
        if len(self.order) == 1:
            return signal.flatten(1)
        return signal.permute(0, *(self.order.index(axis) + 1 for axis in range(3)))


Visit = Callable[[Layer, Tensor], None]

_GIVES_NEW_TENSOR = (Down.FILTER, Down.MATRIX, Down.COPY)


class Network:
    """A traced model in evaluation mode, on one device, for one input size.

    Args:
        model: left untouched; a copy is traced and its BatchNorms are folded into the convolutions
            before them.
        input_shape: (channels, height, width) of one preprocessed image.

    Raises:
        ModelUnsupported: the model cannot be traced, does not run on images of this size, does not
            return one tensor of one row an image, or has a layer that is neither feature maps nor
            neurons.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
        self.input_shape = input_shape
        model = copy.deepcopy(model).eval().requires_grad_(False)
        self._program = Program(model, input_shape)
        self._fold()
        self._dtype: torch.dtype | None = None
        self.device = device("cpu")
        """Where its parameters are, and images must be."""
        self.layout = numerics.layout_on("cpu")
        """Of maps in memory, as convolutions give them."""
        self._lay_out(self.layout)
        self._program.refuse_hidden_writes(self.layout)
        self._sights = sights(self.steps, input_shape[1:])
        # What comes after the output in the graph is computed for nothing.
        self.layers = tuple(sorted(self._find_layers(), key=lambda layer: layer.name == "logits"))
        self._layers_at = {
            step.index: [layer for layer in self.layers if layer.step == step.index]
            for step in self.steps
        }
        self._last_use = self._last_uses(range(len(self.steps)))

    @property
    def steps(self) -> list[Step]:
        return self._program.steps

    @property
    def sights(self) -> Sequence[Sight | None]:
        """What each step sees of the image."""
        return self._sights

    def layer(self, name: str) -> Layer:
        """The layer of that name.

        Raises:
            RequestError: there is none; names the nearest.
        """
        known = {layer.name: layer for layer in self.layers}
        if name in known:
            return known[name]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known)}."
        raise RequestError(f"The model has no layer {name!r}: {hint}")

    def forward(self, images: Tensor, visit: Visit, rectify: Visit | None = None) -> Tensor:
        """One pass; ``visit`` sees each layer's output the moment it exists (it may be overwritten
        in place right after), as (image, unit, row, col) or (image, neuron).  Of a layer with a
        ceiling it sees the rectifier's input instead, from which scores are taken.

        Args:
            rectify: does the work of a rectifier that may overwrite its input, and is its layer's
                ``visit``, so that maps need to be gone through only once.

        Returns:
            The model's output.
        """
        values: dict[int, Any] = {}
        images = images.to(self._dtype or images.dtype, memory_format=self.layout)
        for step in self.steps:
            here = self._layers_at[step.index]
            for layer in (layer for layer in here if layer.ceiling is not None):
                visit(layer, layer.as_maps(values[step.inputs[0]]))
            if rectify is not None and len(here) == 1 and _overwrites(step):
                values[step.index] = values[step.inputs[0]]
                rectify(here[0], here[0].as_maps(values[step.index]))
            else:
                values[step.index] = self._program.run(step, values, images)
                for layer in (layer for layer in here if layer.ceiling is None):
                    visit(layer, layer.as_maps(values[step.index]))
            for done in self._last_use.get(step.index, ()):
                del values[done]
        output: Tensor = values[self._program.output]
        return output

    @property
    def output(self) -> Step:
        """The step whose output is the model's."""
        return self.steps[self._program.output]

    def run(self, step: Step, values: Mapping[int, Any], images: Tensor) -> Any:
        """One step on the values of the steps it reads (``sources``)."""
        return self._program.run(step, values, images)

    def sources(self, step: Step) -> list[int]:
        """The steps it reads, those included that give no tensor but a size."""
        return self._program.sources(step)

    def sight(self, step: Step) -> Sight | None:
        """What a step sees of the image; None if nothing."""
        return self._sights[step.index]

    def path_to(self, layer: Layer) -> list[Step]:
        """The steps a layer is computed from, itself the last, in execution order."""
        needed = {layer.step}
        for step in reversed(self.steps[: layer.step + 1]):
            if step.index in needed:
                needed.update(self._program.sources(step))
        return [step for step in self.steps if step.index in needed]

    def switches(
        self,
        images: Float[Tensor, "image channel row col"],
        path: Sequence[Step],
        method: Method = "deconvnet",
    ) -> Switches:
        """Run ``path`` and keep the place of every maximum its max pools take and, for methods that
        ask for it, what its rectifiers let pass."""
        kept = recorded(path, method)
        if not kept:
            return Switches({})
        codes: dict[int, Tensor] = {}
        values: dict[int, Any] = {}
        images = images.to(memory_format=self.layout)
        last_use = self.last_uses(path)
        for step in path:
            if step.index > kept[-1]:
                break
            if step.index in kept and isinstance(step.module, nn.MaxPool2d):
                pool = step.module
                values[step.index], codes[step.index] = pooled(values[step.inputs[0]], pool)
            else:
                if step.index in kept and step.rule is not None:  # before it is overwritten
                    codes[step.index] = passed(values[step.inputs[0]], step.rule.ceiling)
                values[step.index] = self._program.run(step, values, images)
            for done in last_use.get(step.index, ()):
                values.pop(done, None)
        return Switches(codes)

    def switch_bytes(self, path: Sequence[Step], method: Method = "deconvnet") -> int:
        """Of what ``switches`` keeps of one image, at least 1."""
        kept = recorded(path, method)
        return max(1, sum(recorded_bytes(self.steps[index]) for index in kept))

    def cast(self, dtype: torch.dtype) -> "Network":
        """Compute in another type, faster, but not the same; returns itself."""
        self._dtype = dtype
        for module in self._modules():
            module.to(dtype=dtype)
        self._lay_out(torch.channels_last)
        return self

    def to(self, place: device | str) -> "Network":
        """Move the parameters; returns itself."""
        self.device = device(place)
        for module in self._modules():
            module.to(place)
        if self._dtype is None:
            self._lay_out(numerics.layout_on(self.device.type))
        return self

    def _lay_out(self, layout: torch.memory_format) -> None:
        self.layout = layout
        for module in self._modules():
            for values in (*module.parameters(), *module.buffers()):
                if values.ndim == 4:
                    values.data = values.data.contiguous(memory_format=layout)

    def _modules(self) -> Iterator[Any]:
        """The model, and what does its steps instead of its own modules."""
        yield self._program.model
        yield from (step.module for step in self.steps if step.module is not None)

    def _fold(self) -> None:
        """Fold each BatchNorm into the convolution right before it, where nothing else reads it,
        let rectifiers overwrite what only they read, and leave out means over one place each."""
        calls = [step.node.target for step in self.steps if step.node.op == "call_module"]
        fresh = {s.index for s in self.steps if s.rule and s.rule.down in _GIVES_NEW_TENSOR}
        for step in list(self.steps):
            if not step.inputs or step.module is None:
                continue
            before = self.steps[step.inputs[0]]
            if len(before.node.users) > 1 or before.index == self._program.output:
                continue
            if self._hands_on(step, before) and (before.index in fresh or _is_max_pool(before)):
                self._program.substitute(step.index, nn.Identity(), module_rule(nn.Identity()))
                continue
            norm, conv = step.module, before.module
            once = calls.count(before.node.target) == 1 and step.rule is not None
            if isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d) and once:
                folded = fuse_conv_bn_eval(conv, norm)
                self._program.substitute(before.index, folded, before.rule)
                self._program.substitute(step.index, nn.Identity(), module_rule(nn.Identity()))
                fresh.add(step.index)
            elif isinstance(step.module, nn.ReLU) and before.index in fresh:
                self._program.substitute(step.index, nn.ReLU(inplace=True), step.rule)

    def _hands_on(self, step: Step, before: Step) -> bool:
        """Whether it takes means over one place each."""
        pools = isinstance(step.module, nn.AdaptiveAvgPool2d)
        return pools and step.depends and step.shape == before.shape

    def _find_layers(self) -> Iterator[Layer]:
        for step in self.steps:
            # A rectifier of parameters alone (a table of position biases) shows nothing.
            if step.rule is not None and step.rule.rectifier and step.depends:
                yield self._layer(step.name, step, step.rule)
            if step.index == self._program.output:
                yield self._layer("logits", step)
            elif (named := self._unrectified(step)) is not None:
                if named.index != self._program.output:
                    yield self._layer(named.name, named)

    def _unrectified(self, step: Step) -> Step | None:
        """The step that is a layer because of the convolution ``step``: its BatchNorm if it has
        one, else itself; None if every way on from it passes a rectifier first."""
        if step.rule is None or not step.rule.filters or not step.depends:
            return None
        frontier, seen, found = self._program.users(step), set[int](), False
        while frontier and not found:
            user = frontier.pop()
            found = user is None or (user.rule is not None and user.rule.filters)
            if user is None or user.index in seen:
                continue
            rectified = user.rule is not None and user.rule.rectifier
            if user.depends and not rectified:
                frontier.extend(self._program.users(user))
            seen.add(user.index)
        if not found:
            return None
        users = self._program.users(step)
        after = users[0] if len(users) == 1 else None
        return after if after is not None and self._program.is_norm(after) else step

    def _layer(self, name: str, step: Step, rectifier: Rule | None = None) -> Layer:
        sight = self._sights[step.index]
        if sight is None:
            raise ModelUnsupported(f"Layer {name!r} does not depend on the image.")
        order = sight.order
        if order is None:
            raise ModelUnsupported(self._of_other_axes(name, step))
        units, height, width = (*(sight.shape[axis] for axis in order), 1, 1)[:3]
        return Layer(
            name=name,
            step=step.index,
            op=step.rule.name if step.rule else str(step.node.target),
            units=units,
            height=height,
            width=width,
            rectified=rectifier is not None,
            ceiling=rectifier.ceiling if rectifier else None,
            field=field_of(sight, self.input_shape[1:]),
            order=order,
            obstacle=self._obstacle(step),
        )

    def _of_other_axes(self, name: str, step: Step) -> str:
        sizes = "×".join(map(str, step.shape)) or "no"
        mixing = next((s for s in self._ancestry(step) if self._loses_axes(s)), step)
        return (
            f"{type(self._program.model).__name__}: the layer {name!r} has {len(step.shape)} axes "
            f"an image ({sizes}), in which {mixing.name} ({op_name(mixing)}) has mixed rows and "
            "columns with others; a layer is a stack of feature maps (channel, row, col) or a "
            "vector of neurons. Models of tokens or attention windows cannot be analysed: take a "
            "convolutional one."
        )

    def _loses_axes(self, step: Step) -> bool:
        """Whether its inputs have rows and columns and its output, of several axes, has not."""
        below = [s for i in step.inputs if (s := self._sights[i]) is not None]
        return _lost(self._sights[step.index]) and not any(map(_lost, below))

    def _ancestry(self, top: Step) -> Iterator[Step]:
        """The steps it is computed from, in execution order, itself the last."""
        needed = {top.index}
        for step in reversed(self.steps[: top.index + 1]):
            if step.index in needed:
                needed.update(step.inputs)
        return (step for step in self.steps if step.index in needed)

    def _obstacle(self, top: Step) -> str | None:
        for step in self._ancestry(top):
            if step.depends and (step.rule is None or step.rule.down is None):
                return f"{step.name} ({op_name(step)}) has no rule for the way down"
        return None

    def last_uses(self, path: Sequence[Step]) -> dict[int, list[int]]:
        """Step → steps whose values no later one of ``path`` reads."""
        return self._last_uses([step.index for step in path])

    def _last_uses(self, indices: Sequence[int]) -> dict[int, list[int]]:
        """Step → values nobody needs after it (the output and parameters stay)."""
        last: dict[int, int] = {}
        for index in indices:
            for source in self._program.sources(self.steps[index]):
                last[source] = index
        uses: dict[int, list[int]] = {}
        for source, index in last.items():
            if source != self._program.output:
                uses.setdefault(index, []).append(source)
        return uses


def _is_max_pool(step: Step) -> bool:
    """One of ours, which gives new memory, too."""
    return isinstance(step.module, nn.MaxPool2d)


def _overwrites(step: Step) -> bool:
    """Whether it is the plain rectifier, on what nothing else reads."""
    return isinstance(step.module, nn.ReLU) and step.module.inplace


def _lost(sight: Sight | None) -> bool:
    return sight is not None and len(sight.shape) != 1 and None in sight.axes
