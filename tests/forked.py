"""Processes of their own for `unmask` commands and scripts, forked from a server that has imported torch and the rest already.

Exit codes, locks, kills and what is said are those of a real process; spared is the importing alone, most of a short command's
time. The kernel's argv is the server's: what `ps` shows, and start-up itself, are tested with `python -m unmask`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        *("pytest", "torch", "peft", "trl.trainer.sft_trainer", "transformers.models.llama.modeling_llama"),
        *("sklearn.cluster", "sklearn.linear_model", "scipy.stats", "pyarrow.parquet", "jinja2", "matplotlib.figure"),
        *("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
        *("unmask.cli.app", "unmask.pipeline", "unmask.report"),
    ]
)


class Forked:
    """A running process: `argv` as `sys.argv`, whose first part is `unmask` or the path of a script."""

    def __init__(
        self, argv: Sequence[object], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.argv = [*map(str, argv)]
        self._said = Path(tempfile.mkdtemp(prefix="said-"))
        for name in ("stdout", "stderr"):
            (self._said / name).touch()  # it may be killed before it says anything
        environment = {**(os.environ if env is None else env), "CUDA_VISIBLE_DEVICES": ""}
        self._process = _FORKS.Process(target=_run, args=(self.argv, str(self._said), environment, cwd))
        self._process.start()

    @classmethod
    def unmask(cls, *arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Self:
        return cls(("unmask", *arguments), env=env, cwd=cwd)

    @property
    def runs(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> bool:
        """Send SIGKILL and wait until it is gone: whether it ran until then."""
        self._process.kill()
        return self.result().returncode == -9

    def result(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait for the end: the exit code, negative for a signal, and what was said."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        stdout, stderr = ((self._said / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        shutil.rmtree(self._said)
        assert code is not None, f"{self.argv} took more than {timeout} s: {stdout}{stderr}"
        return subprocess.CompletedProcess(self.argv, code, stdout, stderr)


def ended(*arguments: object, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """The exit code of `unmask ARGUMENTS` and all that it said."""
    result = Forked.unmask(*arguments, env=env).result()
    return result.returncode, result.stdout + result.stderr


def _run(argv: list[str], said: str, environment: dict[str, str], cwd: Path | None) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        with (Path(said) / name).open("w") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    sys.argv = argv
    if argv[0] == "unmask":
        from unmask.cli import main

        main()
    else:
        sys.path[0] = str(Path(argv[0]).parent)
        runpy.run_path(argv[0], run_name="__main__")
