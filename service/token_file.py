"""The file with the local token, which only its owner can read; command line and Client find it."""

import os
import stat
import tempfile
from pathlib import Path

from deconvoy.errors import RequestError
from deconvoy.token_file import read

__all__ = ["read", "write"]

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
