"""A real PostgreSQL server for tests, in a folder and on a port of its own."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER = "deconvoy"
PASSWORD = "not-to-be-shown"
SECONDS_TO_START = 60


def missing() -> str | None:
    """Why this machine cannot start one; None where it can."""
    if _program("initdb") is None or _program("postgres") is None:
        return "PostgreSQL is not installed here (Debian: apt install postgresql)"
    if os.geteuid() == 0 and _unprivileged() is None:
        return "PostgreSQL does not run as root, and there is no other user here"
    return None


@contextmanager
def postgresql_server() -> Iterator[str]:
    """Yields the URL of its database ``postgres``, password and all."""
    # Below the temporary folder itself: that of pytest is closed to the user it runs as.
    folder = Path(tempfile.mkdtemp(prefix="deconvoy-postgresql-"))
    user = _unprivileged() if os.geteuid() == 0 else None
    try:
        password = folder / "password"
        password.write_text(PASSWORD)
        if user is not None:
            for path in (folder, password):
                shutil.chown(path, user.pw_uid, user.pw_gid)
        cluster = folder / "cluster"
        _run_as(
            user,
            [
                *(_program("initdb"), "-D", cluster, "-U", USER, "--pwfile", password),
                *("-A", "scram-sha-256", "-E", "UTF8", "--no-locale", "--no-sync"),
            ],
        )
        yield from _serve(cluster, user)
    finally:
        shutil.rmtree(folder)


def _serve(cluster: Path, user: pwd.struct_passwd | None) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = cluster.parent / "log"
    command = [
        *(_program("postgres"), "-D", cluster, "-h", "127.0.0.1", "-p", str(port)),
        *("-c", "unix_socket_directories=", "-c", "fsync=off"),
    ]
    with log.open("wb") as sink:
        server = subprocess.Popen(
            command, stdout=sink, stderr=sink, cwd=cluster.parent, **_credentials(user)
        )
    url = f"postgresql+psycopg://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres"
    try:
        _wait_for(url, server, log)
        yield url
    finally:
        server.send_signal(2)  # SIGINT: it ends its sessions and stops
        server.wait(30)


def _wait_for(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    import psycopg

    until = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            psycopg.connect(url.replace("+psycopg", ""), connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"PostgreSQL did not start: {log.read_text()}") from None
            time.sleep(0.1)


def _run_as(user: pwd.struct_passwd | None, command: list[object]) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd="/",
        **_credentials(user),
    )
    assert done.returncode == 0, done.stderr


def _credentials(user: pwd.struct_passwd | None) -> dict[str, object]:
    if user is None:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _unprivileged() -> pwd.struct_passwd | None:
    """A user to run as where we are root."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _program(name: str) -> str | None:
    """Debian keeps them off the path."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(places[-1]) if places else None)
