"""Trace a model with torch.fx and run it step by step; each step knows its row in the table of ops.

A step is one operation of the graph.  Shapes are measured once, by running the steps on zeros (on
the meta device that costs nothing).  A step that overwrites its input is read by all that comes
after it, as the model's own Python does.  No model is known by name here.
"""

import inspect
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from deconvoy.errors import ModelUnsupported
from workers.ops import AS_MODULE, DIVIDES, FUNCTION_RULES, Down, Reach, Rule, module_rule, part_of

MEASURED_IMAGES = 2
"""Images of the run that measures shapes; not one, so that ``squeeze`` leaves their axis alone."""


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
    constants: Mapping[fx.Node, Any] = field(default_factory=dict, repr=False)
    """Its arguments that do not depend on the image's values; sizes are of the measured run."""

    def apply_to(self, tensor: Tensor) -> Tensor:
        """Call it on another tensor than the traced one."""
        if self.module is not None:
            result: Tensor = self.call(tensor)
            return result
        args: Any = fx.node.map_arg(self.node.args, lambda n: self.constants.get(n, tensor))
        kwargs: Any = fx.node.map_arg(self.node.kwargs, lambda n: self.constants.get(n, tensor))
        result = self.call(*args, **kwargs)
        return result


class Program:
    """The steps of a model, in execution order.

    Args:
        model: in evaluation mode; it becomes part of the program.
        input_shape: (channels, height, width) of one preprocessed image.

    Raises:
        ModelUnsupported: the model cannot be traced, does not run on images of this size, or does
            not return one tensor.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
        self.model = model
        self.input_shape = input_shape
        tracer, graph = _trace(model)
        _name_parts(graph)
        self.nodes = [node for node in graph.nodes if node.op != "output"]
        (returned,) = (node for node in graph.nodes if node.op == "output")
        if not isinstance(returned.args[0], fx.Node):
            raise ModelUnsupported(
                f"{type(model).__name__} returns {type(returned.args[0]).__name__}, but a model "
                "must return one tensor of class scores: wrap it to return that one."
            )
        self.index = {node: index for index, node in enumerate(self.nodes)}
        self._modules = dict(model.named_modules())
        self._check_channels()
        names = {node: tracer.node_to_qualname.get(node, node.name) for node in self.nodes}
        self.steps = self._measure(names)
        # Only now: an in-place step may have become the output.
        self.output = self.index[returned.args[0]]

    def run(self, step: Step, values: Mapping[int, Any], images: Tensor) -> Any:
        node = step.node
        if node.op == "placeholder":
            return node.args[0] if node.args else images  # an argument left at its default
        if node.op == "get_attr":
            return step.call()
        if step.module is not None and node.op != "call_module":
            return step.call(values[step.inputs[0]])  # its parameters are its own, not the call's
        args = fx.node.map_arg(node.args, lambda n: values[self.index[n]])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: values[self.index[n]])
        return step.call(*args, **kwargs)

    def sources(self, step: Step) -> list[int]:
        return [self.index[node] for node in step.node.all_input_nodes]

    def users(self, step: Step) -> list[Step | None]:
        """Who reads it; None stands for the model's output."""
        return [
            None if node.op == "output" else self.steps[self.index[node]]
            for node in step.node.users
        ]

    def is_norm(self, step: Step) -> bool:
        """Whether the model has a BatchNorm there, folded by now or not."""
        return isinstance(self._modules.get(str(step.node.target)), nn.BatchNorm2d)

    def substitute(self, index: int, module: nn.Module, rule: Rule | None) -> None:
        """Let another module do a step."""
        self.steps[index] = replace(self.steps[index], call=module, rule=rule, module=module)

    def _check_channels(self) -> None:
        """A convolution of the images themselves says how many channels they must have."""
        images = [node for node in self.nodes if node.op == "placeholder" and not node.args]
        for node in (user for image in images for user in image.users):
            reader = self._modules.get(str(node.target)) if node.op == "call_module" else None
            given = self.input_shape[0]
            if not isinstance(reader, nn.Conv2d) or reader.in_channels == given:
                continue
            wanted = reader.in_channels
            remedy = (
                f"give data.transform a mean and a std of {wanted} number{'s' * (wanted > 1)}"
                if wanted in (1, 3)
                else "images are read as RGB (3) or grey (1): wrap it so that it takes one of these"
            )
            raise ModelUnsupported(
                f"{type(self.model).__name__} takes images of {wanted} channels ({node.target}), "
                f"but the transform's mean has {given}: {remedy}."
            )

    def _measure(self, names: Mapping[fx.Node, str]) -> list[Step]:
        """Run once on zeros to learn every shape, and look every operation up in the table."""
        images = self._zeros()
        values: dict[int, Any] = {}
        steps: list[Step] = []
        for index, node in enumerate(self.nodes):
            call, module, rule = self._look_up(node, values)
            sources = [i for i in self._arguments(node) if _holds_tensors(values[i])]
            draft = Step(index, names[node], node, call, rule, module, tuple(sources))
            versions = {i: v._version for i, v in values.items() if isinstance(v, Tensor)}
            values[index] = self._try(draft, values, images)
            written = [i for i, version in versions.items() if values[i]._version > version]
            for source in (i for i in sources if i in written):
                self._read_later(values, source, index)
            self._refuse_hidden_writes(values, written, sources, names[node])
            depends = _holds_tensors(values[index]) and (
                any(steps[source].depends for source in sources)
                or (node.op == "placeholder" and not node.args)
            )
            constant = {
                n: values[i] for n in node.all_input_nodes if not steps[i := self.index[n]].depends
            }
            shape = _shape(values[index]) if depends else ()
            draft = replace(draft, depends=depends, shape=shape, constants=constant)
            steps.append(replace(draft, rule=_rule_of_call(draft, steps)))
        return steps

    def _try(self, step: Step, values: Mapping[int, Any], images: Tensor) -> Any:
        try:
            with torch.no_grad():
                return self.run(step, values, images)
        except Exception as error:  # whatever torch raises for shapes that do not fit
            _, height, width = self.input_shape
            raise ModelUnsupported(
                f"{type(self.model).__name__} does not run on images of {height}×{width} "
                f"pixels: {step.name} ({op_name(step)}) fails with: {error} "
                "Check the transform's crop."
            ) from error

    def refuse_hidden_writes(self, layout: torch.memory_format) -> None:
        """What is a copy with one layout of maps may be a view with another.

        Raises:
            ModelUnsupported: a step overwrites what another reads later, and no edge says so.
        """
        images = self._zeros().to(memory_format=layout)
        values: dict[int, Any] = {}
        for step in self.steps:
            versions = {i: v._version for i, v in values.items() if isinstance(v, Tensor)}
            values[step.index] = self._try(step, values, images)
            written = [i for i, version in versions.items() if values[i]._version > version]
            self._refuse_hidden_writes(values, written, step.inputs, step.name)

    def _zeros(self) -> Tensor:
        """Images to measure with."""
        parameter = next(self.model.parameters(), torch.zeros(()))
        shape = MEASURED_IMAGES, *self.input_shape
        return torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)

    def _read_later(self, values: Mapping[int, Any], source: int, index: int) -> None:
        """Step ``index`` has overwritten ``source``: let all that comes after read its output."""
        for i, value in values.items():
            if i != index and value is values[source]:  # also what eval-mode dropout hands on
                for user in self._later_users(i, index):
                    user.replace_input_with(self.nodes[i], self.nodes[index])

    def _later_users(self, i: int, index: int) -> list[fx.Node]:
        users = list(self.nodes[i].users)
        return [user for user in users if self.index.get(user, len(self.nodes)) > index]

    def _refuse_hidden_writes(
        self, values: Mapping[int, Any], written: Sequence[int], sources: Sequence[int], name: str
    ) -> None:
        """A view that shares memory with what was overwritten has changed, and no edge says so."""
        targets = [values[i] for i in sources if i in written]
        index = len(values) - 1
        for i in written:
            hidden = not any(values[i] is target for target in targets)
            if (
                hidden
                and self._later_users(i, index)
                and any(_overlap(values[i], target) for target in targets)
            ):
                raise ModelUnsupported(
                    f"{type(self.model).__name__}: {name} overwrites memory that "
                    f"{self.nodes[i].name} shares and something reads later, so the graph does not "
                    "show what depends on what: write it without the in-place operation "
                    "(x = x + y for x += y, inplace=False)."
                )

    def _arguments(self, node: fx.Node) -> list[int]:
        """The steps in a node's arguments, in order; one that is there twice comes twice."""
        found: list[int] = []
        fx.node.map_arg((node.args, node.kwargs), lambda n: found.append(self.index[n]))
        return found

    def _look_up(
        self, node: fx.Node, values: Mapping[int, Any]
    ) -> tuple[Callable[..., Any], nn.Module | None, Rule | None]:
        if node.op == "placeholder":
            return _no_call, None, Rule("input", Reach.SAME, Down.PASS)
        target: Any = node.target
        if node.op == "get_attr":
            return (lambda: _attribute(self.model, target)), None, None
        if node.op == "call_module":
            module = self._modules[target]
            return module, module, module_rule(module)
        as_module = AS_MODULE.get(target)
        if as_module is not None:
            named = {key: value for key, value in node.kwargs.items() if key != "input"}
            constants = fx.node.map_arg((node.args[1:], named), lambda n: values[self.index[n]])
            made = as_module(*constants[0], **constants[1])
            if made is not None:
                made.eval()
                return made, made, module_rule(made)
        call = _method(target) if node.op == "call_method" else target
        return call, None, FUNCTION_RULES.get(target)


def op_name(step: Step) -> str:
    """What a person calls the operation."""
    if step.module is not None:
        return type(step.module).__name__
    if step.node.target is part_of:
        divide: Any = step.node.args[1]
        return getattr(divide, "__name__", str(divide))
    return getattr(step.node.target, "__name__", str(step.node.target))


class _Proxy(fx.Proxy):
    """Sees ``x += y`` as the overwriting it is; torch's own proxy takes it for ``x = x + y``, so
    that other names of the same tensor would keep the old values."""

    def _overwrite(self, operation: Callable[..., Any], other: Any) -> fx.Proxy:
        made: fx.Proxy = self.tracer.create_proxy("call_function", operation, (self, other), {})
        return made

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._overwrite(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._overwrite(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._overwrite(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._overwrite(operator.itruediv, other)


class _Tracer(NodePathTracer):  # type: ignore[misc]  # torchvision is not annotated
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _trace(model: nn.Module) -> tuple[NodePathTracer, fx.Graph]:
    tracer = _Tracer()
    try:
        with warnings.catch_warnings():
            # fx cannot assert that defaults which are no numbers keep their value: nobody sets them
            warnings.filterwarnings("ignore", message="Was not able to add assertion")
            graph = tracer.trace(model, _defaults(model))
    except Exception as error:  # whatever the model's own code raises under tracing
        raise ModelUnsupported(
            f"{type(model).__name__} cannot be traced by torch.fx: {str(error).rstrip('. ')}. "
            "Its forward must not branch on values or shapes of tensors: take such branches out, "
            "or wrap the part of the model that has none and give that."
        ) from error
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    needed = [node for node in inputs if not node.args]
    if len(needed) != 1:
        raise ModelUnsupported(
            f"{type(model).__name__} takes {len(needed)} inputs, but a model takes one, a batch "
            "of images: wrap it so that the others are constants."
        )
    return tracer, graph


def _defaults(model: nn.Module) -> dict[str, Any] | None:
    """Arguments that have a default keep it, so that a forward may branch on them."""
    parameters = inspect.signature(model.forward).parameters.values()
    given = {p.name: p.default for p in parameters if p.default is not p.empty}
    return given or None


def _name_parts(graph: fx.Graph) -> None:
    """Where an operation returns several tensors, make each of them a step of one tensor."""
    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method") or node.target not in DIVIDES:
            continue
        for user in list(node.users):
            picks = user.target is operator.getitem and user.args[0] is node
            if picks and isinstance(user.args[1], int):
                rest = (node.target, node.args[1:], dict(node.kwargs), user.args[1])
                user.target, user.args = part_of, (node.args[0], *rest)
        if not node.users:
            graph.erase_node(node)


def _no_call() -> None:
    raise AssertionError("the input is given, not called")


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _method(name: str) -> Callable[..., Any]:
    if name in ("view", "view_as"):  # of maps as the model itself has them in memory
        return lambda tensor, *args, **kwargs: tensor.contiguous().view(*args, **kwargs)
    return lambda tensor, *args, **kwargs: getattr(tensor, name)(*args, **kwargs)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_tensors(part) for part in value)
    return isinstance(value, Tensor)


def _shape(value: Any) -> tuple[int, ...]:
    """Without the image axis; empty where there is none."""
    if isinstance(value, Tensor) and value.ndim > 0 and len(value) == MEASURED_IMAGES:
        return tuple(value.shape[1:])
    return ()


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two views of one memory have an element in common."""
    if one.untyped_storage()._cdata != other.untyped_storage()._cdata:
        return False
    count = one.untyped_storage().nbytes() // one.element_size()
    taken = torch.zeros(count, dtype=torch.bool)
    taken.as_strided(one.size(), one.stride(), one.storage_offset()).fill_(True)
    return bool(taken.as_strided(other.size(), other.stride(), other.storage_offset()).any())


def _rule_of_call(step: Step, below: Sequence[Step]) -> Rule | None:
    """The row of the table, less what the call's arguments make of it."""
    rule = step.rule
    if rule is None or step.module is not None or step.node.op == "placeholder":
        return rule
    if not step.shape or not all(below[i].shape for i in step.inputs if below[i].depends):
        return None
    match rule.down:
        case Down.TRANSPOSE:  # not one linear map: its other arguments are computed
            one = len(step.node.all_input_nodes) == 1
            divisor = rule.name == "div" and not isinstance(step.node.args[0], fx.Node)
            if rule.reach is Reach.SAME and (not one or divisor):
                return replace(rule, down=None)
            return rule if one else None
        case Down.COPY:
            return None if "alpha" in step.node.kwargs else rule
        case Down.SPLIT:
            dim = step.node.args[1] if len(step.node.args) > 1 else step.node.kwargs.get("dim", 0)
            constant = not all(below[i].depends for i in step.inputs)
            return None if constant or dim not in (1, -len(step.shape)) else rule
    return rule
