"""Plan a job in a process of its own, whose time and memory are bounded.

The API loads no torch, and a model that does not fit must not take the service with it.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deconvoy import fence, specs
from deconvoy.errors import DeconvoyError, FieldInvalid, JobFailed, RequestError
from deconvoy.specs import Spec
from service import launcher
from service.cluster import without_secrets
from service.settings import Settings

LOOK_SECONDS = 0.5
"""Between two looks whether somebody still waits for the plan."""


def plan(
    spec: Spec, settings: Settings, wanted: Callable[[], bool] = lambda: True
) -> dict[str, Any]:
    """What the job would do, take and need (as ``deconvoy plan --json``).

    Args:
        wanted: whether somebody still waits for it; it is ended where nobody does.

    Raises:
        RequestError: the spec asks for what is not there, or does not fit.
        JobFailed: planning took too long, or too much memory, or nobody waited for it.
    """
    status, said = _run(
        [sys.executable, "-m", "service.planner", str(settings.plan_bytes), *settings.readable],
        json.dumps(spec.to_json()),
        settings.plan_seconds,
        wanted,
    )
    answer: Mapping[str, Any] | None = _last_line(said)
    if answer is None:
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        raise JobFailed(
            f"The planner ended with {how} and no answer: it may have needed more memory than this "
            f"machine has, or than {settings.plan_bytes:,} bytes (DECONVOY_PLAN_BYTES)."
        )
    if "refused" in answer:
        told = answer["refused"]
        raise FieldInvalid(told, answer["field"]) if answer["field"] else RequestError(told)
    if "failed" in answer:
        raise JobFailed(answer["failed"])
    return dict(answer["plan"])


def _run(
    command: Sequence[str], given: str, seconds: float, wanted: Callable[[], bool]
) -> tuple[int, str]:
    """Its exit status and output.  It is ended, not left, whatever happens."""
    until = time.monotonic() + seconds
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=without_secrets(os.environ),
    ) as process:
        try:
            more: str | None = given
            while True:
                try:
                    said, _ = process.communicate(more, timeout=min(LOOK_SECONDS, seconds))
                    return process.returncode, said
                except subprocess.TimeoutExpired:
                    more = None  # what was not taken yet is still given
                if time.monotonic() > until:
                    raise JobFailed(
                        f"Planning took longer than {seconds:g} s (DECONVOY_PLAN_SECONDS): plan "
                        "fewer layers or analyses, or use `deconvoy plan` where the model is."
                    )
                if not wanted():
                    raise JobFailed("Nobody waits for this plan any more.")
        finally:
            process.kill()


def _last_line(text: str) -> Mapping[str, Any] | None:
    lines = text.strip().splitlines()
    try:
        return dict(json.loads(lines[-1])) if lines else None
    except ValueError:
        return None


def main(most_bytes: int, roots: Sequence[str]) -> None:
    """The process: a spec on standard input, an answer on standard output."""
    fence.put_up(roots)
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    try:
        answer: dict[str, Any] = {"plan": launcher.plan(specs.parse(json.load(sys.stdin)), _silent)}
    except RequestError as error:
        answer = {"refused": str(error), "field": _field_of(error)}
    except DeconvoyError as error:
        answer = {"failed": str(error)}
    except MemoryError:
        answer = {"failed": f"Planning needs more than {most_bytes:,} bytes of memory."}
    print(json.dumps(answer))


def _field_of(error: RequestError) -> str | None:
    """The one that a refusal is about: it says so, or its sentence begins with it."""
    named = re.match(
        r"(model|data|layers|analyses|storage|compute|base|validation|edits|training)\b(\.\w+)*",
        str(error),
    )
    return getattr(error, "field", None) or (named.group() if named else None)


def _silent(line: str) -> None:
    """Nobody listens."""


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
