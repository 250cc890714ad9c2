"""The token to show to a service: given, in the environment, or in the file of the service that was
started on this machine, which only its owner can read."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from deconvoy.errors import RequestError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def token_for(url: str, token: str | None = None) -> str | None:
    """The one given, else ``DECONVOY_TOKEN``, else on this machine the local one; None where there
    is none.  The local token is shown to no other machine.

    Raises:
        RequestError: what is given can be no token.
    """
    if token or os.environ.get("DECONVOY_TOKEN"):
        return _checked(token or os.environ["DECONVOY_TOKEN"])
    return read(local_file()) if urlsplit(url).hostname in LOOPBACK else None


def _checked(token: str) -> str:
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise RequestError(
            "The token that is given, or DECONVOY_TOKEN, has characters that no token has: copy it."
        )
    return token


def local_file() -> Path:
    """``~/.deconvoy/token``; ``DECONVOY_HOME`` names another folder."""
    return Path(os.environ.get("DECONVOY_HOME", "~/.deconvoy")).expanduser() / "token"


def read(file: Path) -> str | None:
    """The token, where there is one that may be read."""
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
