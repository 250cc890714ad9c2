"""The drivers of a service's jobs, found by the names of their jobs on a Ray cluster.

Each is a process of its own there, so a job goes on when whoever started it is gone.
"""

from typing import Any

from deconvoy import fence
from workers.executors import ray as cluster
from workers.orders import DriverStatus, Order


class RemoteDriver:
    """Builds the real driver where it runs; torch is imported there, not here."""

    def __init__(self, order: Order) -> None:
        from workers.driver import Driver

        fence.put_up(order.roots)
        self._driver = Driver(order, cluster.RayExecutor)
        self._driver.start()

    def status(self) -> DriverStatus:
        return self._driver.status()

    def stop(self) -> None:
        self._driver.stop()


class Drivers:
    """Those on the cluster at an address, which RAY_ADDRESS must name too before this is imported.

    Raises:
        DeconvoyError: the cluster cannot be reached.
    """

    def __init__(self, address: str) -> None:
        cluster.connect(address, None)

    def start(self, order: Order) -> None:
        """One that is there already is left alone."""
        cluster.start_named(RemoteDriver, _name(order.job), order)

    def status(self, job: str) -> DriverStatus | None:
        """None where there is none, or it died.

        Raises:
            ClusterUnreachable: it does not answer in time; it may be there all the same.
        """
        found: DriverStatus | None = self._ask(job, "status")
        return found

    def stop(self, job: str) -> None:
        """Give up after the batches under way."""
        self._ask(job, "stop")

    def end(self, job: str) -> None:
        """Its process, and those of its workers, whatever they do."""
        cluster.end_named(_name(job))

    def close(self) -> None:
        cluster.disconnect(None)

    def _ask(self, job: str, method: str, *arguments: Any) -> Any:
        return cluster.ask_named(_name(job), method, *arguments)


def _name(job: str) -> str:
    return f"job-{job}"
