"""The HTTP service, put together: what it knows, what stands before it, and its routes."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import numpy as np
import pyarrow as pa
from fastapi import FastAPI
from starlette.middleware import Middleware

from deconvoy.kept import Kept
from service import logs, problems, uploads
from service.api import (
    chunks,
    diff,
    images,
    jobs,
    layers,
    login,
    occlusion,
    pictures,
    plans,
    reference,
    runs,
    system,
    tables,
)
from service.api import uploads as handing_in
from service.auth import Gate
from service.catalogue import ACTIVE, ENDED, Catalogue
from service.dispatcher import give_up
from service.guards import guards
from service.jobs import Queue
from service.logs import RequestLog
from service.metrics import Metrics
from service.settings import Settings
from service.shelf import Shelf
from service.supervisor import Supervisor

logger = logging.getLogger(__name__)

DRAWERS = 4
"""Pictures drawn at a time."""

DRAWN_BYTES = 32 * 2**20
"""Of pictures that are kept, some 2,500 tiles, by their entity tags: drawing one takes ten times as
long as sending it, and people who look at a run look at the same units."""

DESCRIPTION = """\
What each feature map of a convolutional network sees: runs, their layers, units, hits, images and
pictures; and the jobs that make them.

Errors are problem+json (RFC 9457): one sentence that says what, which value, what rule and what to
do. Rows come in pages: `next` is the address of the following one. A run itself is below
`/v1/runs/{run_id}/zarr/`, for `deconvoy.open` and any Zarr client. HEAD is answered wherever GET
is, but for the stream of events of a job.
"""


def create_app(
    settings: Settings,
    catalogue: Catalogue | None = None,
    gate: Gate | None = None,
    supervise: bool = False,
) -> FastAPI:
    """The application.

    Args:
        catalogue: default: that of the settings; it is opened and closed with the application.
        gate: who may call; default: by the tokens in the catalogue.
        supervise: keep the dispatcher, and a local Ray, alive beside it; a local Ray ends with it.
    """
    logs.configure(settings.log)
    known = catalogue or Catalogue(settings.database_url)
    app = FastAPI(
        title="Deconvoy",
        version=system.version(),
        description=DESCRIPTION,
        lifespan=started,
        docs_url=None,  # ours comes from here alone
        redoc_url=None,
        redirect_slashes=False,
        middleware=[Middleware(RequestLog), *guards(settings)],
    )
    app.state.settings = settings
    app.state.catalogue = known
    app.state.gate = gate or Gate(settings, known)
    app.state.shelf = Shelf(settings, partial(known.places, *ACTIVE, *ENDED))
    app.state.metrics = Metrics(known)
    app.state.queue = Queue(settings, known) if settings.ray != "none" else None
    app.state.supervisor = Supervisor(settings) if supervise and settings.ray != "none" else None
    problems.install(app)
    app.include_router(system.outside)
    app.include_router(login.router)
    app.include_router(reference.router)
    # Pictures come before what they are of: a number with a suffix is no number.  What has a path
    # within comes last.
    for router in (
        system.router,
        jobs.router,
        plans.router,
        handing_in.router,
        runs.router,
        pictures.router,
        tables.router,
        diff.router,
        images.router,
        occlusion.router,
        layers.router,
        chunks.router,
    ):
        app.include_router(router)
    return app


def make_ready(app: FastAPI) -> None:
    """Bring the catalogue up to this version and see who may come in; a second time does no harm.

    Raises:
        DeconvoyError: it may not serve.
    """
    catalogue: Catalogue = app.state.catalogue
    gate: Gate = app.state.gate
    catalogue.upgrade()
    gate.open()


@asynccontextmanager
async def started(app: FastAPI) -> AsyncIterator[None]:
    """From start to stop; for an application mounted in another too, whose lifespan calls it."""
    catalogue: Catalogue = app.state.catalogue
    await anyio.to_thread.run_sync(make_ready, app)
    app.state.drawers = anyio.CapacityLimiter(DRAWERS)
    app.state.drawn = Kept[bytes](DRAWN_BYTES, len)
    supervisor: Supervisor | None = app.state.supervisor
    if supervisor is not None:
        supervisor.start()
    try:
        async with anyio.create_task_group() as group:
            shelf: Shelf = app.state.shelf
            group.start_soon(uploads.sweep_daily, app.state.settings, catalogue, shelf)
            warm_up = partial(_warm_up, shelf)
            group.start_soon(partial(anyio.to_thread.run_sync, warm_up, abandon_on_cancel=True))
            yield
            group.cancel_scope.cancel()
    finally:
        if supervisor is not None:
            await anyio.to_thread.run_sync(supervisor.stop)
            await anyio.to_thread.run_sync(_give_up, app.state.settings, catalogue)
        await anyio.to_thread.run_sync(catalogue.close)


def _warm_up(shelf: Shelf) -> None:
    """Before anybody waits for it: what a list says of each run, some seconds of thousands; and
    pandas, half a second."""
    pa.array(np.zeros(1))  # of its first array pyarrow asks pandas, and loads it
    try:
        shelf.look_through()
    except Exception:  # who asks for the list is told
        logger.exception("The runs could not be looked through.")


def _give_up(settings: Settings, catalogue: Catalogue) -> None:
    """With a local Ray its jobs have ended, too."""
    if settings.ray == "local":
        give_up(catalogue, "The service was stopped.")
