"""What a client does when a service, or what stands before it, misbehaves: a server that answers as
it is told."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import deconvoy
from deconvoy import errors, watching
from deconvoy.connection import Connection, events_in, lines_of
from deconvoy.watching import watch
from service import catalogue, remote

JOB: dict[str, Any] = {
    "id": "squeeze-1f0a9c3e",
    "name": "squeeze",
    "state": "running",
    "submitter": "anna",
    "error": None,
    "progress": {"stage": "scan", "done": 8, "total": 40, "rate": None, "seconds_left": None},
    "created": "2026-05-02T09:30:00Z",
    "started": "2026-05-02T09:30:01Z",
    "ended": None,
    "attempts": 1,
    "spec": {},
    "run": "/v1/runs/squeeze-1f0a9c3e",
    "of_a_later_version": True,
}
DONE = {**JOB, "state": "done"}
PATH = "/v1/jobs/squeeze-1f0a9c3e"

Answer = tuple[int, dict[str, str], bytes]
CUT = (0, {}, b"")
"""The connection is closed without an answer."""


def plain(content: Any, status: int = 200, **headers: str) -> Answer:
    return status, {"content-type": "application/json", **headers}, json.dumps(content).encode()


def problem(status: int, detail: str, **headers: str) -> Answer:
    return plain({"status": status, "detail": detail}, status, **headers)


def html(status: int) -> Answer:
    return status, {"content-type": "text/html"}, b"<h1>Welcome</h1>"


def events(*told: dict[str, Any]) -> Answer:
    lines = "".join(f"event: job\ndata: {json.dumps(each)}\n\n" for each in told)
    return 200, {"content-type": "text/event-stream"}, f": here\n\n{lines}".encode()


class Told:
    """A server whose answers, by path, are these in turn, the last one again and again."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        told = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                path = self.path.partition("?")[0]
                told.asked[f"{self.command} {path}"] += 1
                told.headers.append({key.lower(): value for key, value in self.headers.items()})
                left = told.answers[path]
                status, headers, content = left.pop(0) if len(left) > 1 else left[0]
                self.close_connection = True
                if not status:
                    return
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key.replace("_", "-"), value)
                self.send_header("connection", "close")
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nobody listens."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Told":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def told() -> Iterator[Told]:
    with Told() as server:
        yield server


@pytest.fixture
def connection(told: Told) -> Iterator[Connection]:
    made = Connection(told.url, "dv_token", timeout=5.0)
    yield made
    made.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.01)


# -- asking again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [CUT, html(502), problem(503, "Not now.")], ids=str)
def test_reading_and_cancelling_are_repeated(
    told: Told, connection: Connection, first: Answer
) -> None:
    told.answers[PATH] = [first, plain(JOB), first, plain(JOB)]
    assert connection.get(PATH) == connection.delete(PATH) == JOB
    assert told.asked == {f"GET {PATH}": 2, f"DELETE {PATH}": 2}
    assert {headers["authorization"] for headers in told.headers} == {"Bearer dv_token"}


def test_submitting_is_repeated_under_the_same_key(told: Told) -> None:
    told.answers["/v1/jobs"] = [CUT, problem(503, "Not now."), plain(JOB, 201)]
    with deconvoy.Client(told.url) as client:
        job = client.submit({"model": {"name": "deconvoy/zfnet"}, "data": {"uri": "shapes?size=4"}})
    assert job.id == JOB["id"] and job.progress is not None and job.progress.done == 8
    keys = [headers["idempotency-key"] for headers in told.headers]
    assert len(keys) == 3 and len(set(keys)) == 1 and keys[0]


@pytest.mark.parametrize("first", [CUT, problem(503, "Not now.")], ids=str)
def test_what_may_have_been_done_is_not_done_twice(
    told: Told, connection: Connection, first: Answer
) -> None:
    told.answers[f"{PATH}/resume"] = [first, plain(JOB)]
    with pytest.raises(errors.ServiceUnreachable):
        connection.post(f"{PATH}/resume")
    assert told.asked.total() == 1


def test_what_was_put_off_is_asked_again_when_the_service_says(
    told: Told, connection: Connection
) -> None:
    told.answers["/v1/plans"] = [problem(429, "Another plan.", retry_after="1"), plain({"a": 1})]
    begin = time.monotonic()
    assert connection.post("/v1/plans", {}) == {"a": 1}
    assert time.monotonic() - begin > 0.9


def test_a_service_that_stays_away_is_given_up_soon(told: Told, connection: Connection) -> None:
    told.answers[PATH] = [problem(503, "The database is away.")]
    with pytest.raises(errors.ServiceUnreachable, match=r"^The database is away\.$"):
        connection.get(PATH)
    assert told.asked.total() == 4


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "path", "kind"),
    [
        (400, "/v1/jobs", errors.RequestError),
        (401, "/v1/jobs", errors.NotAllowed),
        (403, "/v1/jobs", errors.NotAllowed),
        (404, PATH, errors.JobNotFound),
        (404, "/v1/runs/squeeze/table", errors.RunNotFound),
        (404, "/v1/other", errors.RequestError),
        (409, "/v1/jobs", errors.JobConflict),
        (409, f"{PATH}/resume", errors.JobConflict),
        (413, "/v1/jobs", errors.RequestError),
        (422, "/v1/jobs", errors.RequestError),
        (500, PATH, errors.ServiceError),
        (501, "/v1/jobs", errors.ServiceError),
    ],
)
def test_problems_are_our_errors_with_their_sentence(
    told: Told, connection: Connection, status: int, path: str, kind: type[Exception]
) -> None:
    told.answers[path] = [problem(status, "This is why.")]
    with pytest.raises(errors.DeconvoyError, match=r"^This is why\.$") as caught:
        connection.post(path, {})
    assert caught.type is kind
    assert told.asked.total() == 1


def test_a_key_that_was_used_is_told_by_its_field(told: Told, connection: Connection) -> None:
    told.answers["/v1/jobs"] = [
        plain({"detail": "It stands for another.", "field": "Idempotency-Key"}, 409)
    ]
    with pytest.raises(errors.KeyReused, match="another"):
        connection.post("/v1/jobs", {}, key="one")


@pytest.mark.parametrize("answer", [html(200), html(404), plain(["not", "a", "problem"], 422)])
def test_a_stranger_is_told_from_a_service(
    told: Told, connection: Connection, answer: Answer
) -> None:
    told.answers[PATH] = [answer]
    with pytest.raises(errors.ServiceError, match="not do so as a service of Deconvoy does"):
        connection.get(PATH)


@pytest.mark.parametrize(
    "url",
    ["squeeze", "ftp://here", "http://", "http://a:b@here", "http://here?x=1", "http://here:x"],
)
def test_a_url_that_is_none_of_a_service_is_refused(url: str) -> None:
    with pytest.raises(errors.RequestError, match=r"http\(s\)://host") as caught:
        deconvoy.Client(url)
    assert "b@" not in str(caught.value)


def test_client_and_service_mean_the_same() -> None:
    assert watching.ENDED == catalogue.ENDED
    assert remote.JOB_ID == catalogue.JOB_ID


# -- events ----------------------------------------------------------------------------------------


def test_events_are_read_as_the_standard_says() -> None:
    text = ": ping\n\nevent: job\ndata: {\ndata:}\nid: 7\n\ndata: last\n\nevent: empty\n\ndata: cut"
    assert list(events_in(text.split("\n"))) == [("", ""), ("job", "{\n}"), ("message", "last")]


def test_a_job_is_watched_through_streams_that_break(
    told: Told, connection: Connection, hasty: None
) -> None:
    further = {**JOB, "progress": {**JOB["progress"], "done": 16}}
    told.answers[PATH] = [plain(JOB)]
    told.answers[f"{PATH}/events"] = [events(JOB), CUT, events(further), events(further, DONE)]
    seen = list(watch(connection, PATH))
    assert seen[-1] == DONE and further in seen
    assert told.asked[f"GET {PATH}/events"] == 4


@pytest.mark.parametrize("stream", [(200, {"content-type": "text/event-stream"}, b""), html(200)])
def test_a_job_is_looked_at_where_there_is_no_stream(
    told: Told, connection: Connection, hasty: None, stream: Answer
) -> None:
    told.answers[PATH] = [*[plain(JOB)] * 6, plain(DONE)]
    told.answers[f"{PATH}/events"] = [stream]
    assert [job["state"] for job in watch(connection, PATH)] == ["running"] * 6 + ["done"]
    assert told.asked[f"GET {PATH}/events"] == watching.DEAF


def test_watching_bears_that_the_service_is_away(
    told: Told, connection: Connection, hasty: None
) -> None:
    told.answers[PATH] = [plain(JOB), *[problem(503, "Not now.")] * 6, plain(DONE)]
    told.answers[f"{PATH}/events"] = [CUT]
    assert list(watch(connection, PATH))[-1] == DONE


def test_watching_does_not_bear_it_for_ever(
    told: Told, connection: Connection, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "AWAY_SECONDS", 0.1)
    told.answers[PATH] = [plain(JOB), problem(503, "Not now.")]
    told.answers[f"{PATH}/events"] = [CUT]
    with pytest.raises(errors.ServiceUnreachable, match="Not now"):
        list(watch(connection, PATH))


def test_watching_ends_in_time(told: Told, connection: Connection) -> None:
    told.answers[PATH] = [plain(JOB)]
    begin = time.monotonic()
    with pytest.raises(errors.WaitTimedOut, match="is running after 0.5 s"):
        list(watch(connection, PATH, timeout=0.5))
    assert 0.5 <= time.monotonic() - begin < 5.0


def test_ctrl_c_ends_the_waiting_and_leaves_the_job_alone(told: Told) -> None:
    told.answers[PATH] = [plain(JOB)]
    told.answers[f"{PATH}/events"] = [html(200)]
    with subprocess.Popen(
        [sys.executable, "-m", "service.cli", "wait", JOB["id"], "--url", told.url],
        stderr=subprocess.PIPE, text=True,
        # What runs the tests in the background may have told them to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as waiting:  # fmt: skip
        assert waiting.stderr is not None
        assert "images scanned: 8 of 40" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        said = waiting.stderr.read()
    assert waiting.returncode == 130
    assert said == f"{JOB['id']} goes on: `deconvoy cancel {JOB['id']}` stops it.\n"
    assert set(told.asked) <= {f"GET {PATH}", f"GET {PATH}/events"}


def test_lines_end_at_line_feeds_alone() -> None:
    told = ['data: {"name": "a\u2028b', '\u0085c"}\r\n', "\n", "data: 2\n\n", "event: last"]
    lines = list(lines_of(told))
    assert lines == ['data: {"name": "a\u2028b\u0085c"}', "", "data: 2", "", "event: last"]
    assert [content for _, content in events_in(lines)] == ['{"name": "a\u2028b\u0085c"}', "2"]
