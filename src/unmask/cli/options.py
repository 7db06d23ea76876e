"""Arguments and options of several commands, and those that only a rented machine has: names, types and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StudyFolder = Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of the study.", show_default=False)]
MaybeStudyFolder = Annotated[
    Path | None, typer.Argument(metavar="STUDY", help="Folder of the study.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

Until = Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")]
Force = Annotated[bool, typer.Option("--force", help="Run the stage anew although it is done.")]
ForceAll = Annotated[bool, typer.Option("--force", help="Run its stages anew although they are done.")]
ForceStages = Annotated[
    list[str] | None, typer.Option("--force", metavar="STAGE", help="Run this stage anew (repeatable).")
]

On = Annotated[
    str | None,
    typer.Option("--on", metavar="WHERE", help="ssh://USER@HOST:PORT, runpod or runpod:POD_ID. (where it ran last)"),
]
Key = Annotated[
    Path | None,
    typer.Option(help="Private key; its passphrase from RUNPOD_PRIVATE_KEY or a prompt. (an agent, ~/.ssh/id_ed25519)"),
]
KnownHosts = Annotated[Path | None, typer.Option(help="File of known host keys. (~/.ssh/known_hosts)")]
AcceptNew = Annotated[bool, typer.Option("--accept-new", help="Trust a host that is not known yet, without asking.")]
Root = Annotated[
    str | None, typer.Option(help="Folder on the host for all of this. (~/.unmask-remote; on a pod, its volume)")
]
Python = Annotated[str | None, typer.Option(help="The host's Python, 3.11 or newer. (the first that is found)")]
Env = Annotated[
    str | None,
    typer.Option("--env", metavar="PYTHON", help="Python of an environment there that has these versions: make none."),
]
MaxGb = Annotated[float, typer.Option("--max-gb", help="Most that may come back, in GB.")]

Gpu = Annotated[list[str] | None, typer.Option("--gpu", help="RunPod: GPU type, repeatable, in order of preference.")]
Image = Annotated[str | None, typer.Option(help="RunPod: container image of a new pod.")]
DiskGb = Annotated[int | None, typer.Option(help="RunPod: container disk of a new pod.")]
VolumeGb = Annotated[int | None, typer.Option(help="RunPod: volume of a new pod, which survives a stop.")]
Spot = Annotated[bool | None, typer.Option("--spot/--on-demand", help="RunPod: cheaper, and may be taken away.")]
MaxUsdPerHour = Annotated[float | None, typer.Option(help="RunPod: most that a pod may cost an hour.")]
MaxUsd = Annotated[float | None, typer.Option(help="RunPod: the pod is stopped once the run has cost so much.")]
MaxHours = Annotated[float | None, typer.Option(help="RunPod: the pod is stopped after so many hours.")]
After = Annotated[str | None, typer.Option(help="RunPod: stop, terminate or keep the pod afterwards. (stop)")]
