"""Keep the processes beside the API alive: the dispatcher, and what of Ray it needs here."""

import logging
import os
import subprocess
import sys
import threading

from deconvoy.errors import ClusterUnreachable
from service.cluster import LocalCluster, without_secrets
from service.settings import Settings

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 2.0
"""Between two starts of what ended by itself."""

LOOK_SECONDS = 0.5
"""Between two looks at them."""

END_SECONDS = 10.0


class Supervisor:
    """A thread that waits for the dispatcher to end, and starts another."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._local = LocalCluster(settings.home_folder) if settings.ray == "local" else None
        self._process: subprocess.Popen[bytes] | None = None
        self._node: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the dispatcher and a node of ours, and a local Ray with all its jobs."""
        self._ending.set()
        if self._process is not None:
            self._process.terminate()
        self._thread.join(END_SECONDS)
        _end(self._process)
        _end(self._node)
        if self._local is not None:
            self._local.end()

    def _keep(self) -> None:
        while not self._ending.is_set():
            try:
                self._run()
            except ClusterUnreachable as error:
                logger.error("%s", error)
            except OSError as error:  # no memory for a process, no room for a file
                logger.error("The dispatcher cannot be started: %s", error)
            self._ending.wait(AGAIN_SECONDS)

    def _run(self) -> None:
        address = self._settings.ray if self._local is None else self._local.ensure()
        if self._ending.is_set():
            return
        environment = {**os.environ, **self._settings.environment(), "RAY_ADDRESS": address}
        if self._settings.ray_node and (self._node is None or self._node.poll() is not None):
            self._node = subprocess.Popen(
                [sys.executable, "-m", "service.node", address],
                env=without_secrets(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        if self._local is not None:
            environment |= self._local.environment()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service.dispatcher"], env=environment, stdin=subprocess.DEVNULL
        )
        while self._process.poll() is None and not self._ending.wait(LOOK_SECONDS):
            if self._local is not None and self._local.address() is None:
                logger.warning("The Ray of this machine died; another one starts.")
                self._process.kill()  # it would go on asking the dead for a minute
                self._process.wait()
                return
        status = self._process.wait()
        if not self._ending.is_set():
            logger.warning("The dispatcher ended with status %s; another one starts.", status)


def _end(process: subprocess.Popen[bytes] | None) -> None:
    """Tell it to end, and see to it that it does."""
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
