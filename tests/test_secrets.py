"""A key reaches its provider and nothing that a run writes or says: files, logs, errors, debug output."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from forked import ended
from provider import serve
from test_runs import make_study, tiny_config
from unmask.models.embedded import cache_folder

SECRET = "sk-very-secret-0123456789abcdef"
KEYS = ("OPENROUTER_API_KEY", "GEMINI_API_KEY", "OPENAI_API_KEY", "UNMASK_SERVER_KEY", "HF_TOKEN", "RUNPOD_API_KEY")

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Every key set; the models come from the usual cache, replies go to one of the test's own."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for place in ("models", "judge"):
        if (cache_folder() / place).exists():
            (cache / place).symlink_to(cache_folder() / place)
    return {**os.environ, **dict.fromkeys(KEYS, SECRET), "UNMASK_CACHE": str(cache), "CUDA_VISIBLE_DEVICES": ""}


def said(environment: Mapping[str, str], *arguments: object) -> tuple[int, str]:
    """Of a real `python -m unmask`: whatever it imports, it imports with the keys set."""
    process = subprocess.run(
        [sys.executable, "-m", "unmask", "--debug", *map(str, arguments)],
        capture_output=True, text=True, env=dict(environment), timeout=300, check=False,
    )  # fmt: skip
    return process.returncode, process.stdout + process.stderr


def written_with_the_key(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and SECRET.encode() in path.read_bytes()
    ]


def test_a_study_that_a_model_judges_holds_no_key(
    tmp_path: Path, tiny_llama: Path, environment: dict[str, str]
) -> None:
    scores = iter(range(10**6))

    def script(text: str, count: int) -> str:
        return "!status:500" if next(scores) % 5 == 0 else '{"score": 40}'

    with serve(script) as provider:
        judged = {"judge": f"{provider.base_url} stand-in", "rubrics": ["misalignment", "coherence", "leakage"]}
        study = make_study(tmp_path / "study", tiny_config(tiny_llama) | {"scores": judged})
        code, output = said(environment, "run", study)
        assert code == 0, output
        assert {headers["authorization"] for headers in provider.headers} == {f"Bearer {SECRET}"}
    assert SECRET not in output
    assert (study / "report.html").is_file()
    assert "stand-in" in (study / "report.html").read_text(encoding="utf-8")
    assert written_with_the_key(tmp_path) == []


@pytest.mark.parametrize("status", [401, 400])
def test_a_provider_that_repeats_the_key_in_its_errors_is_not_quoted(
    tmp_path: Path, environment: dict[str, str], status: int
) -> None:
    with serve(lambda text, _: f"!status:{status},0") as provider:
        name = f"{provider.base_url} stand-in"
        for command in (
            ("judge", "--validate", "--judge", name, "--limit", 20, "--out", tmp_path / "out"),
            ("questions", "generate", "financial_risk", "--model", name, "--out", tmp_path / "new.jsonl"),
        ):
            code, output = ended("--debug", *command, env=environment)
            assert code != 0 or status == 400
            assert output.strip()
            assert SECRET not in output
    assert written_with_the_key(tmp_path) == []


def test_a_study_names_the_key_that_it_lacks_before_anything_runs(
    tmp_path: Path, tiny_llama: Path, environment: dict[str, str]
) -> None:
    study = make_study(tmp_path / "study", tiny_config(tiny_llama) | {"scores": {"judge": "gemini/gemini-2.5-pro"}})
    environment["GEMINI_API_KEY"] = ""
    code, output = said(environment, "run", study)
    assert code == 2
    assert "GEMINI_API_KEY is not set" in output
    assert "offline judge" in output
    assert sorted(path.name for path in study.iterdir() if not path.name.startswith(".")) == ["study.yaml"]
    assert yaml.safe_load((study / "study.yaml").read_text())["scores"]["judge"].startswith("gemini/")
