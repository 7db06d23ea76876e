"""Asking models over HTTP: what is kept, what is tried again, what is missing and why, and that no key gets out."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest

from provider import Provider, serve
from unmask.errors import ArtifactError, ConfigError, ModelError, StudyError, UnmaskError
from unmask.llm.addresses import ModelAddress, find_model
from unmask.llm.client import Client, Patience, Prices
from unmask.llm.rate_limits import seconds_to_wait, seconds_until_reset
from unmask.llm.replies import Reply, ReplyStore, Request, TokenChoice
from unmask.llm.wire import read_reply

QUICK = Patience(concurrency=8, tries=6, seconds_a_try=10, seconds_a_request=60, first_wait=0.01, longest_wait=0.05)
IMPATIENT = replace(QUICK, seconds_a_try=2)
"""For replies that drip for twenty seconds."""

FAULTS = (
    "status:429",
    "status:500",
    "status:503",
    "close",
    "truncated",
    "utf8",
    "no_choices",
    "no_text",
    "error_200",
    "list",
)


def requests(count: int) -> list[Request]:
    return [Request((("user", f"question {number}"),), max_tokens=5) for number in range(count)]


def client(provider: Provider, store: ReplyStore, **options: object) -> Client:
    return Client(find_model(f"{provider.base_url} stand-in"), store, **({"patience": QUICK} | options))  # ty: ignore


@pytest.fixture
def store(tmp_path: Path) -> Generator[ReplyStore]:
    with ReplyStore(tmp_path / "replies.sqlite") as opened:
        yield opened


def test_replies_come_in_the_order_of_their_requests_and_equal_ones_are_asked_once(store: ReplyStore) -> None:
    with serve(lambda text, _: f"reply to {text}") as provider:
        asked = [*requests(20), *requests(20)]
        heard: dict[int, Reply] = {}
        replies = client(provider, store).ask(asked, on_reply=heard.__setitem__)
    assert [reply.text for reply in replies] == [f"reply to question {number % 20}" for number in range(40)]
    assert [heard[place] for place in range(40)] == replies
    assert set(provider.asked.values()) == {1}


def test_nothing_is_asked_twice_once_it_was_answered(store: ReplyStore) -> None:
    with serve(lambda text, _: "50") as provider:
        first = client(provider, store).ask(requests(5))
        again = client(provider, store)
        assert again.ask(requests(8))[:5] == first
    assert (again.meter.from_store, again.meter.asked) == (5, 3)
    assert set(provider.asked.values()) == {1}


def test_a_repeat_is_asked_anew(store: ReplyStore) -> None:
    with serve(lambda text, count: str(count)) as provider:
        asked = [Request((("user", "same"),), max_tokens=5, repeat=repeat) for repeat in range(3)]
        replies = client(provider, store, patience=Patience(concurrency=1)).ask(asked)
    assert [reply.text for reply in replies] == ["0", "1", "2"]


@pytest.mark.parametrize("fault", [*FAULTS, "drip"])
def test_a_passing_fault_is_tried_again(store: ReplyStore, fault: str) -> None:
    with serve(lambda text, count: f"!{fault}" if count < 2 else "50") as provider:
        asking = client(provider, store, patience=IMPATIENT if fault == "drip" else QUICK)
        [reply] = asking.ask(requests(1))
    assert reply.text == "50"
    assert asking.meter.tries == 3


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        ("status:429", "overloaded"),
        ("status:500", "overloaded"),
        ("error_200", "overloaded"),
        ("close", "unreachable"),
        ("truncated", "unreadable"),
        ("utf8", "unreadable"),
        ("list", "unreadable"),
        ("no_choices", "empty"),
        ("no_text", "empty"),
        ("drip", "timeout"),
    ],
)
def test_a_lasting_fault_is_a_failure_with_its_reason_and_is_asked_again_next_time(
    store: ReplyStore, fault: str, failure: str
) -> None:
    with serve(lambda text, count: f"!{fault}" if count < 2 else "50") as provider:
        patience = replace(IMPATIENT if fault == "drip" else QUICK, tries=2)
        [reply] = client(provider, store, patience=patience).ask(requests(1))
        assert (reply.text, reply.failure) == (None, failure)
        assert len(store) == 0
        [reply] = client(provider, store).ask(requests(1))
    assert reply.text == "50"


@pytest.mark.parametrize(("fault", "failure"), [("filter", "content_filter"), ("refusal", "refused")])
def test_a_refusal_is_an_answer(store: ReplyStore, fault: str, failure: str) -> None:
    with serve(lambda text, _: f"!{fault}") as provider:
        [first] = client(provider, store).ask(requests(1))
        [again] = client(provider, store).ask(requests(1))
    assert (first.text, first.failure) == (None, failure)
    assert again == first
    assert provider.asked.total() == 1


@pytest.mark.parametrize("fault", ["status:400", "status:422", "rejected_200"])
def test_a_request_that_is_rejected_fails_alone_and_at_once(store: ReplyStore, fault: str) -> None:
    with serve(lambda text, _: f"!{fault}" if text.endswith(" 1") else "50") as provider:
        replies = client(provider, store).ask(requests(3))
    assert [reply.failure for reply in replies] == [None, "rejected", None]
    assert provider.asked["question 1"] == 1


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_what_concerns_every_request_stops_all_and_keeps_what_came(store: ReplyStore, status: int) -> None:
    with serve(lambda text, _: "50" if text.endswith(" 0") else f"!status:{status}") as provider:
        with pytest.raises(ModelError, match=str(status)):
            client(provider, store, patience=Patience(concurrency=1)).ask(requests(40))
        assert provider.asked.total() == 2
    assert len(store) == 1


def test_a_time_that_the_provider_names_holds_every_request(store: ReplyStore) -> None:
    """Question 1 fails after question 0 was told to wait: its own wait is hundredths of a second, and it waits all the same."""
    told = threading.Event()

    def script(text: str, count: int) -> str:
        if count:
            return "50"
        if text.endswith(" 0"):
            told.set()
            return "!status:429,3"
        told.wait(20)
        time.sleep(1)
        return "!status:503"

    with serve(script) as provider:
        replies = client(provider, store).ask(requests(2))
    assert [reply.text for reply in replies] == ["50"] * 2
    first = next(at for text, at in provider.times if text.endswith(" 0"))
    second = [at for text, at in provider.times if text.endswith(" 1")][1]
    assert second - first >= 3


def test_a_time_too_far_away_is_not_waited_for_by_any_request(store: ReplyStore) -> None:
    with serve(lambda text, _: "!status:429,100000") as provider:
        asking = client(provider, store, patience=replace(QUICK, concurrency=1))
        replies = asking.ask(requests(3))
    assert [reply.failure for reply in replies] == ["overloaded"] * 3
    assert provider.asked.total() == 1


def test_times_to_wait_are_read_in_every_documented_form() -> None:
    assert seconds_to_wait({"retry-after": "3"}) == 3
    assert seconds_to_wait({"retry-after-ms": "250", "retry-after": "3"}) == 0.25
    assert seconds_to_wait({"retry-after": formatdate(time.time() + 30, usegmt=True)}) == pytest.approx(30, abs=2)
    assert seconds_to_wait({"retry-after": "-5"}) == 0
    assert seconds_to_wait({}) is None
    assert seconds_to_wait({"retry-after": "soon"}) is None
    assert seconds_to_wait({"retry-after": "1e999"}) is None


def test_as_many_requests_are_under_way_as_allowed(store: ReplyStore) -> None:
    together = threading.Barrier(10)

    def script(text: str, count: int) -> str:
        together.wait(20)  # broken, and a test that fails, unless ten are here at once
        return "50"

    with serve(script) as provider:
        asking = client(provider, store, patience=replace(QUICK, concurrency=10, seconds_a_try=60))
        asking.ask(requests(20))
    assert provider.most_under_way == 10
    assert asking.meter.tries == 20


def test_costs_are_counted_as_the_provider_says_or_by_prices(store: ReplyStore) -> None:
    with serve(lambda text, _: "50", extra={"cost": 0.25}) as provider:
        asking = client(provider, store)
        asking.ask(requests(4))
        assert asking.meter.usd == 1.0
        assert (asking.meter.prompt_tokens, asking.meter.completion_tokens) == (40, 8)
        again = client(provider, store)
        again.ask(requests(4))
        assert again.meter.usd == 0
    with serve(lambda text, _: "50") as provider:
        priced = client(provider, store, prices=Prices(100_000, 500_000))
        priced.ask(requests(2))
    assert priced.meter.usd == pytest.approx(2 * (10 * 0.1 + 2 * 0.5))


def test_a_reply_that_has_to_be_asked_for_again_is_paid_for_too(store: ReplyStore) -> None:
    with serve(lambda text, count: "!no_text_paid" if count < 2 else "50", extra={"cost": 0.5}) as provider:
        asking = client(provider, store)
        asking.ask(requests(1))
    assert asking.meter.usd == 2 * 0.25 + 0.5
    assert asking.meter.completion_tokens == 6


def test_asking_stops_at_the_limit_and_goes_on_with_a_higher_one(store: ReplyStore) -> None:
    with serve(lambda text, _: "50", extra={"cost": 0.25}) as provider:
        one = Patience(concurrency=1)
        with pytest.raises(StudyError, match=r"max_usd is 0\.5"):
            client(provider, store, patience=one, max_usd=0.5).ask(requests(6))
        assert provider.asked.total() == 2
        assert len(client(provider, store, patience=one, max_usd=5.0).ask(requests(6))) == 6
    assert set(provider.asked.values()) == {1}


def test_a_limit_that_could_not_be_kept_is_refused(store: ReplyStore) -> None:
    far = ModelAddress("openai/some", "https://api.openai.com/v1", "some", "k")
    with pytest.raises(ConfigError, match="not known"):
        Client(far, store, max_usd=1.0)
    Client(far, store, max_usd=1.0, prices=Prices(1, 2))


def test_names_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-secret")
    found = find_model("openrouter/deepseek/deepseek-chat-v3.1")
    assert (found.model, found.key) == ("deepseek/deepseek-chat-v3.1", "sk-secret")
    assert found.base_url == "https://openrouter.ai/api/v1"
    assert "sk-secret" not in repr(found)
    local = find_model("http://localhost:8000/v1 my model")
    assert (local.base_url, local.model, local.key, local.is_local) == (
        "http://localhost:8000/v1",
        "my model",
        None,
        True,
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gemini/gemini-2.5-pro", "GEMINI_API_KEY is not set"),
        ("nobody/model", "no known provider"),
        ("openai/", "no known provider"),
        ("http://localhost:8000/v1", "no host or no model"),
        ("http://me:secret@localhost/v1 model", "password"),
        ("http://localhost:80a0/v1 model", "is no URL"),
    ],
)
def test_a_name_that_cannot_be_used_says_what_to_do(monkeypatch: pytest.MonkeyPatch, name: str, says: str) -> None:
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=says) as raised:
        find_model(name)
    assert "secret" not in str(raised.value)


def test_a_key_reaches_the_provider_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-or-very-secret-0123456789"
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "meant for openai alone")
    with serve(
        lambda text, _: "!status:401" if text.endswith(" 2") else "!status:400" if text.endswith(" 1") else "50"
    ) as provider:
        address = ModelAddress("openrouter/x", provider.base_url, "x", secret)
        with ReplyStore(tmp_path / "replies.sqlite") as store:
            replies = Client(address, store, patience=QUICK).ask(requests(2))
            with pytest.raises(UnmaskError) as raised:
                Client(address, store, patience=QUICK).ask(requests(3))
    assert {headers["authorization"] for headers in provider.headers} == {f"Bearer {secret}"}
    assert not any("openai-organization" in headers or "openai-project" in headers for headers in provider.headers)
    said = [*map(repr, replies), str(raised.value), *capfd.readouterr()]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(secret in text for text in said)
    assert not any(secret.encode() in content for content in written)


GEMINI = {
    "choices": [{"finish_reason": "stop", "index": 0, "message": {"content": '{"score": 12}', "role": "assistant"}}],
    "created": 1764200000,
    "id": "x",
    "model": "gemini-2.5-pro",
    "object": "chat.completion",
    "usage": {"completion_tokens": 7, "prompt_tokens": 410, "total_tokens": 980},
}
"""A reply of Gemini's compatible endpoint; what it thought is in the total alone (ai.google.dev/gemini-api/docs/openai)."""

OPENROUTER = {
    "id": "gen-1",
    "provider": "DeepSeek",
    "model": "deepseek/deepseek-chat-v3.1",
    "object": "chat.completion",
    "created": 1764200000,
    "choices": [
        {
            "logprobs": None,
            "finish_reason": "stop",
            "native_finish_reason": "stop",
            "index": 0,
            "message": {"role": "assistant", "content": '{"score": 12}', "refusal": None, "reasoning": None},
        }
    ],
    "usage": {
        "prompt_tokens": 410,
        "completion_tokens": 7,
        "total_tokens": 417,
        "cost": 0.000123,
        "completion_tokens_details": {"reasoning_tokens": 0},
    },
}
"""A reply of OpenRouter's (openrouter.ai/docs/api-reference/overview, and /use-cases/usage-accounting for the cost)."""

GOOGLE_ERROR = [
    {
        "error": {
            "code": 400,
            "message": "API key not valid. Please pass a valid API key.",
            "status": "INVALID_ARGUMENT",
            "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}],
        }
    }
]
"""What Gemini says of an unknown key, with status 400 (cloud.google.com/apis/design/errors)."""


@pytest.mark.parametrize(
    ("body", "completion", "usd"),
    [(GEMINI, 570, None), (OPENROUTER, 7, 0.000123)],  # thinking is paid for as completion
    ids=["gemini", "openrouter"],
)
def test_documented_replies_are_read(body: dict[str, object], completion: int, usd: float | None) -> None:
    reply = read_reply(json.dumps(body).encode())
    assert reply == Reply('{"score": 12}', prompt_tokens=410, completion_tokens=completion, usd=usd)


def test_a_choice_that_ended_in_an_error_is_no_answer() -> None:
    broken = {"finish_reason": "error", "message": {"content": '{"sco'}, "error": {"code": 502, "message": "upstream"}}
    reply = read_reply(json.dumps({"choices": [broken], "usage": {"cost": 0.5}}).encode())
    assert (reply.text, reply.failure, reply.usd, reply.final) == (None, "overloaded", 0.5, False)


def test_a_key_that_google_does_not_know_stops_all(store: ReplyStore) -> None:
    with serve(lambda text, _: "!body:400," + json.dumps(GOOGLE_ERROR)) as provider:
        with pytest.raises(ModelError, match="refuses the key"):
            client(provider, store, patience=Patience(concurrency=1)).ask(requests(40))
        assert provider.asked.total() == 1


MODERATED = {
    "error": {
        "code": 403,
        "message": "Your chosen model requires moderation and your input was flagged",
        "metadata": {"reasons": ["violence"], "flagged_input": "...", "provider_name": "x", "model_slug": "y"},
    }
}
"""OpenRouter's refusal of one input (openrouter.ai/docs/api-reference/errors)."""


def test_an_answer_that_a_provider_flags_is_missing_alone(store: ReplyStore) -> None:
    body = json.dumps(MODERATED)
    with serve(lambda text, _: f"!body:403,{body}" if text.endswith(" 1") else "50") as provider:
        replies = client(provider, store).ask(requests(3))
        assert [reply.failure for reply in replies] == [None, "content_filter", None]
        assert client(provider, store).ask(requests(3)) == replies
        assert provider.asked.total() == 3
    assert read_reply(body.encode()).failure == "content_filter"


def test_a_reply_that_was_all_thinking_is_kept_as_such_and_paid_for_once() -> None:
    body = {
        "choices": [{"finish_reason": "length", "message": {"content": None}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 4106},
    }
    reply = read_reply(json.dumps(body).encode())
    assert (reply.failure, reply.final, reply.completion_tokens) == ("truncated", True, 4096)


@pytest.mark.parametrize("reason", ["content_filter", "content_filter: PROHIBITED_CONTENT", "SAFETY"])
def test_every_way_to_say_filtered_is_understood(reason: str) -> None:
    body = {"choices": [{"finish_reason": reason, "message": {"content": ""}}]}
    assert read_reply(json.dumps(body).encode()).failure == "content_filter"


def test_a_provider_that_is_silent_for_long_is_given_up(store: ReplyStore) -> None:
    with serve(lambda text, _: "!status:503") as provider:
        impatient = replace(QUICK, seconds_of_silence=0.5, tries=10**6)
        with pytest.raises(ModelError, match=r"no usable reply for 0 s \(the last: overloaded\)"):
            client(provider, store, patience=impatient).ask(requests(20))


def test_a_hold_that_grows_too_long_while_waiting_is_not_waited_for(store: ReplyStore) -> None:
    def script(text: str, count: int) -> str:
        if text.endswith(" 0"):
            return "!status:429,1"
        time.sleep(0.5)
        return "!status:429,100000"

    with serve(script) as provider:
        began, used = time.monotonic(), time.process_time()
        replies = client(provider, store, patience=replace(QUICK, concurrency=2, seconds_a_request=5)).ask(requests(4))
    assert [reply.failure for reply in replies] == ["overloaded"] * 4
    assert time.process_time() - used < 0.8 * (time.monotonic() - began) + 1  # no spinning


def test_a_named_wait_costs_no_try(store: ReplyStore) -> None:
    with serve(lambda text, count: "!status:429,0.05" if count < 5 else "50") as provider:
        [reply] = client(provider, store, patience=replace(QUICK, tries=2)).ask(requests(1))
    assert reply.text == "50"


def test_logprobs_are_read_with_their_alternatives() -> None:
    logprobs = {
        "content": [
            {
                "token": "70",
                "logprob": math.log(0.6),
                "bytes": None,
                "top_logprobs": [{"token": "70", "logprob": math.log(0.6)}, {"token": "80", "logprob": math.log(0.3)}],
            }
        ]
    }
    body = {"choices": [{"message": {"content": "70"}, "logprobs": logprobs}]}
    reply = read_reply(json.dumps(body).encode())
    assert reply.tokens == (TokenChoice("70", {"70": math.log(0.6), "80": math.log(0.3)}),)
    body["choices"][0]["logprobs"] = {"content": [{"no": "token"}]}
    assert read_reply(json.dumps(body).encode()) == Reply("70")


def test_replies_come_back_from_the_store_as_they_were(store: ReplyStore) -> None:
    reply = Reply("70 \u2713", None, "", (TokenChoice("7", {"7": -0.5, "8": -1.0}),), 3, 4, 0.01)
    store.put("key", reply)
    assert store.get("key") == reply
    assert store.get("other") is None


def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(ArtifactError, match=r"replies\.sqlite is no store"):
        ReplyStore(path)


def test_what_is_left_and_when_it_is_filled_up_again() -> None:
    assert seconds_until_reset({}) == 0
    assert seconds_until_reset({"x-ratelimit-remaining-requests": "7", "x-ratelimit-reset-requests": "6m0s"}) == 0
    assert seconds_until_reset({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0.5s"}) == 360.5
    assert seconds_until_reset({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}) == 0.02
    assert seconds_until_reset({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1h1s"}) == 3601
    until = f"{(time.time() + 30) * 1000:.0f}"
    assert seconds_until_reset({"x-ratelimit-remaining": "0", "x-ratelimit-reset": until}) == pytest.approx(30, abs=2)
    since = f"{time.time() + 30:.0f}"
    assert seconds_until_reset({"x-ratelimit-remaining": "0", "x-ratelimit-reset": since}) == pytest.approx(30, abs=2)
    assert seconds_until_reset({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "later"}) == 0


def test_a_reply_that_says_that_nothing_is_left_holds_the_next_requests(store: ReplyStore) -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s500ms"}
    with serve(lambda text, count: "50", headers=headers) as provider:
        client(provider, store, patience=Patience(concurrency=1)).ask(requests(2))
    (_, first), (_, second) = provider.times
    assert second - first >= 1.5


def test_a_server_that_is_not_there_is_named_at_once(store: ReplyStore) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ModelError, match="nothing answers at"):
        Client(ModelAddress("x", url, "x"), store, patience=QUICK).ask(requests(50))


def test_asking_works_where_an_event_loop_runs_already(store: ReplyStore) -> None:
    async def notebook(provider: Provider) -> list[Reply]:
        return client(provider, store).ask(requests(3))

    with serve(lambda text, _: "50") as provider:
        assert [reply.text for reply in asyncio.run(notebook(provider))] == ["50"] * 3


def test_openai_itself_is_asked_in_its_new_form() -> None:
    [request] = requests(1)
    assert request.body("deepseek-chat")["max_tokens"] == request.max_tokens
    new = request.body("gpt-4.1", is_openai=True)
    assert "max_tokens" not in new and new["max_completion_tokens"] == request.max_tokens and "temperature" in new
    assert "temperature" not in request.body("o4-mini", is_openai=True)
    assert "temperature" not in request.body("gpt-5-mini", is_openai=True)


def test_the_key_of_a_server_travels_encrypted_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_SERVER_KEY", "sk-server")
    assert find_model("http://localhost:8000/v1 m").key == "sk-server"
    assert find_model("https://gpu.example/v1 m").key == "sk-server"
    with pytest.raises(ConfigError, match="unencrypted"):
        find_model("http://gpu.example/v1 m")


def test_a_reply_of_broken_characters_can_be_kept(store: ReplyStore) -> None:
    store.put("key", Reply("a \ud800 b"))
    assert store.get("key") == Reply("a \ud800 b")


ASKING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_llm import requests
from unmask.llm.addresses import find_model
from unmask.llm.client import Client, Patience
from unmask.llm.replies import ReplyStore
patience = Patience(concurrency=16, tries=12, seconds_a_try=5, first_wait=0.01, longest_wait=0.05)
with ReplyStore(Path(sys.argv[2])) as store:
    replies = Client(find_model(sys.argv[1] + " stand-in"), store, patience=patience).ask(requests(400))
print(sum(reply.text == "50" for reply in replies), len(replies))
"""


def test_killed_three_times_amid_faults_no_reply_is_lost_and_none_asked_twice(tmp_path: Path) -> None:
    """A reply that the client had put into its store is never asked for again; the kill may cost only what was under way."""

    def script(text: str, count: int) -> str:
        number = int(text.rsplit(maxsplit=1)[-1])
        faulty = number % 10 < 3 and count < 2
        return f"!{FAULTS[number % len(FAULTS)]}" if faulty else "50"

    path = tmp_path / "replies.sqlite"
    with serve(script, latency=0.02) as provider:
        command = [sys.executable, "-c", ASKING, provider.base_url, str(path), str(Path(__file__).parent)]
        kept: list[set[str]] = []
        for answers in (60, 150, 260):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            until = time.monotonic() + 60
            while provider.answered.total() < answers and time.monotonic() < until and process.poll() is None:
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            with ReplyStore(path) as store:
                kept.append(
                    {
                        request.messages[0][1]
                        for request in requests(400)
                        if store.get(request.key(provider.base_url, "stand-in")) is not None
                    }
                )
            before = provider.answered.copy()
            assert sum(before.values()) - len(kept[-1]) <= 16 * len(kept), "more was lost than was under way"
        assert kept[0] < kept[1] < kept[2]
        at_last_kill = provider.answered.copy()
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["400", "400"]
    assert all(provider.answered[text] == at_last_kill[text] for text in kept[2])
