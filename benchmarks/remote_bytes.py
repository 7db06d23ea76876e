"""What does a second `unmask remote run` send, with nothing changed? Bytes on the wire, both ways, through a real OpenSSH server.

    python benchmarks/remote_bytes.py STUDY    # a study that is done

The study is copied and run on the loopback interface, where this very environment serves (`--env`): the first run sends all of
it and computes nothing, the second finds all of it there. A relay between client and server counts, handshake and all.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from openssh import PASSPHRASE, Relay, running_openssh
from unmask.execution.address import Address
from unmask.execution.ssh import PASSPHRASE_VARIABLE, Access
from unmask.pipeline import open_study
from unmask.remote.order import Quiet, RemoteOrder
from unmask.remote.running import RemoteRun

GOAL = 100_000


def measure_second_run(study: Path, *, scratch: Path) -> dict[str, int]:
    """Bytes of a first and of a second remote run of a finished study, and its files. `scratch` is a folder to work in."""
    copy = study.absolute().parent / f".{study.name}.remote-bytes"  # beside it: what it refers to is found from there
    shutil.copytree(study, copy, ignore=shutil.ignore_patterns("remote.json", ".lock"))
    before = os.environ.get(PASSPHRASE_VARIABLE)
    os.environ[PASSPHRASE_VARIABLE] = PASSPHRASE
    try:
        with running_openssh(scratch) as server:
            access = Access(key=server.key, known_hosts=server.known_hosts, accept_new=True)
            order = RemoteOrder(env=sys.executable, python=sys.executable, even_if_done=True)
            found = {"files": sum(path.is_file() for path in copy.rglob("*"))}
            for name in ("first_bytes", "second_bytes"):
                relay = Relay(server.port)
                address = Address(Address.parse(server.url).user, "127.0.0.1", relay.port)
                RemoteRun(open_study(copy), address, access, order, Quiet()).run()
                found[name] = relay.total
                relay.close()
            return found
    finally:
        shutil.rmtree(copy)
        if before is None:
            del os.environ[PASSPHRASE_VARIABLE]
        else:
            os.environ[PASSPHRASE_VARIABLE] = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a study that is done")
    study = parser.parse_args().study
    with tempfile.TemporaryDirectory() as scratch:
        found: dict[str, Any] = measure_second_run(study, scratch=Path(scratch) / "sshd")
    print(
        f"{found['files']} files; first run {found['first_bytes']:,} bytes, second {found['second_bytes']:,} (goal < {GOAL:,})"
    )
    ratios = {"second_over_goal": round(found["second_bytes"] / GOAL, 4)}
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    print(json.dumps({"benchmark": "remote_bytes", **found, "ratios": ratios, "machine": machine}))


if __name__ == "__main__":
    main()
