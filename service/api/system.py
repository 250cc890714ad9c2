"""The service itself: is it well, what it counts, which models it knows."""

import importlib.metadata
import json
from functools import lru_cache
from importlib.resources import files
from typing import Annotated

from fastapi import Depends, Query, Request, Response
from fastapi.responses import RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict

from service.api.asking import KNOWN_PARAMETERS
from service.api.routing import Routes
from service.auth import Scope, requires
from service.metrics import Metrics

outside = Routes(tags=["service"])
"""Beside ``/v1``, where machines that watch over services look."""

router = Routes(
    prefix="/v1/models",
    tags=["models"],
    dependencies=[Depends(requires(Scope.read)), KNOWN_PARAMETERS],
)

BUILT_IN = ("deconvoy/zfnet", "deconvoy/zfnet_small")
"""Models that come with Deconvoy; their weights are random, or those of a file."""


class Health(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"status": "ok", "version": "0.1.0"}]}
    )

    status: str
    version: str


class Model(BaseModel):
    """A model by the name a job spec gives it."""

    name: str
    image_side: int | None
    """Of its images in pixels, where it has a preset."""
    layers: int | None
    units: int | None
    works: str
    """What works with it."""
    why: str
    """Why not more than that works; empty where everything does."""


class ModelList(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "models": [
                        {
                            "name": "torchvision/squeezenet1_1",
                            "image_side": 224,
                            "layers": 27,
                            "units": 4944,
                            "works": "scan and projection",
                            "why": "",
                        }
                    ],
                    "python": ["models/own.py:*"],
                }
            ]
        }
    )

    models: list[Model]
    python: list[str]
    """Patterns of models in Python code that the operator allows."""


@outside.get("/", include_in_schema=False)
def front() -> RedirectResponse:
    """Where a browser begins."""
    return RedirectResponse("docs")


@outside.get("/healthz")
async def health() -> Health:
    """Whether the service answers.  Open to all."""
    return Health(status="ok", version=version())


@outside.get(
    "/metrics",
    dependencies=[Depends(requires(Scope.read))],
    response_class=Response,
    responses={
        200: {"content": {CONTENT_TYPE_LATEST.partition(";")[0]: {"schema": {"type": "string"}}}}
    },
)
def show_metrics(request: Request) -> Response:
    """What Prometheus asks for."""
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)


@router.get("")
def list_models(
    request: Request,
    text: Annotated[
        str | None, Query(description="Only those with this in their name.", examples=["resnet"])
    ] = None,
) -> ModelList:
    """Models by name, and what works with each."""
    own = [
        Model(name=name, image_side=None, layers=None, units=None, works=_EVERYTHING, why="")
        for name in BUILT_IN
    ]
    found = [*own, *_torchvision()]
    if text is not None:
        found = [model for model in found if text.casefold() in model.name.casefold()]
    return ModelList(models=found, python=list(request.app.state.settings.python_models))


_EVERYTHING = "scan and projection"


@lru_cache(maxsize=1)
def _torchvision() -> list[Model]:
    """As ``workers.support`` found them; it wrote the file."""
    rows = json.loads(files("service").joinpath("torchvision.json").read_text(encoding="utf-8"))
    return [
        Model(
            name=f"torchvision/{row['model']}",
            image_side=row["side"],
            layers=row["layers"] or None,
            units=row["units"] or None,
            works=row["works"],
            why=row["why"],
        )
        for row in rows
    ]


@lru_cache(maxsize=1)
def version() -> str:
    """Of Deconvoy."""
    try:
        return importlib.metadata.version("deconvoy")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
