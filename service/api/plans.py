"""Plans: what a job would do, take and need, before it is submitted."""

import threading
from typing import Any

from anyio import from_thread
from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict

from deconvoy import specs
from deconvoy.errors import JobFailed
from service import planner, problems
from service.admission import admit, require_storable
from service.api.asking import KNOWN_PARAMETERS
from service.api.jobs import GivenSpec
from service.api.routing import Routes
from service.auth import Scope, requires

router = Routes(prefix="/v1/plans", tags=["jobs"], dependencies=[KNOWN_PARAMETERS])

_one_at_a_time = threading.Semaphore(1)

AGAIN_SECONDS = 10


class Plan(BaseModel):
    """As ``deconvoy plan --json`` prints it."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [{"model": "torchvision/squeezenet1_1", "images": 5000, "batch_size": 16}]
        },
    )


@router.post(
    "",
    dependencies=[Depends(requires(Scope.submit))],
    responses=problems.documented(429, 503),
)
def plan_job(request: Request, spec: GivenSpec) -> Plan:
    """Layers, units, receptive fields, transform and images; estimated work, time and storage.
    A few images are computed; one plan is made at a time."""
    require_storable(spec)
    parsed = specs.parse(spec)
    admit(parsed, request.app.state.settings)
    if not _one_at_a_time.acquire(blocking=False):
        raise problems.refused(
            429,
            f"Another plan is being made: ask again in {AGAIN_SECONDS} s.",
            headers={"Retry-After": str(AGAIN_SECONDS)},
        )
    try:
        planned: dict[str, Any] = planner.plan(
            parsed,
            request.app.state.settings,
            wanted=lambda: not from_thread.run(request.is_disconnected),
        )
    except JobFailed as error:
        raise problems.refused(503, str(error)) from error
    finally:
        _one_at_a_time.release()
    return Plan(**planned)
