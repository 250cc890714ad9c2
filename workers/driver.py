"""Work on one job away from whoever asked for it: a thread that can be asked how far it is.

A plain class; the Ray executor carries it as an actor that outlives the service.  All it knows that
matters is in the run: when it dies, another takes the run up where the ledger says.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from deconvoy import specs
from deconvoy.errors import DeconvoyError, JobStopped
from deconvoy.pace import Pace, Progress
from deconvoy.spec import ComputeSpec
from deconvoy.store import RunStore
from workers.executors import Executor
from workers.leasing import Advance
from workers.orders import DriverStatus, Order
from workers.undertaking import create, execute, reopen, require_room, told

LOG = "logs/driver.txt"
"""In the run."""

TOLD = ("deconvoy", "workers", "service")
"""Loggers of ours."""


class Driver:
    """Works on one job.

    Args:
        executor_of: makes what carries the workers.
    """

    def __init__(self, order: Order, executor_of: Callable[[ComputeSpec], Executor]) -> None:
        self._order, self._executor_of = order, executor_of
        self._pace = Pace()
        self._progress: Progress | None = None
        self._status = DriverStatus("running")
        self._stopping = threading.Event()
        self._log = _Log(RunStore(order.url))
        self._thread = threading.Thread(target=self._work, name=f"job {order.job}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, seconds: float | None = None) -> None:
        self._thread.join(seconds)

    def status(self) -> DriverStatus:
        now = self._status
        return DriverStatus(now.state, self._progress, now.error)

    def stop(self) -> None:
        """Give up after the batches under way; the run stays readable and can be resumed."""
        self._stopping.set()

    # The thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        with self._log.listening():
            try:
                self._execute()
                self._status = DriverStatus("done")
                self._log.say("done")
            except JobStopped as error:
                self._status = DriverStatus("stopped", error=str(error))
                self._log.say(str(error))
            except BaseException as error:  # whatever it is, nobody else would tell
                known = isinstance(error, DeconvoyError)
                told = str(error) if known else f"{type(error).__name__}: {error}"
                self._status = DriverStatus("failed", error=told)
                logging.getLogger(__name__).error(told, exc_info=not known)

    def _execute(self) -> None:
        order, carriers = self._order, list[Executor]()
        spec = specs.parse(order.spec)

        def carry(compute: ComputeSpec) -> None:
            self._refuse_if_stopped()
            carriers.append(self._executor_of(compute))
            carriers[0].require_fast(compute.precision)

        def check(job: Any, run: RunStore) -> None:
            require_room(job, run)
            carry(job.compute)

        try:
            if RunStore(order.url).exists("zarr.json"):
                job, run = reopen(order.url)
                carry(job.compute)
            else:
                job, run = create(spec, order.url, check=check)
            self._log.keep_in_run()
            self._log.say("; ".join(f"{what}: {line}" for what, line in told(job).items()))
            execute(job, run, carriers[0], self._observe)
        finally:
            for carrier in carriers:
                carrier.shutdown()

    def _observe(self, advance: Advance) -> None:
        before = self._progress
        self._progress = self._pace.tell(advance.stage, advance.done, advance.total)
        if before is None or before.stage != advance.stage:
            self._log.say(f"{advance.stage}: {advance.done:,} of {advance.total:,}")
        if self._stopping.is_set():
            raise KeyboardInterrupt  # its way out is tested and says how to resume

    def _refuse_if_stopped(self) -> None:
        if self._stopping.is_set():
            raise JobStopped("Stopped before anything was computed.")


class _Log(logging.Handler):
    """Lines for people, kept in the run as soon as there is one."""

    def __init__(self, run: RunStore) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._run: RunStore = run
        self._waiting: list[str] | None = []

    def listening(self) -> "_Listening":
        return _Listening(self)

    def say(self, line: str) -> None:
        self.handle(logging.LogRecord("deconvoy", logging.INFO, "", 0, line, None, None))

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            if self._waiting is not None:
                self._waiting.append(line)
            else:
                self._write(line)

    def keep_in_run(self) -> None:
        """The run is there: from now on lines go there, those of before first."""
        waiting, self._waiting = self._waiting or [], None
        for line in waiting:
            self._write(line)

    def _write(self, line: str) -> None:
        try:
            self._run.append(LOG, line)
        except OSError:  # a full disk: the job itself will say so
            self._waiting = []


class _Listening:
    """For as long as it lasts the log hears all loggers of ours."""

    def __init__(self, log: _Log) -> None:
        self._log = log

    def __enter__(self) -> None:
        for name in TOLD:
            logging.getLogger(name).addHandler(self._log)
            if logging.getLogger(name).level == logging.NOTSET:
                logging.getLogger(name).setLevel(logging.INFO)

    def __exit__(self, *_: object) -> None:
        for name in TOLD:
            logging.getLogger(name).removeHandler(self._log)
