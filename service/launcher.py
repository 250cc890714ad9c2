"""Start the compute from the front door: the only module of ``service`` that reaches ``workers``.

Imports of ``workers`` stay inside the functions, so that help, queries and reading results load
neither torch nor Ray.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from deconvoy.errors import MissingExtra, RequestError
from deconvoy.occlusion import Occlusion
from deconvoy.run import Run
from deconvoy.spec import ComputeSpec, ModelSpec
from deconvoy.specs import Spec
from deconvoy.store import RunStore
from service import collisions, tables

# Read when torch is loaded.  Threads that wait for each other would spin on a core that somebody
# else has work for: beside one busy process training took ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ExecutorName = Literal["ray", "inline"]
Say = Callable[[str], None]


@contextmanager
def _extra(name: str, needed_for: str) -> Iterator[None]:
    """Turn a missing third-party package into a sentence that names its extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("workers", "deconvoy", "service"):
            place = getattr(sys.modules.get(package), "__file__", None)
            raise RequestError(
                f"{error}: Python found {place or 'something'} in place of Deconvoy's own package "
                f"{package!r}. Rename that file, or start from another folder."
            ) from error
        raise MissingExtra(name, needed_for) from error


def executor_of(name: ExecutorName, compute: ComputeSpec, address: str | None) -> Any:
    """The executor asked for.

    Args:
        address: of a running Ray cluster; default: ``RAY_ADDRESS``, else one on this machine is
            started for this job.
    """
    if name == "inline":
        from workers.executors.inline import InlineExecutor

        if address is not None:
            raise RequestError("--address is for the ray executor; the inline one runs here.")
        asked = None if compute.workers == "auto" else compute.workers
        return InlineExecutor(asked, compute.threads, compute.gpus_per_worker)
    collisions.refuse(collisions.in_folder(Path.cwd()))  # Ray's workers look there first
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        os.environ["RAY_ADDRESS"] = address  # read when Ray is imported
    with _extra("ray", "Running on Ray"):
        from workers.executors.ray import RayExecutor
    return RayExecutor(compute, address)


def plan(spec: Spec, say: Say) -> dict[str, Any]:
    """What a job or a study would do, take and need; a spec that is wrong is refused before it is
    measured."""
    with _extra("workers", "Planning a job"):
        from workers.undertaking import planned

    def measuring() -> None:
        say("measuring a few of its images …")

    found: dict[str, Any] = planned(spec, measuring)
    return found


def run(
    spec: Spec,
    url: str,
    *,
    executor: ExecutorName = "ray",
    address: str | None = None,
    overwrite: bool = False,
    observe: Any,
    say: Say,
) -> dict[str, Any]:
    """Run a job or a study in the foreground; returns its results in short."""
    with _extra("workers", "Running a job"):
        from workers import undertaking

    def create(check: Any) -> Any:
        return undertaking.create(spec, url, overwrite=overwrite, check=check)

    return _execute_new(create, executor, address, observe, say)


def extend(
    url: str,
    uri: str,
    out: str,
    *,
    labels: str | None,
    executor: ExecutorName = "ray",
    address: str | None = None,
    overwrite: bool = False,
    observe: Any,
    say: Say,
) -> dict[str, Any]:
    """Merge new images into a finished run, as a new run; returns its results in short."""
    with _extra("workers", "Extending a run"):
        from workers import extend as workers_extend

    def create(check: Any) -> Any:
        return workers_extend.create(url, uri, out, labels=labels, overwrite=overwrite, check=check)

    return _execute_new(create, executor, address, observe, say)


def _execute_new(
    create: Callable[[Any], Any],
    executor: ExecutorName,
    address: str | None,
    observe: Any,
    say: Say,
) -> dict[str, Any]:
    """Make a run and work on it.

    Args:
        create: makes the run; is given the check that refuses a job before anything is written or
            replaced.
    """
    from workers import undertaking

    carriers: list[Any] = []

    def check(job: Any, store: Any) -> None:
        undertaking.require_room(job, store)
        _say(job, say)
        carriers.append(executor_of(executor, job.compute, address))
        carriers[-1].require_fast(job.compute.precision)

    with _stoppable():
        try:
            job, store = create(check)
            found: dict[str, Any] = undertaking.execute(job, store, carriers[0], observe)
            return found
        finally:
            for carrier in carriers:
                carrier.shutdown()


def resume(
    url: str,
    *,
    executor: ExecutorName = "ray",
    address: str | None = None,
    workers: int | None = None,
    observe: Any,
    say: Say,
) -> dict[str, Any]:
    """Go on with a run.

    Args:
        workers: other than it began with.
    """
    with _extra("workers", "Running a job"):
        from workers import undertaking

    RunStore(url).require_writable()
    opened = Run(url)
    if opened.status == "done":
        return dict(opened.attributes["results"])
    job, store = undertaking.reopen(url)
    with store.driver_lock():  # refuses before Ray starts
        _say(job, say)
    chosen = job.compute
    if workers is not None:
        chosen = chosen.model_copy(update={"workers": workers})
    with _stoppable():
        carrier = executor_of(executor, chosen, address)
        try:
            return undertaking.execute(job, store, carrier, observe)
        finally:
            carrier.shutdown()


def _say(job: Any, say: Say) -> None:
    from workers.undertaking import told

    for what, line in told(job).items():
        say(f"{what:<10} {line}")
    transform = tables.transform_told(job.transform.model_dump())
    say(f"transform  {transform} ({job.transform_from})")


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM end a job as Ctrl-C does: cleanly, resumable."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt  # its way out is tested and says how to resume

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def layers(model: str) -> dict[str, Any]:
    """The layers of a model, with size, stride and receptive field."""
    with _extra("workers", "Reading a model"):
        from workers.job import trace
        from workers.models import pack
        from workers.writer import layer_attributes

    packed = pack(ModelSpec(name=model), seed=0)
    network = trace(packed)
    return {
        "model": model,
        "input": list(network.input_shape),
        "transform_from": packed.transform_from,
        "layers": [layer_attributes(layer) for layer in network.layers],
    }


def verify(url: str, sample: int) -> dict[str, Any]:
    """Whether a run is whole and true; loads torch only if hits are to be recomputed."""
    with _extra("workers", "Recomputing hits"):
        from workers.verify import verify as verify_run

        found: dict[str, Any] = verify_run(url, sample).to_json()
    return found


def occlude(
    url: str,
    images: Sequence[int | str],
    *,
    patch: int | None = None,
    stride: int | None = None,
    layer: str | None = None,
) -> Iterator[Occlusion]:
    """Slide a square over each of some images when it is asked for, with a run's model.

    Args:
        images: ids of images of the run, or files that nobody scanned.
        layer: the only one to watch; default: all of the run.
    """
    with _extra("workers", "Occluding an image"):
        from workers.fresh import occlude_each

    layers = None if layer is None else [layer]
    yield from occlude_each(url, images, patch=patch, stride=stride, layers=layers)


def demo(out: Path, *, full: bool = False, observe: Any, say: Say) -> dict[str, Any]:
    """Train and analyse on built-in data; returns what was found and where it is.

    Args:
        full: with every analysis there is, and a study of architectures.
    """
    with _extra("workers", "The demo"):
        from workers import demo as workers_demo

    folder = workers_demo.prepare(out)
    trained = workers_demo.train_small(folder, say)
    spec = workers_demo.write_spec(folder, trained, full)
    say(f"analysing {workers_demo.IMAGES:,} images it has never seen, every layer")
    found = run(spec, str(folder.run), overwrite=True, observe=observe, say=_silent)
    if full:
        study = workers_demo.write_study_spec(folder)
        say(f"training {len(study.titles)} architectures on {workers_demo.STUDY_IMAGES:,} images")
        run(study, str(folder.study), overwrite=True, observe=observe, say=_silent)
    return {**found, "folder": folder, "training_accuracy": trained.accuracy}


def _silent(line: str) -> None:
    """Nobody needs it."""


def serve_cluster(announce: Callable[[str], None]) -> None:
    """Be a local Ray cluster until told to end.

    Args:
        announce: told its address when it is ready.
    """
    with _extra("ray", "A local Ray"):
        from workers.executors.ray import serve_cluster as serve
    serve(announce)


def node_command(address: str) -> list[str]:
    """What makes this machine a node of the cluster there, without cores."""
    from workers.front import node_command as command_of

    return command_of(address)


def drivers(address: str) -> Any:
    """The drivers of jobs on the cluster there (``workers.drivers.Drivers``).

    Raises:
        DeconvoyError: it cannot be reached.
    """
    os.environ["RAY_ADDRESS"] = address  # read when Ray is imported
    with _extra("ray", "Running jobs"):
        from workers.drivers import Drivers
    return Drivers(address)


def drawing(uri: str, number: str) -> Any:
    """An image of ``shapes``, by the number it is called by.

    Args:
        uri: of the data: ``shapes?size=1000&seed=1``.

    Returns:
        (row, col, rgb) of uint8.
    """
    with _extra("workers", "Drawing an image of shapes"):
        from workers.shapes import render

    seed = dict(parse_qsl(uri.partition("?")[2])).get("seed", "0")
    return render(int(seed), int(number)).image


def order(job: str, url: str, spec: dict[str, Any], roots: tuple[str, ...]) -> Any:
    """What a driver is told to do (``workers.orders.Order``)."""
    from workers.orders import Order

    return Order(job, url, spec, roots)
