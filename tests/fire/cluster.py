"""A Ray cluster of several hosts on one machine: each is a network namespace on a bridge.

What happens to a host can happen to one here: all its processes are killed or frozen, or its cable
is pulled out and plugged in again.  The head has no cores, as in docker-compose.yml; drivers run
there.  The switch has an address too, on which this machine, and a server it starts, is reached
from the hosts, and which nobody else reaches.  Only root may make all that.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

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


class Host:
    """One with a name, an address and a node of Ray; the last number of its address is its own."""

    def __init__(self, cluster: "Cluster", number: int) -> None:
        self.cluster, self.number = cluster, number
        self.name = "head" if number == HEAD else f"node{number}"
        self.address = cluster.address_of(number)
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
        self._ray: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Its node of Ray; it joins within seconds."""
        words = ["start", "--block", f"--node-ip-address={self.address}"]
        words += [f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats"]
        if self.number == HEAD:
            words += ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
            words += [f"--temp-dir={self.cluster.folder / 'ray'}"]
        else:
            words += [f"--address={self.cluster.address}", "--num-cpus=1"]
        with (self.cluster.folder / f"{self.name}.log").open("ab") as log:
            self._ray = self.popen([*RAY, *words], stdout=log, stderr=log)

    def popen(self, command: Sequence[str], **how: object) -> "subprocess.Popen[bytes]":
        """Start a process on it."""
        own, common = self.cluster.folder / f"ray-{self.name}", self.cluster.folder / "ray"
        own.mkdir(exist_ok=True)
        # A name of its own, and a disk: all nodes of a cluster keep their sockets at one path.
        begin = f'hostname {self.name} && mount --bind {own} {common} && exec "$@"'
        words = ["ip", "netns", "exec", self._space, "unshare", "--uts", "--mount"]
        words += ["sh", "-c", begin, "sh"]
        environment = {**os.environ, **self.cluster.environment}
        return subprocess.Popen([*words, *command], env=environment, cwd=ROOT, **how)  # type: ignore[call-overload,no-any-return]

    def processes(self) -> set[int]:
        listed = subprocess.run(
            ["ip", "netns", "pids", self._space], capture_output=True, text=True, check=True
        )
        return set(map(int, listed.stdout.split()))

    def runs_node(self) -> bool:
        """Whether its node of Ray lives, by itself: others may think otherwise."""
        return self._ray is not None and self._ray.poll() is None

    def kill(self) -> None:
        """As when the power goes: nothing says goodbye, not even the network."""
        self.cut()
        while pids := self._living():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def kill_node(self) -> int:
        """SIGKILL its Ray and all workers, the network stays; how many processes that were."""
        pids = self.processes()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    def freeze(self) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

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


class Cluster:
    """Its head and its switch; hosts are added."""

    def __init__(self) -> None:
        self.prefix = f"dv{os.getpid()}"  # names of interfaces have 15 letters at most
        self.switch = f"{self.prefix}sw"
        # 198.18.0.0/15 is for benchmarks of networks: nobody's own.
        self._network = f"198.18.{os.getpid() % 250}"
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
        self.hosts: dict[int, Host] = {}

    @property
    def address(self) -> str:
        return f"{self.address_of(HEAD)}:{PORT}"

    @property
    def head(self) -> Host:
        return self.hosts[HEAD]

    def address_of(self, number: int) -> str:
        return f"{self._network}.{number}"

    def set_up(self, variables: Mapping[str, str]) -> None:
        """The switch and the head.

        Args:
            variables: further ones of the environment.
        """
        self.environment.update(variables)
        self.add_host(HEAD)
        _until(self._head_answers, "the head does not answer")

    @property
    def switch_address(self) -> str:
        """That of this machine, seen from the hosts."""
        return self.address_of(SWITCH)

    def make_switch(self) -> None:
        _ip("link", "add", self.switch, "type", "bridge")
        _ip("addr", "add", f"{self.address_of(SWITCH)}/24", "dev", self.switch)
        _ip("link", "set", self.switch, "up")

    def add_host(self, number: int | None = None) -> Host:
        """A new one, whose node is being started."""
        number = max(self.hosts, default=HEAD) + 1 if number is None else number
        host = self.hosts[number] = Host(self, number)
        host.start()
        return host

    def drop(self, host: Host) -> None:
        host.remove()
        del self.hosts[host.number]

    def tear_down(self) -> None:
        for host in reversed(list(self.hosts.values())):
            self.drop(host)
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", self.switch)
        shutil.rmtree(self.folder, ignore_errors=True)

    def alive(self) -> dict[str, bool]:
        """Address of each node → whether the head thinks it lives; slow, for waiting."""
        asked = (
            "import ray; ray.init(logging_level='ERROR', log_to_driver=False);"
            "print(*(f\"{n['NodeManagerAddress']}={n['Alive']}\" for n in ray.nodes()), sep='\\n')"
        )
        process = self.head.popen([sys.executable, "-c", asked], stdout=subprocess.PIPE)
        said = process.communicate(timeout=60)[0].decode().split()
        found: dict[str, bool] = {}
        for line in said:
            address, _, alive = line.partition("=")
            found[address] = found.get(address, False) or alive == "True"
        return found

    def wait_for_nodes(self, hosts: Sequence[Host]) -> None:
        """Until the head knows the nodes of all these."""
        wanted = {host.address for host in hosts}

        def joined() -> bool:
            for host in hosts:
                if not host.runs_node():  # it gave up while it started: as compose, once more
                    host.start()
            return wanted <= {address for address, alive in self.alive().items() if alive}

        _until(joined, f"{wanted} do not join: see {self.folder}", 2 * START_SECONDS)

    def _head_answers(self) -> bool:
        log = self.folder / "head.log"
        assert self.head.runs_node(), log.read_text()
        return b"Ray runtime started" in log.read_bytes()


@contextmanager
def cluster_of_hosts() -> Iterator[Cluster]:
    """One with its switch, yet without a head: start servers on the switch, then ``set_up``."""
    cluster = Cluster()
    try:
        cluster.make_switch()
        yield cluster
    finally:
        cluster.tear_down()


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


def _until(look: object, told: str, seconds: float = START_SECONDS) -> None:
    assert callable(look)
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, told
        time.sleep(0.2)
