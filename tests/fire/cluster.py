"""A Ray cluster of several nodes on one machine.

What happens to a node can happen to one here: all its processes are killed or frozen.  Where it is
a host of its own, which is a network namespace on a bridge, its cable can be pulled out and plugged
in again as well; only root may make those.  The head has no cores, as in docker-compose.yml;
drivers run there.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.upped import below

ROOT = Path(__file__).resolve().parents[2]

PORT = 6379

HEAD = 1
"""The last number of the head's address; that of the switch is ``SWITCH``."""
SWITCH = 254

START_SECONDS = 90.0

STORE_BYTES = 150_000_000
"""Of a node's object store."""

RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]


def missing() -> str | None:
    """Why hosts cannot be made here; None where they can."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return "no ip or unshare here (iproute2, util-linux)"
    name = f"dv{os.getpid()}-try"
    tries = [["netns", "add", name], ["link", "add", f"dv{os.getpid()}t", "type", "bridge"]]
    done = [subprocess.run(["ip", *words], capture_output=True, text=True) for words in tries]
    for words in (["link", "del", f"dv{os.getpid()}t"], ["netns", "del", name]):
        subprocess.run(["ip", *words], capture_output=True)
    refused = [each.stderr.strip() for each in done if each.returncode]
    return f"no network namespaces or bridges here: {refused[0]}" if refused else None


class Node:
    """One of Ray, with a number and a name."""

    def __init__(self, cluster: "Nodes", number: int) -> None:
        self.cluster, self.number = cluster, number
        self.name = "head" if number == HEAD else f"node{number}"
        self.address = cluster.address_of(number)
        self._ray: subprocess.Popen[bytes] | None = None
        self._told_before = 0
        """Bytes of its log, of when it was started before."""

    def start(self) -> None:
        """It joins within seconds."""
        words = ["start", "--block", f"--node-ip-address={self.address}"]
        words += [f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats"]
        # Of one machine two nodes cannot have the same ports.
        words += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        if self.number == HEAD:
            words += ["--head", f"--port={self.cluster.port}", "--num-cpus=0"]
            words += ["--include-dashboard=false", f"--temp-dir={self.cluster.folder / 'ray'}"]
        else:
            words += [f"--address={self.cluster.address}", "--num-cpus=1"]
        self._told_before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._ray = self.popen([*RAY, *words], stdout=log, stderr=log)

    def popen(self, command: Sequence[str], **how: object) -> "subprocess.Popen[bytes]":
        """Start a process on it."""
        return subprocess.Popen(command, env=self.environment, cwd=ROOT, **how)  # type: ignore[call-overload,no-any-return]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.cluster.environment}

    def processes(self) -> set[int]:
        """Of its Ray."""
        return set() if self._ray is None else {self._ray.pid, *below(self._ray.pid)}

    @property
    def log(self) -> Path:
        return self.cluster.folder / f"{self.name}.log"

    def has_joined(self) -> bool:
        return b"Ray runtime started" in self.log.read_bytes()[self._told_before :]

    def runs_node(self) -> bool:
        """Whether its Ray lives, by itself: others may think otherwise."""
        return self._ray is not None and self._ray.poll() is None

    def kill_node(self) -> int:
        """SIGKILL its Ray and all workers; how many processes that were."""
        pids = self.processes()
        _signal(pids, signal.SIGKILL)
        return len(pids)

    def freeze(self) -> None:
        _signal(self.processes(), signal.SIGSTOP)

    def thaw(self) -> None:
        _signal(self.processes(), signal.SIGCONT)

    def remove(self) -> None:
        self.kill_node()
        if self._ray is not None:
            self._ray.wait(10)


class Host(Node):
    """A host of its own, with an address whose last number is the node's."""

    def __init__(self, cluster: "Cluster", number: int) -> None:
        super().__init__(cluster, number)
        self._space = f"{cluster.prefix}-{number}"
        self._cable = f"{cluster.prefix}p{number}"
        inner = f"{cluster.prefix}q{number}"
        _ip("netns", "add", self._space)
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", inner)
        _ip("link", "set", inner, "netns", self._space)
        _ip("link", "set", self._cable, "master", cluster.switch, "up")
        within = ("-n", self._space)
        _ip(*within, "addr", "add", f"{self.address}/24", "dev", inner)
        _ip(*within, "link", "set", inner, "up")
        _ip(*within, "link", "set", "lo", "up")

    def popen(self, command: Sequence[str], **how: object) -> "subprocess.Popen[bytes]":
        """Start a process on it."""
        own, common = self.cluster.folder / f"ray-{self.name}", self.cluster.folder / "ray"
        own.mkdir(exist_ok=True)
        # A name of its own, and a disk: all nodes of a cluster keep their sockets at one path.
        begin = f'hostname {self.name} && mount --bind {own} {common} && exec "$@"'
        words = ["ip", "netns", "exec", self._space, "unshare", "--uts", "--mount"]
        words += ["sh", "-c", begin, "sh"]
        return super().popen([*words, *command], **how)

    def processes(self) -> set[int]:
        listed = subprocess.run(
            ["ip", "netns", "pids", self._space], capture_output=True, text=True, check=True
        )
        return set(map(int, listed.stdout.split()))

    def kill(self) -> None:
        """As when the power goes: nothing says goodbye, not even the network."""
        self.cut()
        while pids := self._living():
            _signal(pids, signal.SIGKILL)
            time.sleep(0.02)

    def cut(self) -> None:
        """Pull its cable out."""
        _ip("link", "set", self._cable, "down")

    def plug_in(self) -> None:
        _ip("link", "set", self._cable, "up")

    def remove(self) -> None:
        self.kill()
        if self._ray is not None:
            self._ray.wait(10)
        _ip("link", "del", self._cable)  # both ends
        _ip("netns", "del", self._space)

    def _living(self) -> set[int]:
        return {pid for pid in self.processes() if _state_of(pid) not in ("Z", "X", "")}


class Nodes:
    """A head, and nodes that are added: of this machine, beside each other."""

    has_cables = False
    """Whether a node can be cut off."""

    def __init__(self, port: int | None = None) -> None:
        self.port = free_port() if port is None else port
        self.folder = Path(tempfile.mkdtemp(prefix="dvf-", dir="/tmp"))  # sockets need it short
        (self.folder / "ray").mkdir()
        self.environment: dict[str, str] = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": self.address,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "120",  # cores are shared with the other hosts
            "PYTHONPATH": str(ROOT),
        }
        """What everything on a host is started with."""
        self.hosts: dict[int, Node] = {}

    @property
    def address(self) -> str:
        return f"{self.address_of(HEAD)}:{self.port}"

    @property
    def head(self) -> Node:
        return self.hosts[HEAD]

    def address_of(self, number: int) -> str:
        return "127.0.0.1"

    @property
    def servers_address(self) -> str:
        """At which nodes reach a server that is started beside them."""
        return "127.0.0.1"

    def set_up(self, variables: Mapping[str, str]) -> None:
        """The head.

        Args:
            variables: further ones of the environment.
        """
        self.environment.update(variables)
        self.add_host(HEAD)
        _until(self._head_answers, "the head does not answer")

    def add_host(self, number: int | None = None) -> Node:
        """A new one, whose node is being started."""
        number = max(self.hosts, default=HEAD) + 1 if number is None else number
        host = self.hosts[number] = self._make(number)
        host.start()
        return host

    def _make(self, number: int) -> Node:
        return Node(self, number)

    def drop(self, host: Node) -> None:
        host.remove()
        del self.hosts[host.number]

    def tear_down(self) -> None:
        for host in reversed(list(self.hosts.values())):
            self.drop(host)
        shutil.rmtree(self.folder, ignore_errors=True)

    def wait_for_nodes(self) -> None:
        """Until all have joined."""

        def joined() -> bool:
            for host in self.hosts.values():
                if not host.runs_node():  # it gave up while it started: as compose, once more
                    host.start()
            return all(host.has_joined() for host in self.hosts.values())

        _until(joined, f"some do not join: see {self.folder}", 2 * START_SECONDS)

    def _head_answers(self) -> bool:
        assert self.head.runs_node(), self.head.log.read_text()
        return self.head.has_joined()


class Cluster(Nodes):
    """Of hosts on a switch.  It has an address too, at which this machine, and a server it starts,
    is reached from the hosts, and which nobody else reaches."""

    has_cables = True

    def __init__(self) -> None:
        self.prefix = f"dv{os.getpid()}"  # names of interfaces have 15 letters at most
        self.switch = f"{self.prefix}sw"
        # 198.18.0.0/15 is for benchmarks of networks: nobody's own.
        self._network = f"198.18.{os.getpid() % 250}"
        super().__init__(PORT)
        _ip("link", "add", self.switch, "type", "bridge")
        _ip("addr", "add", f"{self.servers_address}/24", "dev", self.switch)
        _ip("link", "set", self.switch, "up")

    def address_of(self, number: int) -> str:
        return f"{self._network}.{number}"

    @property
    def servers_address(self) -> str:
        return self.address_of(SWITCH)

    def _make(self, number: int) -> Node:
        return Host(self, number)

    def tear_down(self) -> None:
        super().tear_down()
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", self.switch)


@contextmanager
def cluster_of(kind: type[Nodes]) -> Iterator[Nodes]:
    """One without a head yet: start servers, then ``set_up``."""
    cluster = kind()
    try:
        yield cluster
    finally:
        cluster.tear_down()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _state_of(pid: int) -> str:
    """As ps shows it; empty of one that is no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _until(look: Callable[[], object], told: str, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, told
        time.sleep(0.2)
