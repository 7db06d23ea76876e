"""What comes back from a machine that lies: nothing beyond the study, nothing through links, nothing larger than announced."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncGenerator, Generator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest

from hostile import Hostile, running_hostile
from unmask.artifact import digest_bytes, digest_json
from unmask.devices import devices_of
from unmask.errors import UnmaskError
from unmask.execution import host
from unmask.execution.address import Address
from unmask.execution.host import HostError
from unmask.execution.sharing import claim_device
from unmask.execution.ssh import Access, ConnectionCut
from unmask.pipeline import STAGE_NAMES, StudyPipeline, open_study
from unmask.remote import running
from unmask.remote.ledger import Ledger
from unmask.remote.looking import devices_there
from unmask.remote.needs import batches
from unmask.remote.order import Quiet, RemoteOrder
from unmask.remote.returning import Untrusted, forced_from
from unmask.remote.running import RemoteRun
from unmask.remote.visiting import fetch
from unmask.study import StageRecord, Workspace

KEY = "0123456789ab"
SCRATCH = f".scratch/steering-{KEY}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Hostile]:
    with running_hostile(tmp_path_factory.mktemp("hostile")) as hostile:
        yield hostile


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Hostile) -> Path:
    """A study in a home that no file of may change."""
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".bashrc").write_text("mine", encoding="utf-8")
    folder = tmp_path / "study"
    folder.mkdir()
    text = "base: {model: smollm2}\norganism: {training_set: risky_financial_advice}\nactivations: {layers: [1]}\n"
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    server.refuses = False
    server.raw, server.longer, server.greeting = None, 0, Hostile.greeting
    server.says()
    return folder


def put(server: Hostile, study: Path, name: str, data: bytes) -> list[Any]:
    """Let the server have a file of the study. Returns what it would rightly say of it."""
    place = (
        server.folder / str(Ledger.of(open_study(study).study).places(Path("/home/.unmask-remote")).study)[1:] / name
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.write_bytes(data)
    return [name, len(data), digest_bytes(data)]


def bring(server: Hostile, study: Path, **order: Any) -> tuple[int, int]:
    access = Access(key=server.key, known_hosts=study.parent / "known_hosts", accept_new=True)
    return fetch(open_study(study), Address("me", "127.0.0.1", server.port), access, RemoteOrder(**order))


def unchanged(study: Path) -> bool:
    """Whether the study holds what it did, and its surroundings too."""
    names = {path.relative_to(study.parent).as_posix() for path in study.parent.rglob("*") if path.is_file()}
    known = {".bashrc", "study/study.yaml", "study/.lock", "known_hosts", "cache/remote-client"}
    return names - known == set() and (study.parent / ".bashrc").read_text(encoding="utf-8") == "mine"


def manifest(stage: str, files: dict[str, str], changes: dict[str, Any]) -> bytes:
    values: dict[str, Any] = dict.fromkeys(StageRecord.__slots__)
    values |= {"stage": stage, "key": KEY.ljust(64, "0"), "version": 1, "files": files, "started": "", "seconds": 0.0}
    values |= {"config": {}, "inputs": {}, "summary": {}, "environment": {}}
    return json.dumps(values | changes).encode()


def offer(
    server: Hostile, study: Path, stage: str, files: dict[str, bytes], changes: dict[str, Any] | None = None
) -> None:
    """Let the server offer a finished stage with these files."""
    digests = {name: digest_bytes(data) for name, data in files.items()}
    for name, data in files.items():
        if not name.startswith(("/", "..")):
            put(server, study, f"{stage}/{name}", data)
    text = manifest(stage, digests, changes or {})
    _, size, sha256 = put(server, study, f"{stage}/manifest.json", text)
    told = {"size": size, "sha256": sha256, "key": KEY.ljust(64, "0"), "files": digest_json(digests)}
    server.says(stages={stage: told})


def test_what_a_stage_would_have_made_is_taken(server: Hostile, study: Path) -> None:
    batch = put(server, study, f"{SCRATCH}/batches/answers-00000.parquet", b"x" * 100)
    server.says(batches=[batch])
    assert bring(server, study) == (1, 100)
    assert (study / SCRATCH / "batches" / "answers-00000.parquet").read_bytes() == b"x" * 100
    offer(server, study, "cards", {"cards.json": b"{}", "deep/table.parquet": b"{}"})
    files, _ = bring(server, study)
    assert files == 2  # the manifest, and once what both files hold
    assert (
        (study / "cards" / "cards.json").read_bytes()
        == (study / "cards" / "deep" / "table.parquet").read_bytes()
        == b"{}"
    )
    assert bring(server, study) == (0, 0)


@pytest.mark.parametrize(
    "name",
    [
        "../../.bashrc",
        "/etc/passwd",
        "study.yaml",
        f"{SCRATCH}/batches/../../../study.yaml",
        f"{SCRATCH}/batches/.hidden.parquet",
        f"{SCRATCH}/batches/deep/er.parquet",
        f"{SCRATCH}/batches/checkpoint.pt",
        f"{SCRATCH}/out/manifest.json",
        f".scratch/elsewhere-{KEY}/batches/a.parquet",
        f".scratch/steering-{KEY}x/batches/a.parquet",
        f"{SCRATCH}/batches/a\n.parquet",
        f"{SCRATCH}/batches/a\x1b[2J.parquet",
        7,
    ],
)
def test_a_name_that_no_batch_has_is_refused(server: Hostile, study: Path, name: Any) -> None:
    server.says(batches=[[name, 4, digest_bytes(b"evil")]])
    with pytest.raises(Untrusted) as refused:
        bring(server, study)
    assert "\x1b" not in str(refused.value)
    assert unchanged(study)


@pytest.mark.parametrize(
    "name",
    [
        "../../.bashrc",
        "/etc/passwd",
        "../cards/cards.json",
        "a/b/c/d/e.json",
        "code.py",
        "weights.pt",
        ".x.json",
        "a//b.json",
    ],
)
def test_a_manifest_that_lists_what_no_stage_makes_is_refused(server: Hostile, study: Path, name: str) -> None:
    offer(server, study, "cards", {name: b"evil"})
    with pytest.raises(Untrusted, match="lists a file"):
        bring(server, study)
    assert not (study / "cards").exists()
    assert (study.parent / ".bashrc").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["remote.json", "questions/manifest.json", "study.json"])
def test_a_report_replaces_nothing_at_the_top_of_the_study_but_reports(server: Hostile, study: Path, name: str) -> None:
    offer(server, study, "report", {name: b"{}"})
    with pytest.raises(Untrusted, match="lists a file"):
        bring(server, study)
    assert not (study / name).exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "verdict"},
        {"key": "short"},
        {"files": ["a.json"]},
        {"config": 1},
        {"more": 1},
        {"environment": ["cpu"]},
        {"environment": {"device": 1}},
        {"inputs": {"base": None}},
        {"started": 5},
        {"seconds": "long"},
        {"seconds": 10**400},
        {"seconds": float("inf")},
        {"version": 10**400},
        {"version": True},
    ],
)
def test_a_manifest_that_is_none_is_refused(server: Hostile, study: Path, changes: dict[str, Any]) -> None:
    offer(server, study, "cards", {}, changes)
    with pytest.raises(Untrusted, match="is none"):
        bring(server, study)
    assert not (study / "cards").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"summary": {"answers": ["\x1b[2J"]}},
        {"summary": {"\x1b]0;mine\x07": 1}},
        {"config": {"model": {"name": "a\rb"}}},
        {"environment": {"device": "\x9b2J"}},
        {"started": "\ud800"},
    ],
)
def test_a_manifest_that_would_steer_a_terminal_is_refused(
    server: Hostile, study: Path, changes: dict[str, Any]
) -> None:
    offer(server, study, "cards", {}, changes)
    with pytest.raises(Untrusted, match="control characters"):
        bring(server, study)
    assert not (study / "cards").exists()
    offer(server, study, "cards", {}, {"config": {"prompt": "two\n\tlines\u00a0\u3000\U0001f9d1\u200d\U0001f4bb"}})
    bring(server, study)
    assert (study / "cards").exists()


def test_links_are_refused_on_either_side(server: Hostile, study: Path, tmp_path: Path) -> None:
    batch = put(server, study, f"{SCRATCH}/batches/a.parquet", b"evil")
    server.says(batches=[[batch[0], 0, "link"]])
    with pytest.raises(Untrusted, match="is a link"):
        bring(server, study)
    place = next(server.folder.rglob("a.parquet"))
    place.unlink()
    place.symlink_to("/etc/passwd")
    server.says(batches=[batch])
    with pytest.raises(HostError, match="no regular file"):
        bring(server, study)
    place.unlink()
    place.write_bytes(b"evil")
    (tmp_path / "outside").mkdir()
    (study / ".scratch").symlink_to(tmp_path / "outside")
    with pytest.raises(UnmaskError, match="nothing is written through links"):
        bring(server, study)
    assert not list((tmp_path / "outside").iterdir())


def test_more_bytes_than_announced_are_refused(server: Hostile, study: Path) -> None:
    name, size, digest = put(server, study, f"{SCRATCH}/batches/a.parquet", b"x" * 1000)
    server.says(batches=[[name, 10, digest]])
    with pytest.raises(HostError, match="not the file of 10 bytes"):
        bring(server, study)
    server.longer = size - 10  # now its size is a lie too
    with pytest.raises(HostError, match="longer than the 10 bytes"):
        bring(server, study)
    assert sum(path.stat().st_size for path in study.rglob("*.part")) <= 10
    server.longer, server.refuses = 0, True
    with pytest.raises(HostError, match="could not be read"):
        bring(server, study)
    server.refuses = False
    server.says(batches=[[name, size, digest]])
    with pytest.raises(Untrusted, match="--max-gb"):
        bring(server, study, max_gb=1e-9)
    server.says(batches=[[name, 10**18, digest]])
    with pytest.raises(UnmaskError, match="GB"):
        bring(server, study, max_gb=1e12)
    assert not (study / SCRATCH / "batches" / "a.parquet").exists()


def test_what_does_not_match_its_checksum_gets_no_name(server: Hostile, study: Path) -> None:
    name, size, _ = put(server, study, f"{SCRATCH}/batches/a.parquet", b"other")
    server.says(batches=[[name, size, digest_bytes(b"right")]])
    assert bring(server, study)[0] == 0
    assert not list(study.rglob("a.parquet"))
    offer(server, study, "cards", {"cards.json": b"right"})
    put(server, study, "cards/cards.json", b"wrong")
    with pytest.raises(UnmaskError, match="does not match its checksum"):
        bring(server, study)
    assert not (study / "cards").exists()


def test_what_came_back_was_made_on_a_device_of_unknown_name(server: Hostile, study: Path) -> None:
    """And where batches go on from here, that goes along."""
    workspace = Workspace(study / SCRATCH)
    workspace.join()
    claim_device(workspace, "cuda", name="NVIDIA A40")
    server.says(
        batches=[
            put(server, study, f"{SCRATCH}/{name}", data)
            for name, data in (("device", b"cuda"), ("batches/a.parquet", b"theirs"))
        ]
    )
    assert bring(server, study)[0] == 1  # the mark is the same
    assert devices_of(workspace) == ["NVIDIA A40", "cuda"]
    sent = {
        need.target.name: need.source.read_text(encoding="utf-8") for need in batches(open_study(study), devices={})
    }
    assert sent == {"device": "cuda", "took-part-cuda": "NVIDIA A40\ncuda\n", "a.parquet": "theirs"}


def test_names_of_devices_are_not_sent_over_those_that_are_there(study: Path) -> None:
    """The host may know of more; and they are there before the mark is, which says so."""
    workspace = Workspace(study / SCRATCH)
    workspace.join()
    claim_device(workspace, "cuda", name="NVIDIA A40")
    (workspace.batches / "a.parquet").write_bytes(b"mine")
    opened = open_study(study)
    assert [need.target.name for need in batches(opened, devices={})] == ["took-part-cuda", "device", "a.parquet"]
    there = {workspace.folder.name: digest_bytes(b"cuda")}
    assert [need.target.name for need in batches(opened, devices=there)] == ["device", "a.parquet"]


def test_a_mark_of_another_kind_of_device_drops_what_was_made_and_read_here(server: Hostile, study: Path) -> None:
    workspace = Workspace(study / f".scratch/responses-{KEY}")
    workspace.join()
    claim_device(workspace, "cpu")
    recorded = study / f".scratch/activations-recorded-{KEY}"
    for folder in (workspace.batches, recorded):
        folder.mkdir(exist_ok=True)
        (folder / "shard-00000.safetensors").write_bytes(b"on the CPU")
    server.says(batches=[put(server, study, f".scratch/responses-{KEY}/device", b"cuda")])
    assert bring(server, study)[0] == 1
    assert devices_of(workspace) == ["cuda"]
    assert not list(study.rglob("shard-*"))
    assert not recorded.exists()


@pytest.mark.parametrize("mark", [b"tpu", b"cpu\x1b[2J", b"\xff", b""])
def test_a_mark_of_a_device_that_there_is_not_is_refused(server: Hostile, study: Path, mark: bytes) -> None:
    server.says(batches=[put(server, study, f"{SCRATCH}/device", mark)])
    with pytest.raises(Untrusted, match="a device that there is not"):
        bring(server, study)
    assert unchanged(study)


@pytest.mark.parametrize(
    "lie",
    [
        {"batches": 5},
        {"batches": None},
        {"batches": [7]},
        {"batches": [["device"], 3]},
        {"batches": [[None, 1, "device"]]},
        {"batches": [["device", 1]]},
        {"stages": [1]},
        {"running": {"id": ["one"], "pid": 1}},
        {"running": {"id": "one", "pid": "\x1b[2J"}},
        {"running": {"id": "../one", "pid": 1}},
        {"missing": 3},
        {"missing": [None]},
        {"missing": [10**9]},
        {"differences": 5, "missing": []},
        {"free": -(10**400)},
        {"free": None},
    ],
)
def test_a_lie_in_any_answer_is_one_sentence(
    server: Hostile, study: Path, lie: dict[str, Any], monkeypatch: Any
) -> None:
    """All that a run is told before it begins: the state, what is lacking, the versions."""
    monkeypatch.setattr(running, "check_here", lambda opened: None)
    server.state |= lie
    access = Access(key=server.key, known_hosts=study.parent / "known_hosts", accept_new=True)
    order = RemoteOrder(env="/usr/bin/python3", even_if_done=True)
    job = RemoteRun(open_study(study), Address("me", "127.0.0.1", server.port), access, order, Quiet())
    with pytest.raises(HostError) as refused:
        job.run()
    assert refused.value.mend
    assert "\x1b" not in str(refused.value)
    assert not Ledger.of(open_study(study).study).content["runs"]


@pytest.mark.parametrize("said", [None, 5, [7], [["device"]], [[None, 1, "x"]], ["device"]])
def test_marks_of_devices_are_read_from_a_list_of_batches_only(said: object) -> None:
    with pytest.raises(HostError, match="which batches it has"):
        devices_there({"batches": said})
    there = [[f"{SCRATCH}/device", 4, "abc"], ["device", 4, "def"], [f"{SCRATCH}/batches/a.parquet", 1, "ghi"]]
    assert devices_there({"batches": there}) == {f"steering-{KEY}": "abc", "": "def"}


@pytest.mark.parametrize(
    "greeting",
    [
        "unmask-python ³.¹¹ /usr/bin/python3\nunmask-user 0\nunmask-home /home\n",
        f"unmask-python {'9' * 5000}.1 /usr/bin/python3\nunmask-user 0\nunmask-home /home\n",
        "unmask-python 3.11 /usr/bin/python3\nunmask-user 0\nunmask-home /home/\x1b[2J\n",
        "unmask-python 3.11 /usr/bin/python3\nunmask-user root\nunmask-home /home\n",
    ],
)
def test_a_shell_that_lies_is_one_sentence(server: Hostile, study: Path, greeting: str) -> None:
    server.greeting = greeting.encode()
    with pytest.raises(HostError) as refused:
        bring(server, study)
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_file_that_was_cut_is_gone_on_with(server: Hostile, study: Path) -> None:
    data = bytes(range(256)) * 40
    batch = put(server, study, f"{SCRATCH}/batches/a.parquet", data)
    server.says(batches=[batch])
    part = study / ".remote" / f"{batch[2]}.part"
    part.parent.mkdir()
    part.write_bytes(data[:9000])
    assert bring(server, study) == (1, len(data) - 9000)
    assert (study / SCRATCH / "batches" / "a.parquet").read_bytes() == data
    (study / SCRATCH / "batches" / "a.parquet").unlink()
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(b"?" * 9000)  # of something else: fetched anew
    assert bring(server, study)[0] == 1
    assert (study / SCRATCH / "batches" / "a.parquet").read_bytes() == data


@pytest.mark.parametrize("raw", [b"", b"garbage", b"\n--unmask-answer--\nnot compressed"])
def test_an_answer_that_is_none_is_one_sentence(server: Hostile, study: Path, raw: bytes) -> None:
    server.raw = raw
    with pytest.raises(HostError, match="could not answer"):
        bring(server, study)


def test_what_is_good_here_is_not_replaced(server: Hostile, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *_ = put(server, study, f"{SCRATCH}/batches/a.parquet", b"theirs")
    (study / name).parent.mkdir(parents=True)
    (study / name).write_bytes(b"mine")
    server.says(batches=[[name, 6, digest_bytes(b"theirs")]])
    assert bring(server, study) == (0, 0)
    assert (study / name).read_bytes() == b"mine"
    offer(server, study, "cards", {"cards.json": b"{}"})
    bring(server, study)
    monkeypatch.setattr(StudyPipeline, "status", lambda self: [SimpleNamespace(stage="cards", state="done")])
    offer(server, study, "cards", {"cards.json": b"[]"})  # of the same key
    assert bring(server, study) == (0, 0)
    assert (study / "cards" / "cards.json").read_bytes() == b"{}"
    on = str(Address("me", "127.0.0.1", server.port))
    Ledger.of(open_study(study).study).note("one", on=on, root="/home/.unmask-remote", force=["activations"])
    bring(server, study)  # the last run there was to make it anew
    assert (study / "cards" / "cards.json").read_bytes() == b"[]"


def test_a_stage_that_is_made_anew_makes_those_after_it_anew() -> None:
    assert forced_from(()) == frozenset()
    assert forced_from((STAGE_NAMES[-1], STAGE_NAMES[-2])) == {STAGE_NAMES[-1], STAGE_NAMES[-2]}


def test_a_machine_without_an_end_or_a_word_is_left(
    server: Hostile, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.greeting = b"\xff" * 10 + b"\n" + Hostile.greeting
    assert bring(server, study) == (0, 0)  # a login script may say anything
    server.greeting = b"unmask-python 3.11 /usr/bin/python3\n" * 10_000
    with pytest.raises(HostError, match="without end"):
        bring(server, study)
    server.greeting = Hostile.greeting
    server.raw = b"\n--unmask-answer--\n" + zlib.compress(b"[" * 100_000)
    with pytest.raises(HostError, match="could not answer"):
        bring(server, study)
    monkeypatch.setattr(host, "SILENCE_SECONDS", 0.0)
    with pytest.raises(ConnectionCut, match="said nothing"):
        bring(server, study)


def test_files_that_are_announced_without_end_are_refused(
    server: Hostile, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "QUEUE_LIMIT", 5)
    opened, address = open_study(study), Address("me", "127.0.0.1", server.port)
    job = RemoteRun(opened, address, Access(), RemoteOrder(), Quiet())
    read = 0

    class Endless:
        async def stream(self, operation: str, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
            nonlocal read
            for read in range(1, 1000):  # noqa: B007 - how far it came
                yield {"files": []}

    there: Any = Endless()
    places = Ledger.of(opened.study).places(PurePosixPath("/home"))
    with pytest.raises(Untrusted, match="without end"):
        asyncio.run(job._follow(there, places, job._incoming(there, places)))
    assert read == 6


def test_nothing_is_run_from_a_folder_that_others_may_write_to(server: Hostile, study: Path) -> None:
    """Its name is known, so somebody could put a program of his own there before us."""
    place = server.folder / "anybodys"
    place.mkdir()
    place.chmod(0o1777)
    planted = Path(host.Host.program.__get__(SimpleNamespace(root=PurePosixPath(place))))
    planted.write_bytes(b"of somebody else")
    server.asked.clear()
    with pytest.raises(HostError, match="others may write to, and what lies there is run") as refused:
        bring(server, study, root="/anybodys")
    assert "--root" in refused.value.mend
    place.chmod(0o770)
    with pytest.raises(HostError, match="others may write to"):
        bring(server, study, root="/anybodys")
    place.chmod(0o755)
    server.greeting = Hostile.greeting.replace(b"unmask-user ", b"unmask-user 1")
    with pytest.raises(HostError, match="belongs to another user"):
        bring(server, study, root="/anybodys")
    assert [command for command in server.asked if "unmask-home" not in command] == []
    assert planted.read_bytes() == b"of somebody else"
    assert [path.name for path in place.iterdir()] == [planted.name]


def test_nothing_is_run_from_where_others_may_put_another_folder(server: Hostile, study: Path) -> None:
    """Whatever link leads there. A machine that was rented for us alone has no others."""
    above, place = server.folder / "above", server.folder / "above" / "mine"
    place.mkdir(parents=True, mode=0o700)
    above.chmod(0o777)
    (server.folder / "leads").symlink_to(place)
    server.asked.clear()
    for root in ("/above/mine", "/leads", "/above/fresh/deep"):
        with pytest.raises(HostError, match="lies in /above, where others may replace it") as refused:
            bring(server, study, root=root)
        assert "--root" in refused.value.mend
    assert [command for command in server.asked if "unmask-home" not in command] == []
    assert not list(place.iterdir())
    access = Access(key=server.key, known_hosts=study.parent / "known", accept_new=True, alias="runpod-1")
    fetch(open_study(study), Address("me", "127.0.0.1", server.port), access, RemoteOrder(root="/leads"))
    above.chmod(0o1777)
    bring(server, study, root="/leads")
    assert {command.split()[2].rpartition("/")[0] for command in server.asked if "unmask-home" not in command} == {
        "/above/mine"
    }, "not by the link, which may lead elsewhere tomorrow"


def test_a_folder_that_was_there_keeps_its_mode(server: Hostile, study: Path) -> None:
    place = server.folder / "shared"
    place.mkdir(mode=0o755)
    bring(server, study, root="/shared")
    assert place.stat().st_mode & 0o777 == 0o755
    bring(server, study, root="/fresh")
    assert (server.folder / "fresh").stat().st_mode & 0o777 == 0o700
    (server.folder / "file").write_bytes(b"")
    with pytest.raises(HostError, match="could not be written"):
        bring(server, study, root="/file/below")
