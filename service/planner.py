"""Plan a job in a process of its own, whose time and memory are bounded.

The API loads no torch, and a model that does not fit must not take the service with it.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from deconvoy import fence
from deconvoy.errors import DeconvoyError, JobFailed, RequestError
from deconvoy.spec import JobSpec
from service import launcher
from service.cluster import without_secrets
from service.settings import Settings


def plan(spec: JobSpec, settings: Settings) -> dict[str, Any]:
    """What the job would do, take and need (as ``deconvoy plan --json``).

    Raises:
        RequestError: the spec asks for what is not there, or does not fit.
        JobFailed: planning took too long, or too much memory.
    """
    try:
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "service.planner",
                str(settings.plan_bytes),
                *settings.readable,
            ],
            input=json.dumps(spec.to_json()),
            capture_output=True,
            text=True,
            timeout=settings.plan_seconds,
            env=without_secrets(os.environ),
        )
    except subprocess.TimeoutExpired:
        raise JobFailed(
            f"Planning took longer than {settings.plan_seconds:g} s (DECONVOY_PLAN_SECONDS): plan "
            "fewer layers or analyses, or use `deconvoy plan` where the model is."
        ) from None
    answer: Mapping[str, Any] | None = _last_line(ended.stdout)
    if answer is None:
        raise JobFailed(
            f"The planner ended with status {ended.returncode} and no answer: it may have needed "
            f"more than {settings.plan_bytes:,} bytes of memory (DECONVOY_PLAN_BYTES)."
        )
    if "refused" in answer:
        raise RequestError(answer["refused"])
    if "failed" in answer:
        raise JobFailed(answer["failed"])
    return dict(answer["plan"])


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
        answer: dict[str, Any] = {
            "plan": launcher.plan(JobSpec.parse(json.load(sys.stdin)), _silent)
        }
    except RequestError as error:
        answer = {"refused": str(error)}
    except DeconvoyError as error:
        answer = {"failed": str(error)}
    except MemoryError:
        answer = {"failed": f"Planning needs more than {most_bytes:,} bytes of memory."}
    print(json.dumps(answer))


def _silent(line: str) -> None:
    """Nobody listens."""


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
