"""Renting a pod from the fake: which one, until it answers, within which limits, and what becomes of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from fake_runpod import KEY, FakeRunPod, serve_banner, serve_runpod
from unmask.errors import ConfigError, UnmaskError
from unmask.execution.runpod import client as client_module
from unmask.execution.runpod import ending, reaching
from unmask.execution.runpod.asking import KEY_VARIABLE, URL_VARIABLE, Api, NoReply, Patience
from unmask.execution.runpod.client import RunPod
from unmask.execution.runpod.settings import GPUS
from unmask.remote import renting
from unmask.remote.renting import RentSettings, is_rented, list_pods, rent

A40, RTX = "NVIDIA A40", "NVIDIA GeForce RTX 4090"


class Told:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[str] = []
        self.done = 0

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        self.steps.append(label)

    def advance(self, units: int = 1) -> None:
        self.done += units

    def end(self) -> None:
        return

    def note(self, text: str) -> None:
        self.notes.append(text)

    def said(self, words: str) -> bool:
        return any(words in note for note in self.notes)


@pytest.fixture(scope="module")
def port() -> Generator[int]:
    with serve_banner() as port:
        yield port


@pytest.fixture
def fake(port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[FakeRunPod]:
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody's own public key
    monkeypatch.setattr(client_module, "Patience", lambda: Patience(tries=3, first_wait=0.01, listing_lag=0.01))
    monkeypatch.setattr(reaching, "PAUSE", 0.02)
    monkeypatch.setattr(ending, "WAITS", (0.0, 0.01))
    with serve_runpod(ssh_port=port) as fake:
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        monkeypatch.setenv(URL_VARIABLE, fake.url)
        yield fake


@pytest.fixture
def told() -> Told:
    return Told()


def wish(**fields: Any) -> RentSettings:
    return RentSettings(**{"label": "paper", "gpu": (A40,), "wait_seconds": 5, **fields})


def test_a_pod_is_made_waited_for_used_and_stopped(fake: FakeRunPod, told: Told, port: int) -> None:
    with rent("runpod", wish(), progress=told) as rented:
        assert (rented.address.user, rented.address.host, rented.address.port) == ("root", "127.0.0.1", port)
        assert rented.root == "/workspace/.unmask-remote"
        assert rented.status() == "running"
        assert rented.timer_command is None, "without a limit there is none"
    (pod,) = fake.created()
    assert pod.status == "EXITED"
    assert pod.looks >= fake.looks_to_start
    assert pod.asked["name"].startswith("unmask-paper-")
    assert pod.asked["ports"] == ["22/tcp"]
    assert pod.asked["env"] == {"PUBLIC_KEY": fake.public_key}
    assert told.done == 3, "it ran, had an address, and answered"
    assert told.said("is stopped")
    assert told.said("no limit")
    record = rented.record()
    assert (record["pod"], record["gpu"], record["usd_per_hour"], record["how"]) == (pod.id, A40, 0.40, "created")
    assert record["usd"] == pytest.approx(0.40 * record["hours"], abs=1e-4)
    assert rented.hours == rented.hours, "the meter stands still once it is given back"


@pytest.mark.parametrize(("after", "left"), [("stop", "EXITED"), ("terminate", None), ("keep", "RUNNING")])
def test_the_policy_holds_when_the_work_fails_too(fake: FakeRunPod, told: Told, after: str, left: str | None) -> None:
    with pytest.raises(ZeroDivisionError), rent("runpod", wish(after=after), progress=told):
        raise ZeroDivisionError
    assert [pod.status for pod in fake.created()] == ([] if left is None else [left])
    assert after != "keep" or told.said("costs money until it is stopped")


def test_what_was_billed_is_in_the_record(fake: FakeRunPod, told: Told) -> None:
    fake.billed = 0.31
    with rent("runpod", wish(), progress=told) as rented:
        assert rented.record()["billed_usd"] is None
    assert rented.record()["billed_usd"] == 0.31


def test_gpu_types_are_tried_in_the_order_of_preference(fake: FakeRunPod, told: Told) -> None:
    fake.out_of_stock = {RTX}
    with rent("runpod", wish(gpu=("RTX 4090", "a40")), progress=told) as rented:
        assert rented.pod.gpu == A40
    assert told.said(f"{RTX}: none free")
    fake.out_of_stock = {RTX, A40}
    fake.pods.clear()
    with (
        pytest.raises(UnmaskError, match="no GPU to rent") as nothing,
        rent("runpod", wish(gpu=(RTX, A40)), progress=told),
    ):
        pytest.fail("nothing was free")
    assert "--gpu" in nothing.value.mend
    assert not fake.created()
    with pytest.raises(ConfigError, match="no GPU type 'H1000'"), rent("runpod", wish(gpu=("H1000",)), progress=told):
        pytest.fail("there is no such GPU")


def test_nothing_above_the_price_is_rented(fake: FakeRunPod, told: Told) -> None:
    with rent("runpod", wish(gpu=(RTX, A40), max_usd_per_hour=0.5), progress=told) as rented:
        assert rented.pod.gpu == A40
    assert told.said("0.69 USD/h is above 0.50")
    assert fake.count("POST /v1/pods") == 1, "what the catalogue calls too dear is not even asked for"


def test_a_pod_that_turns_out_dearer_is_removed_at_once(fake: FakeRunPod, told: Told) -> None:
    fake.faults = [("POST /graphql", "500")] * 3  # no catalogue
    with rent("runpod", wish(gpu=(RTX, A40), max_usd_per_hour=0.5), progress=told) as rented:
        assert rented.pod.gpu == A40
        assert [pod.asked["gpuTypeIds"] for pod in fake.created()] == [[A40]], "the other is gone before work begins"
    assert fake.count(r"DELETE /v1/pods/new\w+") == 1
    assert told.said("prices and stock are unknown")


def test_spot_is_asked_for_and_its_loss_is_seen(fake: FakeRunPod, told: Told) -> None:
    with rent("runpod", wish(spot=True), progress=told) as rented:
        assert fake.created()[0].asked["interruptible"] is True
        fake.take_away(rented.pod.id)
        assert rented.status() == "exited"
    assert rented.record()["spot"] is True
    with rent("runpod", wish(spot=True), progress=told) as rented:
        fake.pods.clear()
        assert rented.status() == "gone"


def test_this_studys_running_pod_is_used_before_any_other(fake: FakeRunPod, told: Told) -> None:
    fake.add("foreign", name="my pod")
    fake.add("other", name="unmask-other-01234567")
    fake.add("another", name="unmask-paper-2-01234567")
    fake.add("own", name="unmask-paper-01234567")
    with rent("runpod", wish(), progress=told) as rented:
        assert rented.pod.id == "own"
    assert told.said("uses pod own (unmask-paper-01234567, NVIDIA A40, 0.40 USD/h), which runs already")
    assert {pod.id: pod.status for pod in fake.pods.values()} == {
        "foreign": "RUNNING", "other": "RUNNING", "another": "RUNNING", "own": "EXITED",
    }  # fmt: skip
    assert not fake.created()


@pytest.mark.parametrize("limit", [{}, {"max_usd_per_hour": 0.5}])
def test_this_studys_pod_that_is_still_starting_is_waited_for(
    fake: FakeRunPod, told: Told, limit: dict[str, float]
) -> None:
    """A call before this one was killed while its pod came up: a second one beside it would be paid for as well."""
    fake.add("foreign", name="my pod")
    fake.add("own", name="unmask-paper-01234567").looks = 0
    with rent("runpod", wish(**limit), progress=told) as rented:
        assert rented.pod.id == "own"
        assert rented.pod.address is not None
    assert not fake.created()
    assert fake.pods["own"].status == "EXITED"


def test_a_starting_pod_that_turns_out_too_dear_or_never_answers_is_named(fake: FakeRunPod, told: Told) -> None:
    fake.add("own", name="unmask-paper-01234567").looks = 0
    with (
        pytest.raises(UnmaskError, match=r"pod own: .* is above"),
        rent("runpod", wish(max_usd_per_hour=0.1), progress=told),
    ):
        pytest.fail("it costs too much")
    assert told.said(
        "pod own (unmask-paper-01234567, NVIDIA A40, 0.40 USD/h) ran before, is left running, and costs money"
    )
    fake.ssh_port = None
    with (
        pytest.raises(UnmaskError, match="pod own was not ready"),
        rent("runpod", wish(wait_seconds=0.2), progress=told),
    ):
        pytest.fail("it never had an address")
    assert not fake.created()
    assert fake.pods["own"].status == "RUNNING"


def test_a_foreign_running_pod_is_used_and_left_as_it_was(fake: FakeRunPod, told: Told) -> None:
    fake.add("foreign", name="my pod")
    with rent("runpod", wish(after="terminate"), progress=told) as rented:
        assert rented.pod.id == "foreign"
    assert fake.pods["foreign"].status == "RUNNING"
    assert told.said("it ran before, and was not made here")
    with rent("runpod", wish(max_hours=1), progress=told) as rented:
        assert rented.pod.id != "foreign", "it could not be held to a limit"
    assert fake.pods["foreign"].status == "RUNNING"


def test_a_pod_that_does_not_fit_is_passed_over(fake: FakeRunPod, told: Told) -> None:
    fake.add("wrong", name="my pod", gpu=RTX)
    with rent("runpod", wish(), progress=told) as rented:
        assert rented.pod.id.startswith("new")


def test_a_stopped_pod_of_ours_is_started_again_and_never_removed(fake: FakeRunPod, told: Told) -> None:
    fake.add("own", name="unmask-paper-01234567", status="EXITED")
    fake.add("foreign", name="my pod", status="EXITED")
    fake.add("another", name="unmask-other-01234567", status="EXITED")
    with rent("runpod", wish(after="terminate"), progress=told) as rented:
        assert rented.pod.id == "own"
    assert fake.pods["own"].status == "EXITED", "another call made it: stopped, not removed"
    assert fake.pods["foreign"].status == "EXITED"
    assert fake.count("POST /v1/pods/(foreign|another)/start") == 0


def test_a_stopped_pod_whose_machine_is_full_is_passed_over(fake: FakeRunPod, told: Told) -> None:
    fake.add("own", name="unmask-paper-01234567", status="EXITED")
    fake.out_of_stock = {A40}
    with rent("runpod", wish(gpu=(A40, RTX)), progress=told) as rented:
        assert rented.pod.gpu == RTX
    assert told.said("pod own (unmask-paper-01234567) cannot be started")


@pytest.mark.parametrize(("after", "left"), [("stop", "EXITED"), ("terminate", None), ("keep", "RUNNING")])
def test_a_pod_told_by_its_id_follows_the_policy(fake: FakeRunPod, told: Told, after: str, left: str | None) -> None:
    fake.add("named", name="my pod", gpu=RTX, status="EXITED")
    with rent("runpod:named", wish(after=after), progress=told) as rented:
        assert rented.pod.id == "named"
    assert [pod.status for pod in fake.pods.values()] == ([] if left is None else [left])


def test_an_unknown_id_and_another_scheme_are_refused(fake: FakeRunPod, told: Told) -> None:
    with pytest.raises(ConfigError, match="no pod missing"), rent("runpod:missing", wish(), progress=told):
        pytest.fail("there is no such pod")
    with pytest.raises(ConfigError, match="nothing to rent"), rent("ssh://host", wish(), progress=told):
        pytest.fail("that is not rented")
    assert [is_rented(on) for on in ("runpod", "runpod:x", "ssh://h", "runpodx")] == [True, True, False, False]
    assert not fake.pods


@pytest.mark.parametrize(("after", "left"), [("stop", "EXITED"), ("terminate", None)])
def test_a_pod_that_never_answers_is_ended_and_named(
    fake: FakeRunPod, told: Told, after: str, left: str | None
) -> None:
    fake.ssh_port = None
    with pytest.raises(UnmaskError) as problem, rent("runpod", wish(after=after, wait_seconds=0.3), progress=told):
        pytest.fail("it never had an address")
    assert [pod.status for pod in fake.created()] == ([] if left is None else [left])
    said = str(problem.value)
    assert "was not ready after 0 s: RunPod maps no port" in said
    assert "Pod new" in said or "pod new" in said
    assert "unmask remote check" in said


def test_a_port_that_does_not_speak_ssh_is_not_taken_for_one(fake: FakeRunPod, told: Told) -> None:
    with serve_banner(b"HTTP/1.1 400 Bad Request\r\n") as other:
        fake.ssh_port, fake.looks_to_start = other, 0
        with (
            pytest.raises(UnmaskError, match="its SSH server does not answer"),
            rent("runpod", wish(wait_seconds=0.3), progress=told),
        ):
            pytest.fail("that is no SSH server")
    assert [pod.status for pod in fake.created()] == ["EXITED"]


@pytest.mark.parametrize("call", ["POST /v1/pods", r"GET /v1/pods/new\w+"])
def test_a_pod_is_ended_when_the_user_interrupts(
    fake: FakeRunPod, told: Told, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Ctrl-C while it is asked for, and while it is waited for."""
    asked = Api.ask
    struck: list[str] = []

    def ask(self: Any, method: str, path: str, **options: Any) -> Any:
        reply = asked(self, method, path, **options)
        wanted, _, place = call.partition(" /v1")
        matches = path == place if place == "/pods" else path.startswith("/pods/new")
        if not struck and method == wanted and matches:
            struck.append(path)
            raise KeyboardInterrupt
        return reply

    monkeypatch.setattr(Api, "ask", ask)
    with pytest.raises(KeyboardInterrupt), rent("runpod", wish(), progress=told):
        pytest.fail("interrupted before")
    assert struck
    assert [pod.status for pod in fake.created()] == ["EXITED"]
    assert told.said("is stopped. Look: unmask remote check")


@pytest.mark.parametrize("fault", ["lost", "500-done"])
def test_one_pod_is_paid_for_when_the_reply_is_lost(fake: FakeRunPod, told: Told, fault: str) -> None:
    fake.faults = [("POST /v1/pods", fault)]
    with rent("runpod", wish(), progress=told):
        assert len(fake.created()) == 1


def test_a_pod_that_cannot_be_ended_is_shouted_about(fake: FakeRunPod, told: Told) -> None:
    with (
        pytest.raises(UnmaskError, match="MAY STILL COST MONEY") as problem,
        rent("runpod", wish(), progress=told) as rented,
    ):
        fake.faults = [(f"POST /v1/pods/{rented.pod.id}/stop", "500")] * 100
    assert rented.pod.id in str(problem.value)
    assert "console.runpod.io" in problem.value.mend


@pytest.mark.parametrize(("limit", "after", "left"), [
    ({"max_hours": 0.3 / 3600}, "stop", "EXITED"),
    ({"max_usd": 0.40 * 0.3 / 3600}, "terminate", None),
    ({"max_hours": 1, "max_usd": 0.40 * 0.3 / 3600}, "keep", "EXITED"),
])  # fmt: skip
def test_a_limit_ends_the_pod_while_the_work_goes_on(
    fake: FakeRunPod, told: Told, limit: dict[str, float], after: str, left: str | None
) -> None:
    with rent("runpod", wish(after=after, **limit), progress=told) as rented:
        until = time.monotonic() + 10
        while rented.why_ended is None and time.monotonic() < until:
            time.sleep(0.02)
        while rented.status() == "running" and time.monotonic() < until:
            time.sleep(0.02)
        assert rented.status() == ("gone" if left is None else "exited")
    assert rented.why_ended is not None
    assert "limit is reached" in rented.why_ended
    assert rented.record()["ended"] == rented.why_ended
    assert [pod.status for pod in fake.created()] == ([] if left is None else [left])


def test_the_timer_is_for_what_is_left_of_the_limit(fake: FakeRunPod, told: Told) -> None:
    with rent("runpod", wish(max_usd=0.80, max_hours=5), progress=told) as rented:
        assert rented.seconds_left == pytest.approx(2 * 3600, abs=60), "0.80 USD at 0.40 USD/h"
        command = rented.timer_command
        assert command is not None
        assert "sleep 7200" in command or "sleep 719" in command
        assert rented.pod.id in command
        assert "runpodctl stop pod" in command
        assert KEY not in command
    fake.pods.clear()
    with rent("runpod", wish(max_hours=1, after="terminate"), progress=told) as rented:
        assert "runpodctl remove pod" in str(rented.timer_command)


def test_work_that_goes_on_keeps_its_pod(fake: FakeRunPod, told: Told) -> None:
    with rent("runpod", wish(max_hours=1), progress=told) as rented:
        rented.leave_running("the run was left to itself")
    assert [pod.status for pod in fake.created()] == ["RUNNING"]
    assert told.said("goes on: the run was left to itself")


@pytest.mark.parametrize("price", ["unknown", 0.0])
def test_money_cannot_be_limited_at_an_unknown_price(fake: FakeRunPod, told: Told, price: Any) -> None:
    fake.add("named", name="my pod").usd_per_hour = price
    with pytest.raises(UnmaskError, match="names no price"), rent("runpod:named", wish(max_usd=1), progress=told):
        pytest.fail("the limit could not be kept")


def test_the_key_beside_the_private_one_is_let_in_too(fake: FakeRunPod, told: Told, tmp_path: Path) -> None:
    (tmp_path / "mine.pub").write_text("ssh-ed25519 AAAAmine\n", encoding="utf-8")
    with rent("runpod", wish(key_file=tmp_path / "mine"), progress=told):
        assert fake.created()[0].asked["env"] == {"PUBLIC_KEY": f"{fake.public_key}\nssh-ed25519 AAAAmine"}
    fake.pods.clear()
    fake.public_key = ""
    with pytest.raises(ConfigError, match="no public key"), rent("runpod", wish(), progress=told):
        pytest.fail("nobody could get in")
    assert not fake.pods, "nothing is rented that nobody could reach"


def test_pods_are_listed_running_first(fake: FakeRunPod) -> None:
    fake.add("b", name="unmask-paper-01234567", status="EXITED")
    fake.add("a", name="my pod")
    first, second = list_pods()
    assert (first["id"], first["status"], first["usd_per_hour"], first["made_here"]) == ("a", "running", 0.40, False)
    assert first["uptime_hours"] is not None
    assert (second["id"], second["status"], second["uptime_hours"], second["made_here"]) == ("b", "exited", None, True)


def test_settings_refuse_what_makes_no_sense() -> None:
    assert RentSettings().gpu == GPUS
    for bad in ({"max_usd": 0}, {"max_hours": -1}, {"gpu": ()}, {"after": "sell"}, {"nonsense": 1}):
        with pytest.raises(ValueError, match="validation error"):
            RentSettings(**bad)  # type: ignore[arg-type]


def test_work_that_breaks_off_says_that_the_pod_was_ended(fake: FakeRunPod, told: Told) -> None:
    """By RunPod, by a limit, or by neither."""
    with pytest.raises(UnmaskError) as broken, rent("runpod", wish(spot=True), progress=told) as rented:
        fake.take_away(rented.pod.id)
        rented.leave_running("the connection is lost")
        raise UnmaskError("the connection is lost")
    assert str(broken.value).startswith(f"RunPod has ended the spot pod {rented.pod.id}: Exited by Runpod: outbid")
    assert not told.said("goes on"), "what was taken away does not go on"
    with (
        pytest.raises(UnmaskError, match="limit is reached"),
        rent("runpod", wish(max_hours=0.3 / 3600), progress=told) as rented,
    ):
        until = time.monotonic() + 10
        while rented.status() == "running" and time.monotonic() < until:
            time.sleep(0.02)
        rented.leave_running("the connection is lost")
        raise UnmaskError("the connection is lost")
    with pytest.raises(UnmaskError, match=r"^a full disk\.$"), rent("runpod", wish(), progress=told):
        raise UnmaskError("a full disk")
    assert all(pod.status == "EXITED" for pod in fake.created())


def test_a_start_whose_reply_is_lost_pays_for_one_pod(fake: FakeRunPod, told: Told) -> None:
    """The second try hears that it runs already: that is no reason to rent another."""
    fake.add("own", name="unmask-paper-01234567", status="EXITED")
    fake.faults = [("POST /v1/pods/own/start", "lost")]
    with rent("runpod", wish(), progress=told) as rented:
        assert rented.pod.id == "own"
    assert not fake.created()


@pytest.mark.parametrize("on", ["runpod", "runpod:own"])
def test_a_start_that_nobody_tells_of_is_ended_and_nothing_is_rented_beside_it(
    fake: FakeRunPod, told: Told, on: str
) -> None:
    fake.add("own", name="unmask-paper-01234567", status="EXITED")

    def silent(call: str) -> None:
        if call == "POST /v1/pods/own/start":
            fake.faults = [("GET /v1/pods/own", "500")] * 3

    fake.faults, fake.on_call = [("POST /v1/pods/own/start", "lost")], silent
    with pytest.raises(NoReply, match="whether pod own was started"), rent(on, wish(after="terminate"), progress=told):
        pytest.fail("nobody knows whether it runs")
    assert [(pod.id, pod.status) for pod in fake.pods.values()] == [("own", "EXITED")]


@pytest.mark.parametrize(("status", "left"), [("RUNNING", "RUNNING"), ("EXITED", "EXITED")])
@pytest.mark.parametrize("why", ["price", "no SSH"])
def test_a_named_pod_that_is_refused_is_left_as_it_was(
    fake: FakeRunPod, told: Told, status: str, left: str, why: str
) -> None:
    """Never removed: what lies on it was there before. What this call started is stopped."""
    fake.add("named", name="my pod", status=status)
    fake.ssh_port = fake.ssh_port if why == "price" else None
    settings = wish(after="terminate", wait_seconds=0.2 if why == "no SSH" else 5, max_usd_per_hour=0.1)
    with pytest.raises(UnmaskError), rent("runpod:named", settings, progress=told):
        pytest.fail("refused")
    assert fake.pods["named"].status == left


@pytest.mark.parametrize(("on", "status", "left"), [
    ("runpod", "RUNNING", "RUNNING"), ("runpod:own", "RUNNING", "RUNNING"), ("runpod", "EXITED", "EXITED"),
])  # fmt: skip
def test_where_nothing_was_begun_a_pod_that_ran_before_goes_on(
    fake: FakeRunPod, told: Told, on: str, status: str, left: str
) -> None:
    fake.add("own", name="unmask-paper-01234567", status=status)
    with rent(on, wish(), progress=told) as rented:
        rented.leave_what_ran()
    assert fake.pods["own"].status == left


def test_a_limit_goes_on_until_the_pod_is_ended(fake: FakeRunPod, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "AGAIN", 0.05)
    fake.faults = [(r"POST /v1/pods/new\w+/stop", "500")] * 9  # 2 tries of 3 requests, and half of the next
    with rent("runpod", wish(max_hours=0.3 / 3600), progress=told) as rented:
        until = time.monotonic() + 60
        while rented.status() == "running" and time.monotonic() < until:
            time.sleep(0.02)
        assert rented.status() == "exited"
    assert told.said("MAY STILL COST MONEY")


def test_a_second_interruption_says_what_may_still_cost_money(
    fake: FakeRunPod, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(renting, "end_pod", interrupted)
    with contextlib.suppress(KeyboardInterrupt), rent("runpod", wish(), progress=told) as rented:
        raise KeyboardInterrupt
    assert rented.pod.id in told.notes[-1]
    assert "MAY STILL COST MONEY" in told.notes[-1]


def test_a_creation_that_was_interrupted_is_looked_for_with_patience(
    fake: FakeRunPod, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list may lag behind what was made."""
    listed, made = RunPod.pods, RunPod.create
    looks: list[str] = []

    def lagging(self: RunPod, *, name: str | None = None) -> Any:
        if name is not None:
            looks.append(name)
        return [] if len(looks) == 1 else listed(self, name=name)

    def interrupted(self: RunPod, body: dict[str, Any]) -> Any:
        made(self, body)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunPod, "pods", lagging)
    monkeypatch.setattr(RunPod, "create", interrupted)
    with pytest.raises(KeyboardInterrupt), rent("runpod", wish(), progress=told):
        pytest.fail("interrupted before")
    assert [pod.status for pod in fake.created()] == ["EXITED"]


def test_a_terminal_that_is_gone_keeps_no_pod_from_its_end(
    fake: FakeRunPod, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(text: str) -> None:
        if "is stopped" in text:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(told, "note", gone)
    fake.ssh_port = None
    with pytest.raises(UnmaskError, match="was not ready"), rent("runpod", wish(wait_seconds=0.2), progress=told):
        pytest.fail("it never had an address")
    assert [pod.status for pod in fake.created()] == ["EXITED"]
