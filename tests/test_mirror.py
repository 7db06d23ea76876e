"""Mirrors of a study on a worker's disk: those of killed workers go, those of others stay."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from unmask.execution.mirror import Mirror

HOLD = "from unmask.execution.mirror import Mirror; m = Mirror.made(); print(m.folder, flush=True); input()"


def test_mirrors_of_killed_workers_are_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    own = Mirror.made()
    (own.study / "study.yaml").write_text("base: {}")
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().decode().strip())
        (theirs / "study" / "weights").write_bytes(b"large")
        assert own.study.joinpath("study.yaml").is_file(), "that of a living worker stays"
        Mirror.made().drop()
        assert theirs.is_dir()
        other.kill()
    (tmp_path / "unmask-mirror-link").symlink_to(own.folder)
    (tmp_path / "unmask-other").mkdir()
    last = Mirror.made()
    assert not theirs.exists()
    assert own.study.joinpath("study.yaml").is_file()
    own.drop()
    last.drop()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unmask-mirror-link", "unmask-other"]
