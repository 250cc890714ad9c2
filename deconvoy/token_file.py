"""The token to show to a service: given, in the environment, or that of the service which was
started on this machine, in a file that only its owner can read.

Anybody's process may listen at an address of this machine once a service has left it.  So the local
token is shown at an address only while a service of the same home is there: it holds the lock of a
file named after its address from before it listens until it has ended, nobody else can open that
file, and where one process listens no other can.
"""

import fcntl
import os
import socket
import stat
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from deconvoy.errors import RequestError

LOOPBACK = ("127.0.0.1", "::1")
DEFAULT_PORTS = {"http": 80, "https": 443}
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def token_for(url: str, token: str | None = None) -> str | None:
    """The one given, else ``DECONVOY_TOKEN``, else the local one where a service of this home is at
    that very address (``127.0.0.1``, not ``localhost``) now; None where there is none.

    Raises:
        RequestError: what is given can be no token.
    """
    known = given(token)
    if known is not None or not _is_here(urlsplit(url)):
        return known
    return read(local_file())


def given(token: str | None) -> str | None:
    """The one given, else ``DECONVOY_TOKEN``.

    Raises:
        RequestError: it can be no token.
    """
    found = token or os.environ.get("DECONVOY_TOKEN") or None
    if found is not None and not (found.isascii() and found.isprintable() and " " not in found):
        raise RequestError(
            "The token that is given, or DECONVOY_TOKEN, has characters that no token has: copy it."
        )
    return found


def missing(url: str) -> str:
    """Why no token was shown, and what to do; for the end of a refusal."""
    if urlsplit(url).hostname not in (*LOOPBACK, "localhost"):
        return "Here it comes from DECONVOY_TOKEN."
    return (
        f"Here it comes from DECONVOY_TOKEN, or from {str(local_file())!r} where `deconvoy up` of "
        "this home (DECONVOY_HOME) listens at that address, and it does not: give the address "
        "that it printed, or a token."
    )


def literal_host(url: SplitResult) -> str:
    """The host to ask: of ``localhost`` the address that a service of this home is at."""
    host = url.hostname or ""
    if host == "localhost":
        for address in LOOPBACK:
            if _listens(address, _port(url)):
                return address
    return host


def local_file() -> Path:
    """``~/.deconvoy/token``; ``DECONVOY_HOME`` names another folder."""
    return Path(os.environ.get("DECONVOY_HOME", "~/.deconvoy")).expanduser() / "token"


def lock_file(home: Path, host: str, port: int) -> Path:
    """What a service of a home that listens there holds the lock of; it says on which machine."""
    return home / "listening" / f"{host}-{port}"


def read(file: Path) -> str | None:
    """The token, where there is one that may be read."""
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _is_here(url: SplitResult) -> bool:
    """Whether a service of this home is at an address of this machine."""
    return url.hostname in LOOPBACK and _listens(url.hostname, _port(url))


def _listens(host: str, port: int) -> bool:
    try:
        handle = os.open(lock_file(local_file().parent, host, port), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    with os.fdopen(handle, encoding="utf-8", errors="replace") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.geteuid() or status.st_mode & OTHERS:
            return False  # somebody else could hold it
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read() == socket.gethostname()  # machines may share a home
        except OSError:  # of a file system without locks
            return False
    return False


def _port(url: SplitResult) -> int:
    return url.port or DEFAULT_PORTS.get(url.scheme, 0)
