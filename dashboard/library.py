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
from deconvoy.run import Run
from deconvoy.spec import Method

COOKIE = "deconvoy-session"
SECONDS = 60.0
"""An answer may take to begin."""

KEPT_SECONDS = 3600

SUMMARY_SECONDS = 1.0
"""What is beside a view and the view itself ask for the same run, one after the other."""

PAGE_ROWS = 500
"""Asked for at once, where all are wanted."""

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
    """One run, with all there is to say of it, as it was a second ago.  Raises RunNotFound."""
    return _summary(_address(), run)


@st.cache_data(max_entries=64, ttl=SUMMARY_SECONDS, show_spinner=False)
def _summary(address: str, run: str) -> Json:
    return ask(run_path(run))


def layers(run: Json) -> list[Json]:
    """Of a run that is there, in execution order; none while it is not scanned."""
    if run["units"] is None:
        return []
    found: list[Json] = about(run, "layers")["layers"]
    return found


def between(run: Json, other: Json, *layer: str, **given: str | int | None) -> Json:
    """What became of a run in another: of its layers, or of the units of one."""
    path = run_path(run["id"], "diff", other["id"], *layer)
    if not run["status"] == other["status"] == "done":
        return ask(path, **given)
    return _kept(path, run["commit"] + other["commit"], tuple(sorted(given.items())))


def has_pictures(run: Json, layer: str, unit: int) -> bool:
    """Whether a unit has pictures."""
    for row in layers(run):
        if row["layer"] == layer:
            whole = row["projected_units"] + row["dead_units"] >= row["units"]
            return bool(whole or unit in _projected(run, layer))
    return False


def _projected(run: Json, layer: str) -> frozenset[int]:
    return _projected_units(run["id"], run["commit"], layer, opened(run))


@st.cache_data(max_entries=256, ttl=KEPT_SECONDS, show_spinner=False)
def _projected_units(run: str, commit: str, layer: str, _opened: Run) -> frozenset[int]:
    return frozenset(_opened.projected_units(layer))


def method_of(run: Json) -> Method:
    """Of a run's projections; a run that is older than the field has those of the deconvnet."""
    found: Method = "deconvnet"
    for analysis in run["spec"]["analyses"]:
        if analysis["kind"] == "projection":
            found = analysis.get("method", found)
    return found


def top_ranks(run: Json) -> int:
    """How many hits of a unit are kept at most."""
    return next(int(each["k"]) for each in run["spec"]["analyses"] if each["kind"] == "top")


def opened(run: Json) -> Run:
    """A run as arrays, for what the API has no answer of its own for."""
    return _opened(_address(), _token(), run["id"], run["commit"])


@st.cache_resource(max_entries=16, ttl=KEPT_SECONDS, show_spinner=False)
def _opened(address: str, token: str, run: str, commit: str) -> Run:
    return _client(address, token).run(run)


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


def opening(run: Json) -> str:
    """Lines of Python that open a run, from wherever this page is looked at."""
    address = urlsplit(st.context.url or _address())
    here = f"{address.scheme}://{address.netloc}"
    return f"import deconvoy\n\nrun = deconvoy.Client({here!r}).run({run['id']!r})\n"


def takes_jobs() -> bool:
    """Whether the service does; else it only shows runs."""
    return bool(st.secrets["service"]["jobs"])


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
