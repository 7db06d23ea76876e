"""Opens a study's stages as workers do, with shards that raise, kill their worker, or take their time: what a defect or a full
memory does.

Which shards those are stands in `poison.json` beside the study's folder: {"raise": [names], "kill": {name: times}, "hold":
{name: file}, "meet": workers}. One that is held waits for that file beside the study; where workers meet, none makes a shard
before so many of them are about to.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unmask import pipeline
from unmask.execution.task import Task


def open_task(folder: str, stage: str) -> Task:
    task = pipeline.open_task(folder, stage)
    plan = json.loads((Path(folder).parent / "poison.json").read_text())
    return dataclasses.replace(
        task, stage=dataclasses.replace(task.stage, work=_poisoned(task.stage.work, plan, folder))
    )


def _poisoned(work_of: Any, plan: dict[str, Any], folder: str) -> Any:
    def work(*arguments: Any) -> Any:
        work = work_of(*arguments)
        opened = work.opened

        @contextmanager
        def poisoned():
            with opened() as make:

                def bad(shard: Any, told: Any) -> None:
                    if shard.name in plan.get("raise", ()):
                        raise ValueError("a bad shard")
                    _meet(plan.get("meet", 0), Path(folder).parent)
                    if shard.name in plan.get("hold", {}):
                        _wait_for(Path(folder).parent / plan["hold"][shard.name])
                    for number in range(plan.get("kill", {}).get(shard.name, 0)):
                        mark = Path(folder).parent / f"killed-{shard.name}-{number}"
                        if not mark.exists():
                            mark.touch()
                            os.kill(os.getpid(), signal.SIGKILL)
                    make(shard, told)

                yield bad

        work.opened = poisoned
        return work

    return work


def _meet(workers: int, folder: Path) -> None:
    if workers:
        (folder / f"at-work-{os.getpid()}").touch()
        while len([*folder.glob("at-work-*")]) < workers:
            time.sleep(0.05)


def _wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.05)
