"""The file with the local token, which only its owner can read, and the address that it is for;
command line and Client find it."""

import fcntl
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deconvoy.errors import RequestError
from deconvoy.token_file import lock_file, read

__all__ = ["good_at", "read", "write"]

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def write(file: Path, secret: str) -> None:
    """Put the token there as a whole: a reader finds the old one or the new one.

    Raises:
        RequestError: others may write to the folder, and so could put a token of theirs there.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if file.parent.stat().st_mode & OTHERS_WRITE:
        raise RequestError(
            f"Others may write to the folder {str(file.parent)!r}, where the local token goes: "
            f"`chmod 700` it, or set DECONVOY_HOME to a folder of your own."
        )
    # Made with mode 0600, unlike what `open` makes.
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(f"{secret}\n")
            out.flush()
            os.fsync(out.fileno())
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def good_at(home: Path, host: str, port: int) -> Iterator[None]:
    """Let command line and Client show the local token there meanwhile: this process has bound the
    address, does not listen yet, and has ended listening when it leaves."""
    file = lock_file(home, host, port)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # With mode 0600: who can open it can hold its lock.
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "r+", encoding="utf-8") as locked:
        os.fchmod(handle, 0o600)
        fcntl.flock(locked, fcntl.LOCK_EX)  # whoever looks holds it for a moment
        locked.truncate()
        locked.write(socket.gethostname())
        locked.flush()
        yield
