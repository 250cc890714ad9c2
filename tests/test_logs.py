"""The log of a process of the service: every line in the form that was asked for."""

import json
import subprocess
import sys

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
