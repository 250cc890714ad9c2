"""One worker in this process: for debugging, for notebooks, and where there is no Ray."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch

from deconvoy.errors import JobFailed, RequestError
from workers.actor import TorchSettings
from workers.crew import Worker, worker_of
from workers.executors import Executor, Lost, Moved, Raised, Ready, Report, Returned
from workers.leases import AnyAssignment, Lease
from workers.machine import cores
from workers.numerics import require_fast


class InlineExecutor(Executor):
    """Runs leases on one thread beside the driver's, so that progress and Ctrl-C work as ever."""

    def __init__(
        self,
        workers: int | None = None,
        threads: int | Literal["auto"] = "auto",
        gpus: float | Literal["auto"] = "auto",
    ) -> None:
        if workers not in (None, 1):
            raise RequestError(
                f"compute.workers is {workers}, but the inline executor has one worker: leave "
                "workers out, or use the ray executor."
            )
        if gpus != "auto" and gpus > torch.cuda.device_count():
            raise RequestError(
                f"compute.gpus_per_worker is {gpus:g}, but torch sees {torch.cuda.device_count()} "
                "GPUs here: leave it out, or lower it. `deconvoy doctor` says more of this machine."
            )
        self.workers = 1
        self._cuda = gpus != 0 and torch.cuda.is_available()
        self._threads = cores() if threads == "auto" else threads
        self._reports: queue.Queue[Report] = queue.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="worker")
        self._actor: Worker | None = None
        self._built = 0
        self._busy = threading.Event()
        self._settings = TorchSettings.now()

    def require_fast(self, precision: str) -> None:
        require_fast(precision, torch.device("cuda" if self._cuda else "cpu"))

    def start(self, assignment_of: Callable[[int], AnyAssignment]) -> None:
        self._assignment = assignment_of(self._threads)
        self._thread.submit(self._build)

    def _build(self) -> None:
        self._built += 1
        try:
            self._actor = worker_of(self._assignment)
            self._reports.put(Ready(self._name, self._actor.whoami()))
        except Exception as error:  # told to the driver, which decides
            self._reports.put(Lost(self._name, f"{type(error).__name__}: {error}"))

    @property
    def _name(self) -> str:
        return "inline" if self._built < 2 else f"inline-{self._built}"

    def submit(self, worker: str, lease: Lease) -> None:
        self._busy.set()
        self._thread.submit(self._work, worker, lease)

    def _work(self, worker: str, lease: Lease) -> None:
        assert self._actor is not None
        report: Report
        try:
            report = Returned(worker, lease, self._actor.work(lease))
        except Exception as error:  # told to the driver, which decides
            report = Raised(worker, lease, error)
        self._busy.clear()  # before the report, which may bring the next lease
        self._reports.put(report)

    def replace(self, worker: str) -> None:
        if self._busy.is_set():
            raise JobFailed(
                "The inline worker hangs and cannot be replaced, since it is this process: "
                "resume the run with the ray executor."
            )
        self._thread.submit(self._build)

    def wait(self, seconds: float) -> list[Report]:
        reports: list[Report] = []
        try:
            reports.append(self._reports.get(timeout=seconds))
            while True:
                reports.append(self._reports.get_nowait())
        except queue.Empty:
            pass
        if self._busy.is_set() and self._actor is not None:
            reports.append(Moved(self._name, self._actor.progress()))
        return reports

    def shutdown(self) -> None:
        if self._actor is not None:
            self._actor.stop()
        self._thread.shutdown(cancel_futures=True)  # waits for the batch at hand
        self._settings.restore()
