"""What a program does with a service: submit jobs, watch them, ask about runs."""

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from deconvoy import specs
from deconvoy.client_job import ClientJob
from deconvoy.client_run import ServedRun, delete_run, edit_run, run_path
from deconvoy.connection import Connection
from deconvoy.places import anchored
from deconvoy.run import Run
from deconvoy.spec import JobSpec
from deconvoy.study_spec import StudySpec

__all__ = ["Client", "ClientJob", "KnownModel", "ServedRun"]

DEFAULT_URL = "http://127.0.0.1:8000"

PLAN_SECONDS = 600.0
"""A service may be allowed to plan for."""

PAGE_JOBS = 100
"""Asked for at once, at most."""

Spec = JobSpec | StudySpec | Mapping[str, Any] | str | os.PathLike[str]


class KnownModel(BaseModel):
    """A model by the name that a job spec gives it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    image_side: int | None
    """Of its images in pixels, where it has a preset."""
    layers: int | None
    units: int | None
    works: str
    """What works with it."""
    why: str
    """Why not more than that; empty where everything does."""


class Client:
    """A service at an address.

    Args:
        url: default: ``DECONVOY_URL``, else ``http://127.0.0.1:8000``.
        token: default: ``DECONVOY_TOKEN``, else, for a service of this machine, the local token.
        timeout: seconds that an answer may take to begin.

    Reading, submitting and cancelling are repeated, with pauses, when an answer does not arrive.
    What a service refuses is raised as the error of ``deconvoy.errors`` it stands for, with the
    service's sentence; ``ServiceUnreachable`` where none answers.
    """

    def __init__(
        self, url: str | None = None, token: str | None = None, timeout: float = 30.0
    ) -> None:
        address = url or os.environ.get("DECONVOY_URL") or DEFAULT_URL
        self._connection = Connection(address, token, timeout)

    @property
    def url(self) -> str:
        return self._connection.url

    def submit(self, spec: Spec, key: str | None = None) -> ClientJob:
        """Put a job into the queue.

        Args:
            spec: a job spec, its fields, or the path of its file.  Paths in it that are there are
                made absolute; the service must see the same files.
            key: the same key twice is one job; default: a new one.

        Raises:
            RequestError: the spec is wrong, or asks for what the service may not do.
            KeyReused: the key was used with another spec.
        """
        told = self._connection.post("/v1/jobs", _fields(spec), key=key or uuid.uuid4().hex)
        return ClientJob.of(self._connection, told)

    def job(self, job_id: str) -> ClientJob:
        """One job.  Raises JobNotFound."""
        told = self._connection.get(f"/v1/jobs/{quote(job_id, safe='')}")
        return ClientJob.of(self._connection, told)

    def jobs(self, state: str | None = None, limit: int | None = None) -> Iterator[ClientJob]:
        """Jobs, the newest first.

        Args:
            state: only these.
            limit: so many at most; default: all.
        """
        left, before = limit, None
        while left is None or left > 0:
            size = None if left is None else min(left, PAGE_JOBS)
            page = self._connection.get(
                "/v1/jobs", {"state": state, "before": before, "limit": size}
            )
            for told in page["jobs"]:
                yield ClientJob.of(self._connection, told)
            if page["next"] is None:
                return
            before = page["jobs"][-1]["id"]
            left = None if left is None else left - len(page["jobs"])

    def plan(self, spec: Spec) -> dict[str, Any]:
        """What a job would do, take and need, as ``deconvoy plan --json`` prints it."""
        planned: dict[str, Any] = self._connection.post(
            "/v1/plans", _fields(spec), seconds=PLAN_SECONDS
        )
        return planned

    def runs(
        self, status: str | None = None, tag: str | None = None, text: str | None = None
    ) -> Iterator[ServedRun]:
        """Runs: pinned ones first, then the newest.

        Args:
            status: only these.
            tag: only those with this tag.
            text: only those with this in id, name or model.
        """
        offset = 0
        while True:
            given = {"status": status, "tag": tag, "text": text, "offset": offset}
            page = self._connection.get("/v1/runs", given)
            yield from (ServedRun.of(self._connection, told) for told in page["runs"])
            offset += len(page["runs"])
            if page["next"] is None:
                return

    def run(self, run_id: str) -> Run:
        """A run, read through the service, and only what is asked for.  Raises RunNotFound."""
        self._connection.get(run_path(run_id))  # whose refusal names the nearest
        return Run(f"{self.url}{run_path(run_id)}", self._connection.token)

    def served_run(self, run_id: str) -> ServedRun:
        """What the list says of one run, and what can be done with it.  Raises RunNotFound."""
        return ServedRun.of(self._connection, self._connection.get(run_path(run_id)))

    def edit_run(
        self,
        run_id: str,
        *,
        name: str | None = None,
        tags: Sequence[str] | None = None,
        add_tags: Sequence[str] = (),
        remove_tags: Sequence[str] = (),
        pinned: bool | None = None,
    ) -> ServedRun:
        """Name, tag and pin a run, as ``ServedRun.edit``.  Raises RunNotFound."""
        return edit_run(
            self._connection, run_id, name=name, tags=tags, add_tags=add_tags,
            remove_tags=remove_tags, pinned=pinned,
        )  # fmt: skip

    def delete_run(self, run_id: str) -> None:
        """Delete a run and all its files, as ``ServedRun.delete``.  Raises RunNotFound."""
        delete_run(self._connection, run_id)

    def diff(self, before: str, after: str, layer: str | None = None) -> pa.Table:
        """What became of one run in another of its layout, as ``queries.diff`` tells it; of the
        units of one layer, as ``queries.diff_units``.  The service computes it.

        Args:
            before, after: ids of runs.
            layer: of its units; default: of all layers.

        Raises:
            RequestError: the layouts differ.
            RunNotFound: no such run or layer.
        """
        from deconvoy.comparison import SCHEMA, UNIT_SCHEMA

        path = f"{run_path(before)}/diff/{quote(after, safe='')}"
        if layer is None:
            return pa.Table.from_pylist(self._connection.get(path)["layers"], SCHEMA)
        rows: list[dict[str, Any]] = []
        while True:
            given = {"offset": len(rows)}
            page = self._connection.get(f"{path}/{quote(layer, safe='')}", given)
            rows += page["units"]
            if page["next"] is None:
                return pa.Table.from_pylist(rows, UNIT_SCHEMA)

    def upload(self, image: str | os.PathLike[str] | bytes) -> str:
        """Hand an image in, for a job that looks at it alone.

        Args:
            image: path of a file, or its bytes: JPEG, PNG, WEBP, BMP or GIF.

        Returns:
            Where it lies at the service: the ``data.uri`` of a job.

        Raises:
            RequestError: it is no such image, or too large.
        """
        content = image if isinstance(image, bytes) else Path(image).read_bytes()
        return str(self._connection.hand_in("/v1/uploads", content)["uri"])

    def query(self, run_id: str, name: str, *given: str | int, **named: str | int) -> pa.Table:
        """Ask a run, as ``deconvoy query`` does; the service computes the answer.

        Args:
            given: arguments in order.
            named: arguments by name; one that is a word of Python has ``_`` behind it (``class_``).

        Raises:
            RequestError: no such query, or arguments that do not fit.
            RunNotFound: no such run, layer, unit or image.
        """
        from deconvoy import queries  # their registry

        spelled = {key.rstrip("_"): value for key, value in named.items()}
        asked = queries.by_name(queries.find(name), given, spelled)
        return self._arrow(f"{run_path(run_id)}/query/{name}", asked)

    def table(
        self,
        run_id: str,
        layer: str | None = None,
        *,
        unit: int | None = None,
        label: str | int | None = None,
        image: str | int | None = None,
    ) -> pa.Table:
        """The hits of a run, as ``Run.table``.

        Args:
            layer: only of this one.
            unit: only of units of this number.
            label: only on images of this class, its name or index.
            image: only on this image, its id or path in the data set.
        """
        given = {"layer": layer, "unit": unit, "label": label, "image": image}
        return self._arrow(f"{run_path(run_id)}/table", given)

    def models(self, text: str | None = None) -> list[KnownModel]:
        """Models that the service knows by name.

        Args:
            text: only those with this in their name.
        """
        told = self._connection.get("/v1/models", {"text": text})
        return [KnownModel.model_validate(model) for model in told["models"]]

    def close(self) -> None:
        """Let go of the connections; ``with Client() as client`` does so by itself."""
        self._connection.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def _arrow(self, path: str, given: Mapping[str, str | int | None]) -> pa.Table:
        content = self._connection.content(path, {**given, "format": "arrow"})
        return pa.ipc.open_stream(content).read_all()


def _fields(spec: Spec) -> dict[str, Any]:
    """A spec as it is sent."""
    if isinstance(spec, JobSpec | StudySpec):
        return _anchored(spec)
    if isinstance(spec, (str, os.PathLike)):
        return _anchored(specs.from_file(os.fspath(spec)))
    return _anchored(specs.parse(dict(spec)))


def _anchored(spec: JobSpec | StudySpec) -> dict[str, Any]:
    return anchored(spec).to_json()
