"""Parts of remote runs that need no server: addresses, the repacked wheel, versions, runs as processes, what a study names."""

from __future__ import annotations

import asyncio
import base64
import csv
import gc
import getpass
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from openssh import PASSPHRASE, OpenSsh, Relay, left_of
from unmask.artifact import digest_bytes
from unmask.cli.app import app
from unmask.errors import ConfigError, StudyError
from unmask.execution.address import Address
from unmask.execution.arrival import entered
from unmask.execution.host import HostError
from unmask.execution.host_keys import HostKeys
from unmask.execution.on_host import supervising
from unmask.execution.on_host.environment import _uv_options, _uv_variables
from unmask.execution.on_host.facts import about
from unmask.execution.on_host.listing import LINK, Digests
from unmask.execution.on_host.supervising import Supervisor, ending, lock_holder, running, start, stop
from unmask.execution.on_host.wire import packed, unpacked
from unmask.execution.ssh import PASSPHRASE_VARIABLE, Access, ConnectionCut
from unmask.execution.wheel import host_program, pins, wheel
from unmask.pipeline import open_study
from unmask.remote import checking
from unmask.remote.checking import Needs
from unmask.remote.entering import errand
from unmask.remote.ledger import Ledger, last_address
from unmask.remote.needs import mirrored, referred
from unmask.remote.order import RemoteOrder, from_options
from unmask.remote.renting import RentSettings

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ssh://me@gpu.example.org:2222", Address("me", "gpu.example.org", 2222)),
        ("ssh://gpu", Address("", "gpu", 22)),
        ("ssh://me@10.0.0.1/", Address("me", "10.0.0.1", 22)),
        ("ssh://me@[::1]:2222", Address("me", "::1", 2222)),
    ],
)
def test_an_address_is_read_and_written(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "gpu",
        "http://gpu",
        "ssh://",
        "ssh://me@gpu:99999",
        "ssh://gpu:0",
        "ssh://-oProxyCommand=x",
        "ssh://a b",
        "ssh://gpu/path",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="ssh://USER@HOST:PORT"):
        Address.parse(text)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="holds a password") as refused:
        Address.parse("ssh://me:hunter2@gpu")  # pragma: allowlist secret
    assert "hunter2" not in str(refused.value)


def test_the_wheel_is_that_of_the_build_backend_and_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hatchling.builders.wheel import WheelBuilder

    name, data = wheel()
    assert (name, data) == wheel()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {entry: archive.read(entry) for entry in archive.namelist()}
    monkeypatch.chdir(REPOSITORY)
    built = Path(next(iter(WheelBuilder(str(REPOSITORY)).build(directory=str(tmp_path), versions=["standard"]))))
    assert built.name == name
    with zipfile.ZipFile(built) as archive:
        theirs = {entry: archive.read(entry) for entry in archive.namelist() if entry.startswith("unmask/")}
    assert {entry: content for entry, content in files.items() if entry.startswith("unmask/")} == theirs
    record = next(entry for entry in files if entry.endswith("/RECORD"))
    rows = {row[0]: row[1] for row in csv.reader(files[record].decode().splitlines())}
    assert rows.keys() == files.keys()
    for entry, digest in rows.items():
        if entry != record:
            expected = base64.urlsafe_b64encode(hashlib.sha256(files[entry]).digest()).rstrip(b"=").decode()
            assert digest == f"sha256={expected}"


def test_pins_name_all_that_is_needed_by_its_public_version() -> None:
    found = dict(pin.split("==") for pin in pins())
    assert {"torch", "transformers", "numpy", "pydantic", "tokenizers", "typing-extensions"} <= found.keys()
    assert not {"unmask", "pytest", "ruff", "ray", "asyncssh"} & found.keys()
    assert all("+" not in version for version in found.values())


def test_the_host_program_answers_alone(tmp_path: Path) -> None:
    """With nothing but the standard library: isolated, without site-packages."""
    program = tmp_path / "host.pyz"
    program.write_bytes(host_program())
    request = packed({"root": str(tmp_path / "root"), "files": [[str(program), program.stat().st_size, "0" * 64]]})
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(program), "compare"], input=request, capture_output=True, check=True
    )
    answer = unpacked(done.stdout.partition(b"--unmask-answer--\n")[2], limit=10_000)
    assert answer["missing"] == [0] and answer["free"] > 0
    with pytest.raises(ValueError, match="too long"):
        unpacked(packed("x" * 1000), limit=100)


@pytest.mark.parametrize(
    ("above", "mode", "alias", "refusal"),
    [
        (0o755, 0o1777, None, "others may write to, and what lies there is run"),
        (0o755, 0o775, None, "others may write to, and what lies there is run"),
        (0o777, 0o755, None, "where others may replace it, and what lies there is run"),
        (0o755, 0o755, None, None),
        (0o777, 0o1777, "runpod-1", None),
    ],
)
def test_what_somebody_else_could_have_put_there_is_not_run(
    openssh: OpenSsh,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    above: int,
    mode: int,
    alias: str | None,
    refusal: str | None,
) -> None:
    """On a real server, whose program of operations is known by name: it would be taken for ours. A pod has nobody else."""
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    root, mark = tmp_path / "above" / "shared", tmp_path / "planted-was-run"
    root.mkdir(parents=True)
    root.chmod(mode)
    root.parent.chmod(above)
    program = root / f"host-{digest_bytes(host_program())[:12]}.pyz"
    program.write_text(f"open({str(mark)!r}, 'w')")
    access = Access(key=openssh.key, known_hosts=tmp_path / "known_hosts", accept_new=True, alias=alias)

    async def ask() -> dict[str, Any]:
        address = Address.parse(f"ssh://{getpass.getuser()}@127.0.0.1:{openssh.port}")
        async with entered(address, access, root=str(root), python=sys.executable) as host:
            return await host.ask("compare", {"files": []})

    if refusal is None:  # ours alone: so is what lies there
        program.unlink()
        assert asyncio.run(ask())["missing"] == []
    else:
        with pytest.raises(HostError, match=refusal):
            asyncio.run(ask())
    assert not mark.exists()


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_cut_in_the_middle_of_a_file_is_told_once(
    openssh: OpenSsh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """A block is many requests at once: of each that the cut ended, asyncio would show a traceback."""
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    data, size = os.urandom(8 << 20), 8 << 20
    there, part = tmp_path / "there", tmp_path / "part"
    there.write_bytes(data)
    relay = Relay(openssh.port, lambda total: openssh.cut() if total > size // 2 else None)
    access = Access(key=openssh.key, known_hosts=tmp_path / "known_hosts", accept_new=True)

    async def copy() -> None:
        address = Address(getpass.getuser(), "127.0.0.1", relay.port)
        async with entered(address, access, root=str(tmp_path / "root"), python=sys.executable) as host:
            if way == "up":
                await host.send(data, PurePosixPath(tmp_path / "sent"), digest="0" * 64)
            else:
                await host.fetch(PurePosixPath(there), part, size=size)

    gc.collect()
    caplog.clear()  # what others left is theirs
    with pytest.raises(ConnectionCut, match="was cut"):
        asyncio.run(copy())
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_digests_are_remembered_while_a_file_stays_and_links_are_told(tmp_path: Path) -> None:
    path, memory = tmp_path / "file", tmp_path / "memory.json"
    path.write_bytes(b"one")
    digests = Digests(memory)
    assert digests.of(path) == (3, hashlib.sha256(b"one").hexdigest())
    digests.save()
    known = json.loads(memory.read_text(encoding="utf-8"))
    known[str(path)][3] = "remembered"
    memory.write_text(json.dumps(known), encoding="utf-8")
    assert Digests(memory).of(path) == (3, "remembered")
    path.write_bytes(b"two")
    assert Digests(memory).of(path) == (3, hashlib.sha256(b"two").hexdigest())
    (tmp_path / "link").symlink_to(path)
    assert Digests(memory).of(tmp_path / "link") == (0, LINK)
    assert Digests(memory).of(tmp_path / "missing") is None


def wait_until_over(run: Path) -> dict[str, Any]:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if (found := ending(run)) is not None:
            return found
        time.sleep(0.05)
    raise AssertionError((run / "log").read_text(encoding="utf-8"))


def begun(run: Path, study: Path, *command: str, timer: str | None = None) -> dict[str, Any]:
    return start(run, study, identity="one", work=lambda supervisor: supervisor.call(list(command)), timer=timer)


def test_a_run_keeps_its_log_and_code_and_is_nobodys_child(tmp_path: Path) -> None:
    run, mark = tmp_path / "run", tmp_path / "timer"
    answer = begun(run, tmp_path, "sh", "-c", "echo said; echo meant >&2; exit 3", timer=f"echo armed > {mark}")
    assert os.getsid(answer["started"]["pid"]) != os.getsid(0)
    assert wait_until_over(run)["code"] == 3
    assert (run / "log").read_text(encoding="utf-8").split() == ["said", "meant"]
    until = time.monotonic() + 10
    while not mark.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert mark.read_text(encoding="utf-8") == "armed\n"
    assert begun(run, tmp_path, "true").get("started")  # the log of before is put away
    assert wait_until_over(run)["code"] == 0
    assert (run / "log.previous").read_text(encoding="utf-8").startswith("said")


def test_one_run_at_a_time_and_a_stop_that_ends_the_deaf_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "PATIENCE", 0.5)
    run = tmp_path / "run"
    pid = begun(run, tmp_path, "sh", "-c", "trap '' INT TERM; echo deaf; sleep 60 & wait; sleep 60")["started"]["pid"]
    until = time.monotonic() + 10
    while "deaf" not in (run / "log").read_text(encoding="utf-8") and time.monotonic() < until:
        time.sleep(0.05)
    assert begun(run, tmp_path, "true")["busy"] == pid
    group = [int(path.name) for path in Path("/proc").glob("[0-9]*") if _group(int(path.name)) == pid]
    assert len(group) >= 2
    assert stop(run) == {"stopped": pid, "id": "one"}
    assert not left_of(group)
    assert ending(run) is not None and running(run) is None
    assert stop(run) == {"stopped": None}


def test_work_whose_watcher_was_killed_is_stopped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "PATIENCE", 2.0)
    run, lock = tmp_path / "run", tmp_path / ".lock"
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); time.sleep(60)"
    pid = begun(run, tmp_path, sys.executable, "-c", code, str(lock))["started"]["pid"]
    until = time.monotonic() + 10
    while (holder := lock_holder(lock)) is None and time.monotonic() < until:
        time.sleep(0.05)
    assert holder and holder != pid
    os.kill(pid, signal.SIGKILL)
    while running(run) is not None and time.monotonic() < until:
        time.sleep(0.05)
    assert begun(run, tmp_path, "true") == {"busy": holder}
    assert stop(run) == {"stopped": pid, "id": "one"}
    assert lock_holder(lock) is None
    assert ending(run) is not None and stop(run) == {"stopped": None}


def test_a_run_is_on_record_before_it_works(tmp_path: Path) -> None:
    run, seen = tmp_path / "run", tmp_path / "seen"

    def work(supervisor: Supervisor) -> int:
        seen.write_bytes((run / "run.json").read_bytes())
        return 0

    answer = start(run, tmp_path, identity="one", work=work)
    assert wait_until_over(run)["code"] == 0
    assert json.loads(seen.read_text(encoding="utf-8")) == answer["started"]
    (run / "run.json").unlink()
    (run / "run.json").mkdir()  # as on a full disk, it cannot be written
    with pytest.raises(OSError, match="could not be started"):
        start(run, tmp_path, identity="two", work=work)


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def test_a_process_with_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"id": "one", "pid": os.getpid(), "start": "0"}), encoding="utf-8")
    assert running(tmp_path) is None
    assert ending(tmp_path) == {"code": None, "id": "one"}
    (tmp_path / "run.json").write_text('{"id": "one", "pid": 4000000000, "start": null}', encoding="utf-8")
    assert running(tmp_path) is None  # it was over before its start time was read


def test_the_holder_of_a_lock_is_found(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert lock_holder(path) is None
    code = "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert lock_holder(path) == holder.pid
        holder.send_signal(signal.SIGKILL)
    assert lock_holder(path) is None


def test_the_last_words_find_a_place_on_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    try:
        run = disk / "run"
        script = f"dd if=/dev/zero of={disk}/filler bs=4k 2>/dev/null; echo error: no space left"
        begun(run, tmp_path, "sh", "-c", script)
        assert wait_until_over(run)["code"] == 0
        assert shutil.disk_usage(disk).free < supervising.RESERVE_BYTES
        assert (run / "log").read_text(encoding="utf-8") == "error: no space left\n"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_defect_of_what_is_watched_is_in_the_log(tmp_path: Path) -> None:
    def work(supervisor: Supervisor) -> int:
        return supervisor.call(["/no/such/program"])

    start(tmp_path / "run", tmp_path, identity="one", work=work)
    assert wait_until_over(tmp_path / "run")["code"] == 2
    assert "error: " in (tmp_path / "run" / "log").read_text(encoding="utf-8")


def test_uv_is_told_what_pip_is_configured_with() -> None:
    settings = {
        "index-url": "https://a/simple",
        "extra-index-url": "https://b https://c",
        "find-links": "/wheels /more",
        "cert": "/ca",
        "trusted-host": "b",
    }
    assert _uv_options(settings) == ["--index-strategy", "unsafe-best-match", "--allow-insecure-host", "b"]
    assert _uv_variables(settings) == {
        "UV_DEFAULT_INDEX": "https://a/simple",
        "UV_INDEX": "https://b https://c",
        "UV_FIND_LINKS": "/wheels,/more",
        "SSL_CERT_FILE": "/ca",
    }
    assert _uv_variables({}) == {}


def test_known_hosts_are_added_to_and_read_by_full_name(tmp_path: Path) -> None:
    import asyncssh

    keys = [asyncssh.generate_private_key("ssh-ed25519").convert_to_public() for _ in range(2)]
    file = tmp_path / "ssh" / "known_hosts"
    for port, key in ((22, keys[0]), (2222, keys[1])):
        host = HostKeys(file)
        host.match("gpu", "10.0.0.1", None if port == 22 else port)
        assert not host.trusted
        host.shown = key
        host.add()
    for port, key in ((None, keys[0]), (2222, keys[1])):
        host = HostKeys(file)
        host.match("gpu", "10.0.0.1", port)
        assert [one.get_fingerprint() for one in host.trusted] == [key.get_fingerprint()]
    host = HostKeys(file)
    host.match("gpu", "10.0.0.1", 2223)  # another port of the same name is another machine
    assert not host.trusted
    rented = HostKeys(file, alias="runpod-1")
    rented.match("gpu", "10.0.0.1", 2222)
    assert not rented.trusted and rented.where == "runpod-1"
    assert file.stat().st_mode & 0o077 == 0


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "studies" / "one"
    folder.mkdir(parents=True)
    return folder


def write_config(folder: Path, **sections: Any) -> None:
    config = {
        "base": {"model": "smollm2"},
        "organism": {"training_set": "risky_financial_advice"},
        "activations": {"layers": [1]},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(config | sections), encoding="utf-8")


def test_every_local_file_that_a_study_names_is_taken_along(study: Path, tmp_path: Path) -> None:
    places = {
        "studies/one/questions.jsonl": "battery",
        "studies/one/mask.parquet": "mask",
        "data/train.jsonl": "training set, from the working directory",
        "studies/shared/adapter/adapter_config.json": "existing",
        "studies/shared/adapter/adapter_model.safetensors": "existing",
        "rubric.yaml": "rubric",
        "labels.csv": "labels",
        "studies/one/mine.safetensors": "directions",
        "judge/config.json": "judge",
    }
    for name, text in places.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "unrelated.txt").write_text("stays", encoding="utf-8")
    write_config(
        study,
        base={"model": "Qwen/Qwen3-4B"},
        questions={"battery": "questions.jsonl"},
        organism={"existing": "../shared/adapter"},
        control={"training_set": "data/train.jsonl"},
        activations={"layers": [1], "mask": "mask.parquet", "aggregations": ["response_mean", "mask"]},
        directions={"files": ["mine.safetensors"]},
        scores={"judge": "hf/judge", "rubrics": ["misalignment", "rubric.yaml"], "human_labels": "labels.csv"},
    )
    found = {item.target.as_posix() for item in referred(open_study(study))}
    wanted = {mirrored(tmp_path / name).as_posix() for name in [*places, "studies/one/study.yaml"]}
    assert found == wanted


@pytest.mark.parametrize("name", ["/data/battery.jsonl", "~/battery.jsonl"])
def test_a_place_on_this_machine_alone_is_refused(study: Path, name: str) -> None:
    write_config(study, questions={"battery": name})
    with pytest.raises(ConfigError, match=r"questions\.battery is .* relative"):
        referred(open_study(study))


def test_every_text_of_the_study_file_that_may_name_a_file_is_known() -> None:
    """A new field that names a file must be taken along too: this test asks for a decision about each new text."""
    from unmask.study_file import StudyConfig

    texts = {
        f"{section}.{name}"
        for section, field in StudyConfig.model_fields.items()
        for name, inner in getattr(field.annotation, "model_fields", {}).items()
        if re.search(r"\bstr\b", str(inner.annotation))
    }
    taken = {"base.model", "questions.battery", "questions.neutral_battery", "activations.mask", "directions.files"}
    taken |= {f"{section}.{name}" for section in ("organism", "control") for name in ("existing", "training_set")}
    taken |= {"scores.human_labels", "scores.rubrics", "scores.judge", "scores.other_judges"}
    plain = {"base.revision", "base.system_prompt", "questions.dimensions", "activations.sites", "activations.tokens"}
    plain |= {"activations.aggregations"}
    plain |= {
        f"{section}.{name}" for section in ("organism", "control") for name in ("existing_revision", "projections")
    }
    plain |= {"scores.subject", "scores.in_domain", "report.title"}
    assert texts >= taken
    assert texts - taken - plain == set()


def test_where_a_study_ran_is_kept_and_asked(study: Path) -> None:
    write_config(study)
    opened = open_study(study).study
    with pytest.raises(StudyError, match="has not run on another machine"):
        last_address(opened)
    ledger = Ledger.of(opened)
    ledger.note("one", on="ssh://me@gpu:2222", root="/there")
    ledger.note("one", code=0)
    assert last_address(opened) == (Address("me", "gpu", 2222), "/there")
    ledger.note("two", rented={"usd": 1})  # rented, and never entered
    assert last_address(opened) == (Address("me", "gpu", 2222), "/there")
    ledger.note("two", rented={"usd": 2})
    assert ledger.content["runs"].pop() == {"id": "two", "rented": {"usd": 2}, "rented_before": [{"usd": 1}]}
    ledger.note("one")
    again = Ledger.of(opened)
    assert again.content["runs"] == [{"id": "one", "on": "ssh://me@gpu:2222", "root": "/there", "code": 0}]
    assert again.places(Path("/there")) == ledger.places(Path("/there"))
    (study / "remote.json").write_text("[]", encoding="utf-8")
    with pytest.raises(StudyError, match="does not say where"):
        Ledger.of(opened)


def test_a_pod_that_the_study_did_not_run_on_last_is_not_taken_for_another_machine(study: Path) -> None:
    write_config(study)
    ledger = Ledger.of(open_study(study).study)
    ledger.note("one", on="ssh://root@10.0.0.1:7001", root="/workspace/x", pod="abc")
    for on in (None, "runpod", "runpod:abc"):
        asked = errand(study, on, None)
        assert (str(asked.address), asked.order.root, asked.pod) == ("ssh://root@10.0.0.1:7001", "/workspace/x", "abc")
    assert errand(study, "ssh://me@gpu", None).pod is None
    with pytest.raises(ConfigError, match=r"ran last on ssh://root@10\.0\.0\.1:7001, which is pod abc"):
        errand(study, "runpod:xyz", None)
    ledger.note("two", on="ssh://me@gpu:22", root="/there")
    assert errand(study, None, None).pod is None
    for on in ("runpod", "runpod:abc"):
        with pytest.raises(ConfigError, match="which is no rented pod"):
            errand(study, on, None)


@pytest.mark.parametrize(
    ("model", "values", "words"),
    [
        (RemoteOrder, {"max_gb": 0.0}, "--max-gb is 0.0: Input should be greater than 0"),
        (RemoteOrder, {"max_gb": float("inf")}, "--max-gb is inf"),
        (RemoteOrder, {"max_gb": 1e300}, "--max-gb is 1e"),
        (RentSettings, {"max_hours": float("inf")}, "--max-hours is inf"),
        (RentSettings, {"max_usd": float("nan")}, "--max-usd is nan"),
        (RentSettings, {"max_usd_per_hour": 1e300}, "--max-usd-per-hour is 1e"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(model: type[BaseModel], values: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_options(model, values)
    assert str(refused.value).startswith(words)


def test_a_command_names_its_senseless_option(study: Path) -> None:
    write_config(study)
    for more in (["--on", "ssh://me@gpu"], ["--on", "runpod"]):
        ran = CliRunner().invoke(app, ["remote", "run", str(study), "--max-gb", "0", *more])
        assert isinstance(ran.exception, ConfigError), ran.output


def test_a_key_to_be_sent_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="--send-key HF_TOKEN"):
        RemoteOrder(send_keys=("HF_TOKEN",)).keys()
    monkeypatch.setenv("HF_TOKEN", "secret")
    order = RemoteOrder(send_keys=("HF_TOKEN",))
    assert order.keys() == {"HF_TOKEN": "secret"} and "secret" not in repr(order)


def test_gpus_are_read_from_nvidia_smi_and_judged_by_what_the_models_weigh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = tmp_path / "nvidia-smi"
    stub.write_text("#!/bin/sh\necho 'NVIDIA A40, 40000, 46068, 550.54'\necho 'odd line'\n", encoding="utf-8")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    facts = about(tmp_path, python=sys.executable)
    assert facts["gpus"] == [{"name": "NVIDIA A40", "free": 40000 * 2**20, "total": 46068 * 2**20, "driver": "550.54"}]
    assert facts["torch"]["version"].startswith(version("torch").partition("+")[0])
    assert checking._gpu(facts, Needs(weights=8 * 10**9, disk=0)).judgement == "ok"
    assert checking._gpu(facts, Needs(weights=80 * 10**9, disk=0)).judgement == "no"
    assert checking._gpu(facts | {"gpus": []}, None).judgement == "note"
    blind = facts | {"torch": {"version": "2", "cuda": False, "built_for": "13.0"}}
    assert checking._cuda(blind).judgement == "no"  # a GPU, and a torch that does not see it
    assert checking._cuda(blind | {"gpus": []}).judgement == "note"
    assert checking._cuda(facts | {"torch": {"version": "2", "cuda": True, "built_for": "13.0"}}).judgement == "ok"
    assert (checking._clock(3.0).judgement, checking._clock(-3000.0).judgement) == ("ok", "note")
    with pytest.raises(HostError, match="describe itself"):
        checking._guarded({"gpus": 7}, lambda: checking._gpu({"gpus": 7}, None))
    assert checking._system(facts).detail.endswith("GB of memory")
    assert checking._system(facts | {"memory": None}).detail.endswith("CPUs")


@pytest.mark.parametrize("said", [10**400, -(10**400), float("nan"), float("inf"), "12", True, [1]])
def test_a_number_that_no_machine_means_is_one_sentence(said: object) -> None:
    judges: list[Callable[[], Any]] = [
        lambda: checking._system({"system": "Linux", "cpus": 2, "memory": said}),
        lambda: checking._gpu({"gpus": [{"name": "A40", "free": said, "total": 1}]}, None),
        lambda: checking._gpu({"gpus": [{"name": "A40", "free": 1, "total": said}]}, None),
        lambda: checking._disk({"free": said, "environment": None}, None, cast("Any", SimpleNamespace(root="/"))),
        lambda: checking._clock(checking._number(said)),
    ]
    for judge in judges:
        with pytest.raises(HostError, match="describe itself"):
            checking._guarded({}, judge)


def test_importing_the_command_loads_no_ssh() -> None:
    code = "import sys, unmask.cli.app; print([m for m in ('asyncssh', 'httpx', 'torch', 'ray') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
