"""Does a whole study end in the same bytes elsewhere? Here in one process, over SSH in a new environment, and on a Ray cluster.

    python benchmarks/elsewhere.py                     # the preset demo on SmolLM2: an hour on two cores
    python benchmarks/elsewhere.py --study STUDY.yaml  # another study file

Each side runs every stage of its own copy of one study file, with one thread a process: here; on a real OpenSSH server of this
machine, which is sent this very package and makes an environment of pinned versions from nothing (`--env` serves with this one
instead); and on two Ray nodes of one CPU each. Every file that a stage lists in its manifest is compared by SHA-256, and the
page that is published, too. Replies of `hf/` judges are kept in one cache for all sides: a study with such judges compares less.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # sums are rounded otherwise with more
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # and on a GPU

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from material import machine

from openssh import PASSPHRASE, Relay, running_openssh
from ray_cluster import Cluster
from unmask.artifact import digest_file
from unmask.execution.address import Address
from unmask.execution.ssh import PASSPHRASE_VARIABLE, Access
from unmask.pipeline import STAGE_NAMES, open_study, ray_engine
from unmask.remote.order import Quiet, RemoteOrder
from unmask.remote.running import RemoteRun
from unmask.study_file import preset_text


class Side:
    """One copy of the study, and what its run came to."""

    def __init__(self, name: str, folder: Path, study_file: str) -> None:
        folder.mkdir()
        (folder / "study.yaml").write_text(study_file, encoding="utf-8")
        self.name, self.folder = name, folder
        self.seconds = 0.0
        self.told: dict[str, Any] = {}

    def files(self) -> dict[str, str]:
        """SHA-256 of every file of every stage, and of the page."""
        study = open_study(self.folder).study
        found = {
            f"{stage}/{name}": digest for stage in STAGE_NAMES for name, digest in study.verify(stage).files.items()
        }
        return found | {"report.html": digest_file(self.folder / "report.html")}

    def stage_seconds(self) -> dict[str, float]:
        study = open_study(self.folder).study
        return {stage: study.verify(stage).seconds for stage in STAGE_NAMES}


def run_here(side: Side, scratch: Path) -> None:
    open_study(side.folder).run()


def run_over_ssh(side: Side, scratch: Path, *, env: str | None = None) -> None:
    os.environ[PASSPHRASE_VARIABLE] = PASSPHRASE
    with running_openssh(scratch / "sshd") as server:
        relay = Relay(server.port)
        address = Address(Address.parse(server.url).user, "127.0.0.1", relay.port)
        access = Access(key=server.key, known_hosts=server.known_hosts, accept_new=True)
        order = RemoteOrder(env=env, python=env)
        RemoteRun(open_study(side.folder), address, access, order, Quiet()).run()
        side.told["bytes"] = relay.total
        relay.close()
    del os.environ[PASSPHRASE_VARIABLE]


def run_on_ray(side: Side, scratch: Path) -> None:
    cluster = Cluster(scratch)
    try:
        cluster.add()
        open_study(side.folder).run(engine=ray_engine(address=cluster.address, gpus_per_worker=0))
    finally:
        cluster.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--study", type=Path, default=None, help="a study file; its models must be found from any folder"
    )
    parser.add_argument("--env", action="store_true", help="over SSH: serve with this environment, make none")
    parser.add_argument("--keep", type=Path, default=None, metavar="FOLDER", help="leave the three studies there")
    options = parser.parse_args()
    text = preset_text("demo") if options.study is None else options.study.read_text(encoding="utf-8")
    env = sys.executable if options.env else None
    ways = {"here": run_here, "ssh": lambda side, scratch: run_over_ssh(side, scratch, env=env), "ray": run_on_ray}
    sides: list[Side] = []
    # A short path: a socket of Ray's may have no more than 107 bytes.
    with tempfile.TemporaryDirectory(prefix="elsewhere-", ignore_cleanup_errors=True) as scratch:
        home = options.keep or Path(scratch) / "studies"
        home.mkdir(parents=True, exist_ok=True)
        for name, way in ways.items():
            side = Side(name, home / name, text)
            place = Path(scratch) / name
            place.mkdir()
            began = time.perf_counter()
            way(side, place)
            side.seconds = time.perf_counter() - began
            shutil.rmtree(place, ignore_errors=True)
            sides.append(side)
            print(f"{name}: {side.seconds:.0f} s", flush=True)
        report(sides)


def report(sides: list[Side]) -> None:
    """A table of the sides, the files that differ, and one line of JSON."""
    here, *others = sides
    wanted = here.files()
    differing = {side.name: sorted(_differing(wanted, side.files())) for side in others}
    seconds = {side.name: side.stage_seconds() for side in sides}
    print("| stage | " + " | ".join(side.name for side in sides) + " |")
    print("|---|" + "---|" * len(sides))
    for stage in STAGE_NAMES:
        print(f"| {stage} | " + " | ".join(f"{seconds[side.name][stage]:.1f} s" for side in sides) + " |")
    print("| in all | " + " | ".join(f"{side.seconds:.0f} s" for side in sides) + " |")
    for name, names in differing.items():
        print(
            f"{name}: {len(wanted) - len(names)} of {len(wanted)} files have the bytes of here. Others: {names or 'none'}"
        )
    ratios = {f"{side.name}_over_here": round(side.seconds / here.seconds, 3) for side in others}
    told = {side.name: side.told for side in others if side.told}
    print(
        json.dumps(
            {
                "benchmark": "elsewhere",
                "files": len(wanted),
                "differing": differing,
                "ratios": ratios,
                **told,
                "machine": machine(),
            }
        )
    )


def _differing(wanted: dict[str, str], found: dict[str, str]) -> set[str]:
    return {name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)}


if __name__ == "__main__":
    main()
