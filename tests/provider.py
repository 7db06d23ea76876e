"""A stand-in for a paid provider: speaks OpenAI's chat completions over real HTTP on loopback, and fails as providers do.

What it answers, and with which fault, is decided by `script`, a callable of the request's text and how often that text was asked.
Forms of replies and errors: platform.openai.com/docs/api-reference/chat/object and /docs/guides/error-codes; OpenRouter's
`usage.cost` and its error inside a 200: openrouter.ai/docs/api-reference/overview and /errors.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[str, int], str]
"""From a request's last message and how often it was asked before, to what happens: a text, or a fault's name after `!`."""


class Provider:
    """What it was asked, and when. `base_url` is where it answers."""

    def __init__(self, script: Script, *, latency: float, extra: dict[str, Any], headers: dict[str, str]) -> None:
        self.script, self.latency, self.extra, self.said = script, latency, extra, headers
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[tuple[str, float]] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.base_url = ""


@contextmanager
def serve(
    script: Script,
    *,
    latency: float = 0.0,
    extra: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> Generator[Provider]:
    """A provider at work. `extra` is merged into the usage of its replies, `headers` go with them."""
    provider = Provider(script, latency=latency, extra=extra or {}, headers=headers or {})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            text = body["messages"][-1]["content"]
            with provider.lock:
                count = provider.asked[text]
                provider.asked[text] += 1
                provider.bodies.append(body)
                provider.times.append((text, time.monotonic()))
                provider.headers.append({name.lower(): value for name, value in self.headers.items()})
                provider.under_way += 1
                provider.most_under_way = max(provider.most_under_way, provider.under_way)
            what = provider.script(text, count)
            time.sleep(provider.latency)
            with provider.lock:  # before the reply, which lets the client ask for more
                provider.under_way -= 1
            if what.startswith("!"):
                self.fault(what[1:])
            else:
                with provider.lock:
                    provider.answered[text] += 1
                self.reply(200, completion(what, provider.extra), provider.said)

        def fault(self, name: str) -> None:
            kind, _, value = name.partition(":")
            if kind == "status":
                status, _, wait = value.partition(",")
                secret = self.headers.get("authorization", "")
                told = {"error": {"message": f"no, {secret}", "type": "error", "code": None}}
                self.reply(int(status), told, {"retry-after": wait} if wait else {})
            elif kind == "body":
                status, _, content = value.partition(",")
                self.send(int(status), content.encode())
            elif kind == "close":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            elif kind == "drip":
                self.send_response(200)
                self.send_header("content-length", "100000")
                self.end_headers()
                for _ in range(400):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.05)
                self.close_connection = True
            elif kind == "truncated":
                self.send(200, json.dumps(completion("50", {})).encode()[:-20])
            elif kind == "utf8":
                self.send(200, b'{"choices": [{"message": {"content": "\xff\xfe"}}]}')
            else:
                self.reply(200, SPECIAL[kind])

        def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            self.send(status, json.dumps(body).encode(), headers)

        def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

        def handle(self) -> None:
            try:
                super().handle()
            except (BrokenPipeError, ConnectionResetError):
                return  # the client gave up, as it should after its time is over

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

    server = Server(("127.0.0.1", 0), Handler)
    provider.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()


def completion(text: str, usage: dict[str, Any]) -> dict[str, Any]:
    """A chat completion object."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "stand-in",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12, **usage},
    }


def _changed(**changes: Any) -> dict[str, Any]:
    body = completion("50", {})
    choice = body["choices"][0]
    choice["message"] |= {key: value for key, value in changes.items() if key in ("content", "refusal")}
    choice["finish_reason"] = changes.get("finish_reason", "stop")
    return body


SPECIAL: dict[str, Any] = {
    "no_choices": {**completion("", {}), "choices": []},
    "no_text": _changed(content=None),
    "filter": _changed(content="", finish_reason="content_filter"),
    "refusal": _changed(content=None, refusal="I cannot rate this."),
    "error_200": {"error": {"code": 502, "message": "upstream is down"}},
    "rejected_200": {"error": {"code": 400, "message": "too long"}},
    "no_text_paid": {**_changed(content=None), "usage": {"prompt_tokens": 10, "completion_tokens": 2, "cost": 0.25}},
    "list": [1, 2],
}
