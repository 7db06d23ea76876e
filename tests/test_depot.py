"""The depot between machines that share no path: whole files or none, and nothing outside the study."""

from __future__ import annotations

from pathlib import Path

import pytest

from unmask.errors import ConfigError, StudyError
from unmask.execution.depot import Depot
from unmask.execution.shipping import inside


@pytest.fixture(params=["file", "memory"])
def depot(request: pytest.FixtureRequest, tmp_path: Path) -> Depot:
    place = f"file://{tmp_path}/depot" if request.param == "file" else f"memory://{tmp_path.name}"
    return Depot.at(place)


def test_what_is_sent_comes_back_and_is_sent_once(depot: Depot, tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    for path, content in ((one, b"a"), (same, b"a"), (other, b"b")):
        path.write_bytes(content)
    digests = depot.send({"x/one": one, "x/same": same, "other": other})
    assert digests["x/one"] == digests["x/same"]
    assert len(depot.system.ls(f"{depot.path}/files", detail=False)) == 2
    depot.fetch(digests["other"], tmp_path / "back" / "other")
    assert (tmp_path / "back" / "other").read_bytes() == b"b"
    depot.drop([depot.place_of(digests["other"]), "never/there"])
    with pytest.raises(StudyError, match="something is missing there"):
        depot.fetch(digests["other"], tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_changed_file_is_not_taken(depot: Depot, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"sound")
    digest = depot.send({"one": tmp_path / "one"})["one"]
    depot.system.pipe_file(f"{depot.path}/{depot.place_of(digest)}", b"hostile")
    with pytest.raises(StudyError, match="does not match its checksum"):
        depot.fetch(digest, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_half_a_record_is_no_record(depot: Depot) -> None:
    assert depot.noted("stage/needs.json") is None
    depot.note("stage/needs.json", {"a": "b"})
    assert depot.noted("stage/needs.json") == {"a": "b"}
    depot.system.pipe_file(f"{depot.path}/stage/needs.json", b'{"a": ')
    assert depot.noted("stage/needs.json") is None


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../b", ""])
def test_a_name_that_leads_out_of_the_study_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="outside the study"):
        inside(tmp_path, name)
    assert inside(tmp_path, "a/b") == tmp_path / "a" / "b"


def test_an_unknown_protocol_is_named_without_what_is_secret() -> None:
    with pytest.raises(ConfigError, match=r"nosuch://host/x cannot be opened") as caught:
        Depot.at("nosuch://me:hunter2@host/x?key=hunter2")
    assert "hunter2" not in str(caught.value)
