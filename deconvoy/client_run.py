"""A run at a service, as its list tells of it, and what people do with it: name, tag, delete."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, PrivateAttr

from deconvoy.connection import Connection
from deconvoy.run import Run

__all__ = ["ServedRun", "run_path"]


def run_path(run_id: str) -> str:
    return f"/v1/runs/{quote(run_id, safe='')}"


class ServedRun(BaseModel):
    """What a service's list says of a run.  Frozen: ``edit`` returns what it says then."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    kind: str = "job"
    """job, or study: several networks that were trained."""
    name: str | None
    """What people call it; else as its spec says."""
    tags: tuple[str, ...]
    pinned: bool
    """Stands before the others in a list, and cannot be deleted."""
    status: str
    """running, done, failed, stopped, interrupted, unreadable or deleting"""
    model: str
    images: int
    layers: int
    units: int | None
    """Of all layers; None until the scan is done."""
    top1: float | None
    """Share of labelled images whose most probable class is their label."""
    created: datetime | None
    commit: str
    """Changes when the run does."""

    _connection: Connection = PrivateAttr()

    @classmethod
    def of(cls, connection: Connection, told: Any) -> "ServedRun":
        """The run that a service tells of."""
        run = cls.model_validate(told)
        run._connection = connection
        return run

    @property
    def url(self) -> str:
        """As ``deconvoy.open`` takes it."""
        return f"{self._connection.url}{run_path(self.id)}"

    def open(self) -> Run:
        """The run itself, read through the service, and only what is asked for.

        Raises:
            RunNotFound: it is not there any more.
        """
        return Run(self.url, self._connection.token)

    def refresh(self) -> "ServedRun":
        """What the list says now."""
        return self.of(self._connection, self._connection.get(run_path(self.id)))

    def edit(
        self,
        *,
        name: str | None = None,
        tags: Sequence[str] | None = None,
        add_tags: Sequence[str] = (),
        remove_tags: Sequence[str] = (),
        pinned: bool | None = None,
    ) -> "ServedRun":
        """Say something of it; what is left out stays.

        Args:
            name: at most 200 characters; an empty one takes it back.
            tags: all that it has from now on, at most 32 of 64 characters each.
            add_tags: to those it has.
            remove_tags: from those it has; one that it has not is no error.
            pinned: whether it stands before the others, and cannot be deleted.

        Raises:
            RequestError: nothing is said, or it does not fit.
            RunNotFound: it is not there any more.
            NotAllowed: the token may not; ``submit`` may.
        """
        return edit_run(
            self._connection, self.id, name=name, tags=tags, add_tags=add_tags,
            remove_tags=remove_tags, pinned=pinned,
        )  # fmt: skip

    def delete(self) -> None:
        """Delete it and all its files, for good.

        Raises:
            RequestError: it is pinned, its job has not ended, or it is not the service's to delete.
            RunNotFound: it is not there any more.
            NotAllowed: the token may not; ``admin`` may.
        """
        delete_run(self._connection, self.id)

    def __repr__(self) -> str:
        called = f" {self.name!r}" if self.name else ""
        tags = f", tags {', '.join(self.tags)}" if self.tags else ""
        pinned = ", pinned" if self.pinned else ""
        size = f"{self.images:,} images, {self.layers:,} layers"
        return f"ServedRun({self.id!r}{called}, {self.status}, {self.model}, {size}{tags}{pinned})"

    __str__ = __repr__


def edit_run(
    connection: Connection,
    run_id: str,
    *,
    name: str | None,
    tags: Sequence[str] | None,
    add_tags: Sequence[str],
    remove_tags: Sequence[str],
    pinned: bool | None,
) -> ServedRun:
    given = {
        "name": name,
        "tags": _listed(tags),
        "add_tags": _listed(add_tags) or None,
        "remove_tags": _listed(remove_tags) or None,
        "pinned": pinned,
    }
    said = {key: value for key, value in given.items() if value is not None}
    return ServedRun.of(connection, connection.patch(run_path(run_id), said))


def delete_run(connection: Connection, run_id: str) -> None:
    connection.remove(run_path(run_id))


def _listed(tags: Sequence[str] | None) -> list[str] | None:
    """A text alone is one tag, not its letters."""
    return [tags] if isinstance(tags, str) else None if tags is None else list(tags)
