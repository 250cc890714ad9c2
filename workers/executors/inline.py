"""One worker in this process: for debugging, for notebooks, and where there is no Ray."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from deconvoy.errors import RequestError
from workers.actor import Actor
from workers.executors import Executor, Lease, Lost, Moved, Raised, Ready, Report, Returned
from workers.leases import Assignment
from workers.machine import cores


class InlineExecutor(Executor):
    """Runs leases on one thread beside the driver's, so that progress and Ctrl-C work as ever."""

    def __init__(self, workers: int | None = None) -> None:
        if workers not in (None, 1):
            raise RequestError(
                f"compute.workers is {workers}, but the inline executor has one worker: leave "
                "workers out, or use the ray executor."
            )
        self.workers = 1
        self._reports: queue.Queue[Report] = queue.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="worker")
        self._actor: Actor | None = None
        self._busy = threading.Event()
        self._threads_before = torch.get_num_threads()

    def start(self, assignment_of: Callable[[int], Assignment]) -> None:
        assignment = assignment_of(cores())

        def build() -> None:
            try:
                self._actor = Actor(assignment)
                self._reports.put(Ready("inline", self._actor.whoami()))
            except Exception as error:  # told to the driver, which decides
                self._reports.put(Lost("inline", f"{type(error).__name__}: {error}"))

        self._thread.submit(build)

    def submit(self, worker: str, lease: Lease) -> None:
        self._busy.set()
        self._thread.submit(self._work, worker, lease)

    def _work(self, worker: str, lease: Lease) -> None:
        assert self._actor is not None
        try:
            self._reports.put(Returned(worker, lease, self._actor.work(lease)))
        except Exception as error:  # told to the driver, which decides
            self._reports.put(Raised(worker, lease, error))
        finally:
            self._busy.clear()

    def replace(self, worker: str) -> None:
        raise RuntimeError("The inline worker cannot be replaced: it is this process.")

    def wait(self, seconds: float) -> list[Report]:
        reports: list[Report] = []
        try:
            reports.append(self._reports.get(timeout=seconds))
            while True:
                reports.append(self._reports.get_nowait())
        except queue.Empty:
            pass
        if self._busy.is_set() and self._actor is not None:
            reports.append(Moved("inline", self._actor.progress()))
        return reports

    def shutdown(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(self._threads_before)  # an actor sets one for the whole process
