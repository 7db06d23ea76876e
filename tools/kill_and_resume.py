"""Kill a study at random moments, finish it, and compare every artifact's bytes with an uninterrupted run's.

    python tools/kill_and_resume.py FINISHED_STUDY NEW_STUDY [--kills 10] [--seed 0]

FINISHED_STUDY is a study that ran through without a break; NEW_STUDY gets its study.yaml. Prints each moment and the verdict;
exits with 1 when a byte differs. Times live only in manifests, which are not compared.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from unmask.artifact import digest_file

LEFT_OUT = ("manifest.json", ".lock")


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): digest_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in LEFT_OUT
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("finished", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    seconds = sum(json.loads(path.read_text())["seconds"] for path in options.finished.glob("*/manifest.json"))
    options.new.mkdir(parents=True)
    for name in ("study.yaml", ".unmask.json"):
        if (options.finished / name).is_file():
            shutil.copyfile(options.finished / name, options.new / name)
    moments = random.Random(options.seed)
    command = [sys.executable, "-m", "unmask", "run", str(options.new)]
    for number in range(options.kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        wait = moments.uniform(10, 10 + 1.6 * seconds / options.kills)
        try:
            process.wait(timeout=wait)
            print(f"kill {number + 1}: the study was finished before {wait:.0f} s")
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        done = sorted(path.parent.name for path in options.new.glob("*/manifest.json"))
        work = [path.name for path in (options.new / ".scratch").glob("*")]
        print(
            f"kill {number + 1} after {wait:.0f} s: finished {', '.join(done) or 'nothing'}; in work {', '.join(work)}",
            flush=True,
        )
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    expected, found = digests(options.finished), digests(options.new)
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    print(f"last run ended with {code}; {len(expected)} files, {len(differing)} differ", *differing, sep="\n  ")
    return 1 if code or differing else 0


if __name__ == "__main__":
    sys.exit(main())
