"""SandboxFusion: verdicts of its answers, and answers that are none, from a real HTTP server."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from verl_s2d.errors import Unscored, UserError
from verl_s2d.sandbox.program import Program, RunLimits
from verl_s2d.verifiers.code import code_verifier, fusion_client


def finished(status="Success", run="Finished", code=0, stdout="2\n", **more):
    result = {"status": run, "return_code": code, "stdout": stdout, "stderr": "", "execution_time": 0.1}
    return (200, json.dumps({"status": status, "message": "", "compile_result": None, "run_result": result, **more}))


BROKEN = {"status": "Finished", "return_code": 1, "stdout": "", "stderr": "no", "execution_time": 0.1}
NOTHING = {
    "500": (500, "{}"),
    "503": (503, "busy"),
    "429": (429, "{}"),
    "half an answer": (200, '{"status": "Succ'),
    "cut short": (200, None),
    "no run": (200, '{"status": "Success", "run_result": null}'),
    "no status": (200, '{"run_result": {}}'),
    "not a mapping": (200, "[]"),
    "its own error": (200, '{"status": "SandboxError", "message": "no room"}'),
    "error of the run": finished(run="Error"),
    "silence": None,
}


@pytest.fixture
def service(monkeypatch):
    """Serve the answers of a list, the last one again and again; None is silence."""
    monkeypatch.setattr(fusion_client, "PAUSE_SECONDS", 0.0)
    answers, asked, over = [], [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if answer is None:
                over.wait(60)
                return
            status, text = answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(text or "") + (0 if text else 100)))
            self.end_headers()
            self.wfile.write((text or '{"status": "Success"').encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/run_code", answers, asked
    over.set()
    server.shutdown()
    server.server_close()
    thread.join(60)


def score(url, **options):
    truth = json.dumps({"inputs": ["1"], "outputs": ["2"]})
    return code_verifier.compute_score("taco", "```cpp\nint main;\n```", truth, url=url, language="cpp", **options)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (finished(), 1.0),
        (finished(stdout="3"), 0.0),
        (finished("Failed", code=1), 0.0),
        (finished("Failed", run="TimeLimitExceeded", code=None), 0.0),
        (finished("Failed", compile_result=BROKEN, run_result=None), 0.0),
    ],
)
def test_verdicts(service, answer, expected):
    url, answers, asked = service
    answers.append(answer)
    assert score(url, memory_mb=64, seconds=3) == expected
    assert len(asked) == 1
    assert (asked[0]["code"], asked[0]["stdin"], asked[0]["language"]) == ("int main;", "1", "cpp")
    assert (asked[0]["memory_limit_MB"], asked[0]["run_timeout"]) == (64, 3)


@pytest.mark.parametrize("kind", NOTHING)
def test_no_answer_is_asked_for_again_and_never_scores(service, kind, monkeypatch):
    url, answers, asked = service
    if kind == "silence":
        monkeypatch.setattr(fusion_client, "GRACE_SECONDS", 0.2)
    answers[:] = [NOTHING[kind]]
    with pytest.raises(Unscored):
        score(url, seconds=0.1)
    assert len(asked) == fusion_client.ATTEMPTS


@pytest.mark.parametrize("kind", [kind for kind in NOTHING if kind != "silence"])
def test_an_answer_after_none(service, kind):
    url, answers, asked = service
    answers[:] = [NOTHING[kind], finished()]
    assert score(url) == 1.0
    assert len(asked) == 2


def test_a_refusal_is_not_repeated(service):
    url, answers, asked = service
    answers.append((422, "{}"))
    with pytest.raises(Unscored, match="422"):
        score(url)
    assert len(asked) == 1


def test_nobody_listens(service, monkeypatch):
    url = "http://127.0.0.1:9/run_code"
    with pytest.raises(Unscored):
        fusion_client.run_remote(url, Program(""), RunLimits(seconds=0.1))
    with pytest.raises(UserError) as error:
        code_verifier.check(url=url, seconds=0.1)
    assert error.value.key == "verifier.url"


def test_calls_in_another_language_are_refused():
    truth = '{"fn_name": "f", "inputs": ["1"], "outputs": ["1"]}'
    with pytest.raises(UserError, match="function calls"):
        code_verifier.check_answer(truth, {}, language="cpp", url="http://x/run_code")
