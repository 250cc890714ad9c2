"""What the dashboard reads: the service it belongs to, asked in the name of whoever looks.

The service hands its address and the dashboard's key to the script as secrets (``st.secrets``).
Large answers about runs that are done are kept for all who look; everybody was let in before.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import streamlit as st

from deconvoy.client import Client
from deconvoy.connection import Connection

COOKIE = "deconvoy-session"
SECONDS = 60.0
"""An answer may take to begin."""

KEPT_SECONDS = 3600

Json = dict[str, Any]


def client() -> Client:
    """For jobs: what whoever looks may do, and no more."""
    return _client(_address(), _token())


def ask(path: str, **given: str | int | None) -> Json:
    """An answer of the API, as whoever looks.

    Args:
        path: below ``/v1/``.

    Raises:
        DeconvoyError: the API refuses; says why in a sentence.
    """
    found: Json = _connection(_address(), _token()).get(f"/v1/{path}", given)
    return found


def run_path(run: str, *parts: str | int) -> str:
    """``runs/squeeze/layers/relu2``, its parts escaped."""
    return "/".join(["runs", *(_escaped(str(part)) for part in (run, *parts))])


def summary(run: str) -> Json:
    """One run, with all there is to say of it.  Raises RunNotFound."""
    return ask(run_path(run))


def layers(run: Json) -> list[Json]:
    """Of a run that is there, in execution order; none while it is not scanned."""
    if run["units"] is None:
        return []
    found: list[Json] = about(run, "layers")["layers"]
    return found


def about(run: Json, *parts: str | int, **given: str | int | None) -> Json:
    """An answer that follows from a run alone: kept once the run is done."""
    path = run_path(run["id"], *parts)
    if run["status"] != "done":
        return ask(path, **given)
    return _kept(path, run["commit"], tuple(sorted(given.items())))


@st.cache_data(max_entries=512, ttl=KEPT_SECONDS, show_spinner=False)
def _kept(path: str, commit: str, given: tuple[tuple[str, str | int | None], ...]) -> Json:
    return ask(path, **dict(given))


@st.cache_resource(max_entries=64, ttl=KEPT_SECONDS, show_spinner=False)
def _connection(address: str, token: str) -> Connection:
    return Connection(address, token, SECONDS)


@st.cache_resource(max_entries=64, ttl=KEPT_SECONDS, show_spinner=False)
def _client(address: str, token: str) -> Client:
    return Client(address, token, SECONDS)


def _address() -> str:
    return str(st.secrets["service"]["address"])


def _token() -> str:
    """The dashboard's key, with the session of the browser where it has one."""
    key = str(st.secrets["service"]["key"])
    session = _session(st.context.headers.get("host", ""), st.context.cookies)
    return key if session is None else f"{key}.{session}"


def _session(host: str, cookies: Mapping[str, str]) -> str | None:
    """The service names its cookie by the port, since cookies do not tell ports apart."""
    port = urlsplit(f"//{host}").port
    return cookies.get(COOKIE if port is None else f"{COOKIE}-{port}")


def _escaped(part: str) -> str:
    escaped = quote(part, safe="")
    return escaped if escaped.strip(".") else escaped.replace(".", "%2E")
