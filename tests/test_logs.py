"""The log of a process of the service: every line in the form that was asked for."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service import logs
from tests.compose import ROOT

SAYS = """
import logging, sys
from service import logs
logs.configure(sys.argv[1])
logs.configure_process(sys.argv[1])
logs.log.info("answered", status=200)
logging.getLogger("service.dispatcher").info("Job %s starts.", "a")
logging.getLogger("uvicorn.error").info("unheard")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("some.library").exception("broken")
"""


def said(form: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SAYS, form], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout == "", done.stderr
    return done.stderr.splitlines()


def test_json_is_one_object_a_line_whoever_speaks() -> None:
    answered, starts, broken = map(json.loads, said("json"))
    assert (answered["event"], answered["status"]) == ("answered", 200)
    assert (starts["event"], starts["logger"]) == ("Job a starts.", "service.dispatcher")
    assert broken["level"] == "error" and "ZeroDivisionError" in broken["exception"]
    assert all(line["timestamp"].endswith("Z") for line in (answered, starts, broken))


def test_text_says_the_same() -> None:
    text = "\n".join(said("text"))
    assert "Job a starts." in text and "ZeroDivisionError" in text and "unheard" not in text


MOUNTED = """
import logging, sys
from pathlib import Path
from service import logs, mounted
from service.app import create_app
from service.settings import Settings
logs.configure_process(sys.argv[1])
settings = Settings(home=Path(sys.argv[2]), ray="none", tokens=False)
mounted.with_dashboard(create_app(settings), "http://127.0.0.1:1")
from streamlit import config
from streamlit.logger import get_logger
for turn in ("now", "later"):
    for name in ("uvicorn.error", "uvicorn.access", "websockets", "streamlit"):
        logging.getLogger(name).info("unheard")
        logging.getLogger(name).warning("%s says %s", name, turn)
    get_logger(f"streamlit.loaded.{turn}").info("unheard")
    get_logger(f"streamlit.loaded.{turn}").warning("loaded %s", turn)
    config.get_config_options(force_reparse=True)
"""


def test_the_server_and_the_dashboard_speak_in_the_same_form(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MOUNTED, "json", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stderr.splitlines()]
    # What it makes of being configured anew is no matter.
    lines = [line for line in told if not line["event"].startswith("An update to the [server]")]
    assert [line["event"] for line in lines] == [
        event
        for turn in ("now", "later")
        for event in (
            f"uvicorn.error says {turn}",
            f"uvicorn.access says {turn}",
            f"websockets says {turn}",
            f"streamlit says {turn}",
            f"loaded {turn}",
        )
    ]
    assert {line["level"] for line in lines} == {"warning"}
    assert lines[0]["logger"] == "uvicorn.error" and lines[0]["timestamp"].endswith("Z")


def test_who_goes_away_before_there_is_an_answer_is_no_fault_of_ours() -> None:
    counted: list[tuple[Any, ...]] = []

    class Counting:
        def answered(self, *about: Any) -> None:
            counted.append(about[:3])

    def asked(answer: Any) -> None:
        app = SimpleNamespace(state=SimpleNamespace(metrics=Counting()))
        scope = {"type": "http", "method": "GET", "headers": [], "app": app}
        asyncio.run(logs.RequestLog(answer)(scope, None, None))  # type: ignore[arg-type]

    async def leave(*_: Any) -> None:
        """What the server does when nobody is left to answer: it ends, and has sent nothing."""

    async def fail(*_: Any) -> None:
        raise ZeroDivisionError

    asked(leave)
    with pytest.raises(ZeroDivisionError):
        asked(fail)
    assert [status for *_, status in counted] == [logs.LEFT, 500]
