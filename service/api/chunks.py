"""The run itself over HTTP, so that any Zarr client reads its chunks lazily.

Files come as they lie, with entity tags and ranges; a path that ends with a slash is a folder and
gives the names in it.  What only concerns the driver is not there.  The metadata of a finished
run's groups of arrays is consolidated: Zarr clients cannot list a folder of a web server, and find
the arrays of a group this way.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from pathlib import Path as LocalPath
from typing import Annotated, Any

from fastapi import Depends, Path, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from deconvoy.errors import RunUnreachable
from deconvoy.files import Files
from deconvoy.store import RunStore
from service import caching, problems
from service.api.asking import KNOWN_PARAMETERS, RunId, opened
from service.api.routing import Routes
from service.auth import Scope, requires
from service.problems import Problem, refused
from service.shelf import Shelved

router = Routes(
    prefix="/v1/runs/{run_id}/zarr",
    tags=["zarr"],
    dependencies=[Depends(requires(Scope.read)), KNOWN_PARAMETERS],
)

HIDDEN = re.compile(r"^ledger/driver(\.lock)?(/|$)|(^|/)(\.[^/]*|[^/]*\.partial)(/|$)")
"""Which process of which machine is the driver; and what is half-written."""


GROUP = re.compile(r"(layers|evolution|study)/[^/]+|occlusion|invariance|correspondence")
"""Groups that hold arrays, and nothing else."""

PIECE = 2**20
"""Bytes read at a time."""

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_NAMES = {"schema": {"type": "array", "items": {"type": "string"}}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file; of a folder (with a slash at its end) the names in it.",
        "content": {
            "application/octet-stream": _BINARY,
            "application/json": _NAMES | {"example": ["box", "image", "score", "zarr.json"]},
        },
    },
    206: {
        "description": "The bytes asked for.",
        "content": {"application/octet-stream": _BINARY},
    },
    304: {"description": "The caller has it already."},
    **problems.documented(416),
}

ZarrPath = Annotated[
    str,
    Path(
        description="Path of a file below the run.", examples=["layers/features.0/score/zarr.json"]
    ),
]


@dataclass(frozen=True)
class _File:
    """A file of a run."""

    size: int
    headers: dict[str, str]
    read: Callable[[int, int], bytes]
    """Some bytes of it: from where, how many."""


@router.get("/{path:path}", responses=RESPONSES, response_class=Response)
def read_file(request: Request, run_id: RunId, path: ZarrPath) -> Response:
    """A file of the run, or a part of it.

    ``zarr.open_group`` opens the run at ``…/zarr``, ``xarray.open_zarr`` a layer at
    ``…/zarr/layers/NAME``.
    """
    shelved = opened(request, run_id)
    _require_inside(path)
    if path == "" or path.endswith("/"):
        return _names(request, shelved, path)
    file = _consolidated(request, shelved, path) or _found(request, shelved, path)
    if _unchanged(request, file):
        return Response(status_code=304, headers=file.headers)
    if request.method == "HEAD":  # ranges are of GET alone
        told = {"Content-Length": str(file.size)}
        return Response(headers=file.headers | told, media_type=_OCTETS)
    asked = _range(request, file)
    if asked is None:
        return _sent(file, 0, file.size, 200, file.headers)
    begin, end = asked
    told = {"Content-Range": f"bytes {begin}-{end - 1}/{file.size}"}
    return _sent(file, begin, end, 206, file.headers | told)


# -- parts -----------------------------------------------------------------------------------------

_OCTETS = "application/octet-stream"


def _require_inside(path: str) -> None:
    """Raises Problem: a path that is none below a run, or of what is not there for readers."""
    parts = path.removesuffix("/").split("/")
    strange = any(part in (".", "..") for part in parts) or (path != "" and "" in parts)
    if strange or "\0" in path or "\\" in path or HIDDEN.search(path):
        raise _nothing(path)


def _nothing(path: str) -> Problem:
    return refused(
        404,
        f"The run has no file {path[:200]!r}: give one below it, or a folder with a slash at its "
        "end.",
        "path",
    )


def _found(request: Request, shelved: Shelved, path: str) -> _File:
    files = Files(shelved.url)
    modified = ""
    read: Callable[[int, int], bytes] = partial(files.read_range, path)
    try:
        if shelved.url.startswith("s3:"):
            entry = files.entry(path)
            size, tag = entry.size, entry.tag
        elif "://" in shelved.url:  # of other places files come whole
            content = RunStore(shelved.url).read(path)
            size, tag = len(content), hashlib.sha256(content).hexdigest()[:24]
            read = partial(_part, content)
        else:
            place = _real(shelved.url, path)
            if not place.is_relative_to(_real(shelved.url)) or not place.is_file():
                raise _nothing(path)  # a link that leads out of the run or in a circle, or a folder
            status = place.stat()
            size, tag = status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}"
            modified = formatdate(status.st_mtime, usegmt=True)
    except (FileNotFoundError, NotADirectoryError):
        raise _nothing(path) from None
    except OSError as error:
        if "://" in shelved.url:
            if isinstance(error, RunUnreachable):
                raise
            raise RunUnreachable(f"The run at {shelved.url!r} cannot be read: {error}.") from error
        raise _nothing(path) from error  # a name too long for the disk, a loop of links
    headers = {
        "ETag": f'"{tag.strip(chr(34))}"',
        "Accept-Ranges": "bytes",
        # Not for ever: an address may show another run one day, made anew in the same place.
        "Cache-Control": caching.control(request, for_ever=False),
    }
    if modified:
        headers["Last-Modified"] = modified
    return _File(size, headers, read)


def _consolidated(request: Request, shelved: Shelved, path: str) -> _File | None:
    """The metadata of a group with that of its arrays; None of all else."""
    group, _, name = path.rpartition("/")
    if not (shelved.done and name == "zarr.json" and GROUP.fullmatch(group)):
        return None
    _found(request, shelved, path)
    store = RunStore(shelved.url)
    arrays = [one for one in store.names(group) if store.exists(f"{group}/{one}/zarr.json")]
    metadata = json.loads(store.read(path))
    metadata["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": {one: json.loads(store.read(f"{group}/{one}/zarr.json")) for one in arrays},
    }
    content = json.dumps(metadata).encode()
    headers = {
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:24]}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": caching.control(request, False),
    }
    return _File(len(content), headers, partial(_part, content))


def _part(content: bytes, begin: int, length: int) -> bytes:
    return content[begin : begin + length]


def _names(request: Request, shelved: Shelved, path: str) -> JSONResponse:
    if "://" not in shelved.url:
        place = LocalPath(shelved.url, path)
        inside = _real(shelved.url, path).is_relative_to(_real(shelved.url))
        if not inside or not _is_folder(place):
            raise _nothing(path)
    names = RunStore(shelved.url).names(path.removesuffix("/"))
    shown = [name for name in names if not HIDDEN.search(f"{path}{name}")]
    return JSONResponse(shown, headers={"Cache-Control": caching.control(request, False)})


def _real(*parts: str) -> LocalPath:
    """Through all links; ``resolve`` would raise where they lead in a circle."""
    return LocalPath(os.path.realpath(LocalPath(*parts)))


def _is_folder(place: LocalPath) -> bool:
    try:
        return place.is_dir()
    except OSError:
        return False


def _unchanged(request: Request, file: _File) -> bool:
    """Whether the caller has the file already."""
    known = request.headers.get("if-none-match")
    if known is not None:
        tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
        return "*" in tags or file.headers["ETag"] in tags
    since = request.headers.get("if-modified-since")
    return since is not None and since == file.headers.get("Last-Modified")


def _range(request: Request, file: _File) -> tuple[int, int] | None:
    """The bytes asked for, half-open; None for all.

    One range is given, as every Zarr client asks; several, and what is no range of bytes, are
    answered with the whole file, as RFC 9110 allows.

    Raises:
        Problem: the file is shorter.
    """
    valid = request.headers.get("if-range")
    if valid is not None and valid not in (file.headers["ETag"], file.headers.get("Last-Modified")):
        return None
    found = re.fullmatch(r"bytes=(\d{0,19})-(\d{0,19})", request.headers.get("range", ""))
    if found is None or found[0] == "bytes=-":
        return None
    first, last = found.groups()
    if first == "":
        begin, end = max(file.size - int(last), 0), file.size
    else:
        begin, end = int(first), min(int(last) + 1 if last else file.size, file.size)
    if last and first and int(last) < int(first):
        return None
    if begin >= file.size or begin >= end:
        raise refused(
            416,
            f"The file has {file.size} bytes, so there are none at {request.headers['range']!r}: "
            "ask for a range below its size.",
            "Range",
            {"Content-Range": f"bytes */{file.size}"},
        )
    return begin, end


def _sent(file: _File, begin: int, end: int, status: int, headers: dict[str, str]) -> Response:
    """Bytes of a file; of a large one piece by piece."""
    if end - begin <= PIECE:
        content = file.read(begin, end - begin) if end > begin else b""
        return Response(content, status, headers, _OCTETS)
    headers = headers | {"Content-Length": str(end - begin)}
    return StreamingResponse(_pieces(file, begin, end), status, headers, _OCTETS)


def _pieces(file: _File, begin: int, end: int) -> Iterator[bytes]:
    for start in range(begin, end, PIECE):
        yield file.read(start, min(PIECE, end - start))
