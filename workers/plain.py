"""Run a job's model plainly: traced for the names of its layers, but neither folded nor batched."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from workers.graph import Layer
from workers.job import Job, trace

TOLERANCE = 1e-4
"""float32 sums in another order: of images alone and of BatchNorms that are not folded."""


class PlainForward:
    """The model of a job, unfolded, that shows each layer of one image."""

    def __init__(self, job: Job) -> None:
        model = job.packed.build()
        network = trace(job.packed, model)  # for the names; the model itself is untouched
        layers = [network.layer(layer.name) for layer in job.layers]
        self._watch: dict[str, list[Layer]] = {}
        for layer in layers:
            node = network.steps[layer.step].node
            self._watch.setdefault(node.name, []).append(layer)
        self._module = fx.GraphModule(model, network.steps[0].node.graph)

    @torch.inference_mode()
    def __call__(
        self,
        image: Float[Tensor, "1 channel row col"],
        see: Callable[[str, Float[Tensor, "unit row col"]], None],
    ) -> Tensor:
        """Returns the model's output."""
        watched = _Watched(self._module, self._watch, see)
        output: Tensor = watched.run(image, enable_io_processing=False)
        return output


class _Watched(fx.Interpreter):
    def __init__(
        self, module: nn.Module, watch: dict[str, list[Layer]], see: Callable[[str, Tensor], None]
    ) -> None:
        super().__init__(module)
        self._watch, self._see = watch, see

    def run_node(self, n: fx.Node) -> Any:
        layers = self._watch.get(n.name, [])
        for layer in layers:
            if layer.ceiling is not None:  # its score is the rectifier's input, from zero
                self._show(layer, self.env[n.all_input_nodes[0]].clamp(min=0))
        value = super().run_node(n)
        for layer in layers:
            if layer.ceiling is None:
                self._show(layer, value)
        return value

    def _show(self, layer: Layer, value: Tensor) -> None:
        # A layer may have its channels last; one of neurons has no rows.
        maps = layer.as_maps(value)[0]
        self._see(layer.name, maps.reshape(layer.units, layer.height, layer.width))
