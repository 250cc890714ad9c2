"""The process that is a Ray node without cores: ``python -m service.node ADDRESS``.

Ray lets a program in only where a node of the cluster runs on the same machine.  Where the service
is elsewhere, as in a container of its own, this is that node: the dispatcher goes through it, and
no job runs there.  It ends with the service.
"""

import ctypes
import os
import signal
import sys

from service import launcher

PR_SET_PDEATHSIG = 1
"""Of Linux's ``prctl``: which signal to get when the parent ends.  It outlives ``exec``."""


def main(address: str) -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent:
        command = launcher.node_command(address)
        os.environ["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # nothing here needs to finish
        os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1])
