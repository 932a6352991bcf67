"""A small OpenAI-compatible server whose answers a test chooses: for errors, and for judges that fall for an attack."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "judge"


class FakeJudge:
    """The state of the server: what it was asked, and what it answers.

    Attributes:
        answer: makes the text of an answer from the request's messages; status and raw override it where set.
        headers: of the newest request.
    """

    def __init__(self) -> None:
        self.answer: Callable[[list[dict[str, str]]], str] = obedient
        self.status, self.raw, self.delay, self.finish = 200, None, 0.0, "stop"
        self.bodies: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.at_once = self.most_at_once = 0
        self.url = ""


@contextmanager
def fake_judge() -> Iterator[FakeJudge]:
    """Serve on a free port of this machine, until the block ends."""
    judge, lock = FakeJudge(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send({"data": [{"id": MODEL}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                judge.bodies.append(body)
                judge.headers = dict(self.headers)
                judge.at_once += 1
                judge.most_at_once = max(judge.most_at_once, judge.at_once)
            time.sleep(judge.delay)
            with lock:
                judge.at_once -= 1
            message = {"role": "assistant", "content": judge.answer(body["messages"])}
            self._send(
                {
                    "choices": [{"message": message, "finish_reason": judge.finish}],
                    "usage": {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100},
                }
            )

        def _send(self, reply: dict[str, Any]) -> None:
            data = json.dumps(reply).encode() if judge.raw is None else judge.raw
            self.send_response(judge.status)
            self.send_header("Content-Length", str(len(data) + (1000 if judge.raw is not None else 0)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def parts(messages: Sequence[dict[str, str]]) -> tuple[str, list[str], str]:
    """Read a question as its first message defines it: the code, the criteria, the response."""
    system, user = (message["content"] for message in messages)
    (code,) = re.findall(r'"BEGIN (\w+)"', system)
    before, _, rest = user.partition(f"BEGIN {code}\n")
    response, _, _ = rest.rpartition(f"\nEND {code}")
    criteria = re.findall(r"^\d+\. (.*)$", before.rpartition("Criteria:\n")[2], re.MULTILINE)
    return code, criteria, response


def obedient(messages: Sequence[dict[str, str]]) -> str:
    """Answer yes where the response contains the last word of the criterion."""
    code, criteria, response = parts(messages)
    met = [criterion.split()[-1].strip(".") in response for criterion in criteria]
    return "\n".join(f"{code} {number}: {'yes' if yes else 'no'}" for number, yes in enumerate(met, 1))
