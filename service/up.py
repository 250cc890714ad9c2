"""``deconvoy up``: the whole service on one machine, until Ctrl-C."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from deconvoy.errors import MissingExtra, RequestError, RunNotFound
from deconvoy.store import METADATA, RunStore
from service import token_file
from service.console import out

if TYPE_CHECKING:
    import uvicorn

    from service.settings import Settings

DRAIN_SECONDS = 5
"""Time for requests at hand, and for streams to end, at Ctrl-C."""


def up(
    urls: Annotated[
        list[str] | None, typer.Argument(metavar="[URL]...", help="Runs elsewhere, to show, too.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="local|ADDRESS|none",
            help="Where jobs run: on a Ray of this machine, started beside it (default), on the "
            "cluster at an address, or nowhere.",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default: 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Default: 8000; 0: any that is free.")
    ] = None,
    runs: Annotated[
        str | None, typer.Option(help="Folder or s3://… for runs; default: ~/.deconvoy/runs.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Folder or URL below which jobs may read; default: this folder."),
    ] = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard/--no-dashboard", help="Pages to look at, besides the API.")
    ] = True,
) -> None:
    """The whole service on one machine: API, dashboard, jobs and a local Ray beside it."""
    try:
        import uvicorn

        from service.app import create_app, make_ready
        from service.logs import configure_process
        from service.mounted import with_dashboard
        from service.settings import read_settings
    except ModuleNotFoundError as error:
        raise MissingExtra("service", "The service") from error
    given: dict[str, Any] = {"ray": ray, "host": host, "port": port, "runs": runs}
    given = {name: value for name, value in given.items() if value is not None}
    for url in urls or ():
        if not RunStore(url).exists(METADATA):
            raise RunNotFound(
                f"There is no run at {url!r}, so there is nothing to show: give the folder or URL "
                "that `--out` named."
            )
    if urls:
        given["browse"] = tuple(urls)
    if data:
        given["data_roots"] = tuple(_absolute(place) for place in data)
    settings = read_settings(**given)
    configure_process(settings.log)
    if not settings.data_roots and settings.on_loopback:
        settings = settings.model_copy(update={"data_roots": (str(Path.cwd()),)})
    listening = _bound(settings.host, settings.port)
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{name}:{listening.getsockname()[1]}"
    app = create_app(settings, supervise=settings.ray != "none")
    make_ready(app)  # here, where an error is a sentence
    served = with_dashboard(app, _near(listening)) if dashboard else app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                link = app.state.gate.link(address)
                out.print(f"Deconvoy is at {address}  (API: {address}/docs)", soft_wrap=True)
                out.print(f"Open it in a browser: {escape(link)}", soft_wrap=True)
                where = "a Ray of this machine" if settings.ray == "local" else settings.ray
                jobs = "It takes no jobs" if settings.ray == "none" else f"Jobs run on {where}"
                out.print(
                    f"{jobs}; runs are in {escape(settings.runs_root)}. Ctrl-C ends it.",
                    soft_wrap=True,
                )

    alone = _only_one(settings.home_folder, address) if settings.ray != "none" else nullcontext()
    with alone, token_file.good_at(settings.home_folder, *listening.getsockname()[:2]):
        _begin_to_listen(listening, settings.host)
        Server(server_config(served, settings)).run(sockets=[listening])


def server_config(served: Any, settings: "Settings") -> "uvicorn.Config":
    """Of the server of an application."""
    import uvicorn

    from service.impatience import Impatient

    return uvicorn.Config(
        served,
        http=Impatient,
        log_config=None,
        access_log=False,
        forwarded_allow_ips=[str(network) for network in settings.proxies],
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


@contextmanager
def _only_one(home: Path, address: str) -> Iterator[None]:
    """Two with one home would end each other's Ray.

    Raises:
        RequestError: another one is there.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / "up.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise RequestError(
                f"A service with the home {str(home)!r} is there already ({file.read().strip()}): "
                "use it, end it, or name another home in DECONVOY_HOME."
            ) from None
        file.truncate(0)
        file.write(f"{address}, process {os.getpid()}")
        file.flush()
        yield


def _bound(host: str, port: int) -> socket.socket:
    """At that address, which is taken from now on; nobody can connect yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its protocol asyncio knows that answers need not wait for others to go with (Nagle): 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise _taken(f"{host}:{port}", error) from error
    return listening


def _near(listening: socket.socket) -> str:
    """The address for who is on this machine; ``0.0.0.0`` is all of its addresses."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _begin_to_listen(bound: socket.socket, host: str) -> None:
    try:
        bound.listen(128)
    except OSError as error:  # another one, that was bound there too, was quicker
        raise _taken(f"{host}:{bound.getsockname()[1]}", error) from error


def _taken(address: str, error: OSError) -> RequestError:
    return RequestError(
        f"Nothing can listen on {address} ({error.strerror}): choose another --port, or end what "
        "is there."
    )


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).absolute())
