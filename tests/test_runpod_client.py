"""RunPod's API, spoken with a fake of it over real HTTP: patience, lost replies, refusals, and the key in no other place."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from fake_runpod import KEY, FakeRunPod, serve_runpod
from unmask.errors import ConfigError, UnmaskError
from unmask.execution.runpod.asking import KEY_VARIABLE, URL_VARIABLE, OutOfStock, Patience
from unmask.execution.runpod.client import RunPod
from unmask.execution.runpod.refusals import seconds_to_wait
from unmask.execution.runpod.wire import is_out_of_stock, is_pod_id, read_gpu_types, read_pod, read_time

FAST = Patience(tries=4, first_wait=0.01, longest_wait=0.3, listing_lag=0.01)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Generator[FakeRunPod]:
    with serve_runpod() as fake:
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        monkeypatch.setenv(URL_VARIABLE, fake.url)
        yield fake


@pytest.fixture
def client(fake: FakeRunPod) -> Generator[RunPod]:
    with RunPod.from_environment(patience=FAST) as client:
        yield client


def body(name: str = "unmask-x-00000001", **fields: Any) -> dict[str, Any]:
    return {"name": name, "gpuTypeIds": ["NVIDIA A40"], "gpuCount": 1, "imageName": "an/image", **fields}


def test_a_pod_is_read_with_its_price_gpu_address_and_time_up(client: RunPod, fake: FakeRunPod) -> None:
    fake.ssh_port = 10341
    fake.add("abc123", name="mine").started = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    (pod,) = client.pods()
    assert (pod.id, pod.name, pod.status, pod.gpu, pod.gpu_count) == ("abc123", "mine", "RUNNING", "NVIDIA A40", 1)
    assert pod.usd_per_hour == 0.40
    assert str(pod.address) == "ssh://root@127.0.0.1:10341"
    assert pod.uptime_hours == pytest.approx(2, abs=0.01)
    assert client.pod("abc123") == pod
    assert client.pod("another") is None


def test_the_documented_example_of_a_pod_is_understood() -> None:
    """docs.runpod.io/api-reference/pods/GET/pods: a price as text, ports as text to number, and what is not known yet."""
    pod = read_pod(
        {
            "adjustedCostPerHr": 0.69,
            "costPerHr": "0.74",
            "desiredStatus": "RUNNING",
            "gpu": {"id": "NVIDIA A40", "count": 1},
            "id": "xedezhzb9la3ye",
            "lastStartedAt": "2024-07-12T19:14:40.144Z",
            "portMappings": {"22": 10341},
            "publicIp": "100.65.0.119",
        }
    )
    assert (pod.usd_per_hour, str(pod.address)) == (0.69, "ssh://root@100.65.0.119:10341")
    assert pod.started == datetime(2024, 7, 12, 19, 14, 40, 144000, UTC)
    waiting = read_pod({"id": "a", "desiredStatus": "RUNNING", "portMappings": None, "publicIp": "", "costPerHr": None})
    assert (waiting.address, waiting.usd_per_hour, waiting.uptime_hours) == (None, None, None)
    assert read_time("2024-07-12 19:14:40.144 +0000 UTC") == pod.started
    assert read_time("yesterday") is None
    for nonsense in ({}, [], None, {"id": "../x"}, {"id": "a b"}):
        with pytest.raises(UnmaskError, match="no pod"):
            read_pod(nonsense)


@pytest.mark.parametrize("text", ["a;reboot", "$(x)", "", "a/b", "../v2", "x" * 65, "-rf"])
def test_an_id_that_could_do_harm_in_a_shell_or_url_is_none(text: str, client: RunPod, fake: FakeRunPod) -> None:
    assert not is_pod_id(text)
    with pytest.raises(ConfigError, match="no pod's id"):
        client.pod(text)
    assert not fake.calls


def test_what_passes_is_waited_for(client: RunPod, fake: FakeRunPod) -> None:
    fake.add("abc123", name="mine")
    fake.faults = [("GET /v1/pods", "429:0.2"), ("GET /v1/pods", "500"), ("GET /v1/pods", "cut")]
    began = time.monotonic()
    assert [pod.id for pod in client.pods()] == ["abc123"]
    assert time.monotonic() - began >= 0.2, "Retry-After is kept"
    assert fake.count("GET /v1/pods") == 4
    fake.faults = [("GET /v1/pods", "500")] * 4
    with pytest.raises(UnmaskError, match="fails with 500"):
        client.pods()
    assert fake.count("GET /v1/pods") == 8


def test_a_wait_asked_for_is_bounded_and_read_in_both_forms() -> None:
    assert seconds_to_wait("7") == 7
    assert seconds_to_wait(format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)) == pytest.approx(
        30, abs=2
    )
    assert [seconds_to_wait(text) for text in (None, "soon", "inf", "Mon")] == [None] * 4
    assert RunPod("k", patience=FAST)._api._pause(0, 3600.0) == FAST.longest_wait


@pytest.mark.parametrize("fault", ["lost", "500-done"])
def test_a_lost_reply_does_not_pay_for_a_second_pod(client: RunPod, fake: FakeRunPod, fault: str) -> None:
    fake.faults = [("POST /v1/pods", fault)]
    pod = client.create(body())
    assert [made.id for made in fake.created()] == [pod.id]
    assert fake.count("POST /v1/pods") == 1, "the pod was found by its name, not asked for again"


def test_what_was_not_done_is_asked_for_again(client: RunPod, fake: FakeRunPod) -> None:
    fake.faults = [("POST /v1/pods", "cut"), ("POST /v1/pods", "500")]
    pod = client.create(body())
    assert [made.id for made in fake.created()] == [pod.id]
    assert fake.count("POST /v1/pods") == 3


def test_a_pod_that_is_listed_too_late_is_removed_when_a_second_was_made(client: RunPod, fake: FakeRunPod) -> None:
    fake.faults = [("POST /v1/pods", "lost")]
    hidden: dict[str, Any] = {}

    def lag(call: str) -> None:
        """The first pod hides until the second is there."""
        if call == "POST /v1/pods" and not hidden:
            hidden.update(fake.pods)
            fake.pods.clear()
        elif call == "POST /v1/pods":
            fake.pods.update(hidden)

    fake.on_call = lag
    pod = client.create(body())
    assert fake.count("POST /v1/pods") == 2
    assert list(fake.pods) == [pod.id]
    assert set(hidden).isdisjoint(fake.pods), "the first is removed: nothing ran on it"


def test_out_of_stock_is_told_from_a_failure(client: RunPod, fake: FakeRunPod) -> None:
    fake.out_of_stock = {"NVIDIA A40"}
    with pytest.raises(OutOfStock):
        client.create(body())
    assert fake.count("POST /v1/pods") == 1, "stock does not come back by asking again"
    for message in (
        "There are no longer any instances available with the requested specifications. Please refresh and try again.",
        "There are no instances currently available",
        "There are not enough free GPUs on the host machine to start this pod.",
    ):
        assert is_out_of_stock(message)
    assert not is_out_of_stock("internal server error")


def test_ending_is_believed_by_the_pods_state(client: RunPod, fake: FakeRunPod) -> None:
    fake.add("abc123", name="mine")
    fake.faults = [("POST /v1/pods/abc123/stop", "lost")]
    client.stop("abc123")
    assert fake.pods["abc123"].status == "EXITED"
    client.stop("abc123")  # it has ended by itself: no error
    fake.faults = [("DELETE /v1/pods/abc123", "lost")]
    client.terminate("abc123")
    client.terminate("abc123")
    client.stop("abc123")
    assert not fake.pods
    fake.add("def456", name="mine")
    fake.faults = [("POST /v1/pods/def456/stop", "500")] * 4
    with pytest.raises(UnmaskError, match="fails with 500"):
        client.stop("def456")


def test_catalogue_keys_and_bills(client: RunPod, fake: FakeRunPod) -> None:
    a40 = client.catalogue()["NVIDIA A40"]
    assert (a40.usd_per_hour, a40.spot_usd_per_hour, a40.stock, a40.display_name) == (0.40, 0.20, "High", "A40")
    assert client.public_keys() == fake.public_key
    now = datetime.now(UTC)
    assert client.billed_usd("abc123", since=now) is None
    fake.billed = 0.31
    assert client.billed_usd("abc123", since=now) == 0.31


def test_a_refused_key_is_named_and_never_shown(
    fake: FakeRunPod, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "rpa_wrong_and_secret_0123456789"  # pragma: allowlist secret
    monkeypatch.setenv(KEY_VARIABLE, secret)
    with RunPod.from_environment(patience=FAST) as client, pytest.raises(ConfigError) as refused:
        client.pods()
    assert KEY_VARIABLE in str(refused.value)
    assert fake.headers[-1]["authorization"] == f"Bearer {secret}"
    seen = [str(refused.value), repr(refused.value), repr(client), caplog.text, fake.headers[-1]["url"]]
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with RunPod.from_environment(patience=FAST) as client:
        client.pods()
        client.catalogue()
        client.create(body())
        echoed = client._api._clean(f"you sent {KEY}")
    assert caplog.text, "there is a log that could hold it"
    seen += [repr(client), caplog.text, echoed, *(headers["url"] for headers in fake.headers)]
    assert all(secret not in text and KEY not in text for text in seen)


@pytest.mark.parametrize("key", ["", "  ", "two\nlines", "kéy"])
def test_a_key_that_is_none_is_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ConfigError, match=KEY_VARIABLE):
        RunPod.from_environment()


def test_the_key_follows_no_redirection(client: RunPod, fake: FakeRunPod) -> None:
    fake.faults = [("GET /v1/pods", "302")]
    with pytest.raises(ConfigError, match="refuses with 302"):
        client.pods()
    assert fake.calls == ["GET /v1/pods"]


def test_the_key_goes_nowhere_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    for url in ("http://example.org", "http://127.0.0.1.example.org:80", "ftp://127.0.0.1"):
        monkeypatch.setenv(URL_VARIABLE, url)
        with pytest.raises(ConfigError, match=URL_VARIABLE):
            RunPod.from_environment()


@pytest.mark.parametrize("number", ["Infinity", "nan", 1e400, pytest.param(10**400, id="huge"), [], {}])
def test_a_number_that_is_none_is_no_number(number: Any) -> None:
    body = {
        "id": "one",
        "costPerHr": number,
        "portMappings": {"22": number},
        "gpu": {"count": number},
        "volumeInGb": number,
    }
    pod = read_pod(body)
    assert (pod.usd_per_hour, pod.ssh_port, pod.gpu_count, pod.volume_gb) == (None, None, 0, 0)


@pytest.mark.parametrize("types", [5, [None], ["a GPU"], {"id": "a GPU"}])
def test_a_catalogue_that_is_none_lists_no_price(types: Any) -> None:
    assert not any(gpu.usd_per_hour for gpu in read_gpu_types({"gpuTypes": types}).values())
