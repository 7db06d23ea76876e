"""Making a pod: which GPU type, at what price, with whose keys, and what is asked for."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unmask.errors import ConfigError, UnmaskError, listed
from unmask.execution.runpod import wire
from unmask.execution.runpod.asking import OutOfStock
from unmask.execution.runpod.client import RunPod
from unmask.execution.runpod.settings import VOLUME_PATH, RentSettings
from unmask.progress import Progress

PREFIX = "unmask-"
"""How the names of pods begin that were made here."""
_RUN_ID_BYTES = 4


def create_pod(
    client: RunPod, settings: RentSettings, *, progress: Progress, on_created: Callable[[str], None]
) -> wire.Pod:
    """A new pod with the first GPU type in the order of preference that is free and cheap enough.

    `on_created` hears its name before it is asked for: whatever happens then, a pod of that name is ours to end.
    Raises UnmaskError where no type can be had, saying what was in the way of each.
    """
    catalogue = _catalogue(client, progress)
    keys = _public_keys(client, settings, progress)
    name = f"{_stem(settings)}{secrets.token_hex(_RUN_ID_BYTES)}"
    on_created(name)
    passed_over = []
    for wish in settings.gpu:
        gpu = _gpu_id(wish, catalogue)
        problem = _too_dear(catalogue.get(gpu), settings)
        if problem is None:
            try:
                pod = client.create(_body(name, gpu, keys, settings))
            except OutOfStock:
                problem = "none free"
            else:
                problem = why_not_at_that_price(pod, settings)
                if problem is None:
                    progress.note(f"rents pod {describe(pod)}")
                    return pod
                client.terminate(pod.id)  # made a moment ago, and nothing is on it
        progress.note(f"{gpu}: {problem}")
        passed_over.append(f"{gpu}: {problem}")
    raise UnmaskError(
        f"no GPU to rent at RunPod ({'; '.join(passed_over)})",
        mend="Name further types with --gpu, raise --max-usd-per-hour, take --spot, or try again later",
    )


def _body(name: str, gpu: str, keys: str, settings: RentSettings) -> dict[str, Any]:
    """Fields of docs.runpod.io/api-reference/pods/POST/pods. One GPU type at a time: the order of preference is kept here."""
    body: dict[str, Any] = {
        "name": name,
        "imageName": settings.image,
        "cloudType": settings.cloud,
        "computeType": "GPU",
        "gpuTypeIds": [gpu],
        "gpuCount": settings.gpu_count,
        "containerDiskInGb": settings.disk_gb,
        "volumeInGb": settings.volume_gb,
        "volumeMountPath": VOLUME_PATH,
        "ports": ["22/tcp"],
        "interruptible": settings.spot,
    }
    if settings.cloud == "COMMUNITY":
        body["supportPublicIp"] = True
    if settings.cuda:
        body["allowedCudaVersions"] = list(settings.cuda)
    if keys:
        body["env"] = {"PUBLIC_KEY": keys}
    return body


def _catalogue(client: RunPod, progress: Progress) -> Mapping[str, wire.GpuType]:
    """Prices beforehand are a convenience: what a pod costs is looked at once it is made."""
    try:
        return client.catalogue()
    except ConfigError:
        raise
    except UnmaskError as problem:
        progress.note(f"prices and stock are unknown: {problem.what}")
        return {}


def _public_keys(client: RunPod, settings: RentSettings, progress: Progress) -> str:
    """Keys let in, one a line: the account's, and that beside the private key which is used.

    RunPod's images let in what stands in PUBLIC_KEY (github.com/runpod/containers, container-template/start.sh); a pod made over
    REST is not sure to be given it: REST v1 has no `startSsh`, for which runpodctl itself makes GPU pods over GraphQL.
    """
    try:
        keys = client.public_keys().splitlines()
    except ConfigError:
        raise
    except UnmaskError as problem:
        progress.note(f"the account's public keys are unknown: {problem.what}")
        keys = []
    private = settings.key_file or Path("~/.ssh/id_ed25519")
    public = private.expanduser().with_name(f"{private.name}.pub")
    if public.is_file():
        keys.append(public.read_text(encoding="utf-8"))
    found = list(dict.fromkeys(key.strip() for key in keys if key.strip()))
    if not found:
        raise ConfigError(
            "no public key is known that a new pod could let in",
            mend=f"Put one into RunPod's settings, or name the private key of {public} with --key",
        )
    return "\n".join(found)


def _gpu_id(wish: str, catalogue: Mapping[str, wire.GpuType]) -> str:
    """RunPod's id for `NVIDIA A40`, `RTX 4090` or `a40`. Raises ConfigError where the catalogue has nothing like it."""
    if not catalogue or wish in catalogue:
        return wish
    wanted = plain(wish)
    for same in (
        lambda gpu: wanted in (plain(gpu.id), plain(gpu.display_name)),
        lambda gpu: plain(gpu.id).endswith(wanted),
    ):
        if found := [gpu.id for gpu in catalogue.values() if same(gpu)]:
            return found[0]
    raise ConfigError(
        f"RunPod has no GPU type {wish!r}", mend=f"It has {listed(gpu.display_name for gpu in catalogue.values())}"
    )


def _too_dear(gpu: wire.GpuType | None, settings: RentSettings) -> str | None:
    limit = settings.max_usd_per_hour
    price = None if gpu is None else gpu.spot_usd_per_hour if settings.spot else gpu.usd_per_hour
    if limit is None or price is None or price * settings.gpu_count <= limit:
        return None
    return f"{price * settings.gpu_count:.2f} USD/h is above {limit:.2f}"


def why_not_at_that_price(pod: wire.Pod, settings: RentSettings) -> str | None:
    """Why a pod costs more than is allowed, or of what price nobody says where money is limited; None where all is well."""
    limit = settings.max_usd_per_hour
    if not pod.usd_per_hour:  # 0 is no price either: no limit on money would ever be reached
        limited = limit is not None or settings.max_usd is not None
        return "RunPod names no price, and a limit could not be kept" if limited else None
    if limit is not None and pod.usd_per_hour > limit:
        return f"{pod.usd_per_hour:.2f} USD/h is above {limit:.2f}"
    return None


def describe(pod: wire.Pod) -> str:
    """`abc123 (unmask-paper-1a2b, NVIDIA A40, 0.40 USD/h)`."""
    price = "price unknown" if pod.usd_per_hour is None else f"{pod.usd_per_hour:.2f} USD/h"
    return f"{pod.id} ({', '.join(part for part in (pod.name, pod.gpu, price) if part)})"


def is_of_study(pod: wire.Pod, settings: RentSettings) -> bool:
    """Whether the pod's name says that it was made for this study."""
    return re.fullmatch(f"{re.escape(_stem(settings))}[0-9a-f]{{{2 * _RUN_ID_BYTES}}}", pod.name) is not None


def plain(name: str) -> str:
    """A GPU's name without differences of case and spaces, of which RunPod's list has some."""
    return re.sub(r"\s+", " ", name).strip().lower()


def _stem(settings: RentSettings) -> str:
    label = re.sub(r"[^a-z0-9]+", "-", settings.label.lower()).strip("-")[:40]
    return f"{PREFIX}{label}-" if label else PREFIX
