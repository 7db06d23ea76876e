"""RunPod as a few verbs, one account's, that never pay twice for one pod."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from unmask.errors import ConfigError, UnmaskError
from unmask.execution.runpod import wire
from unmask.execution.runpod.asking import KEY_VARIABLE, URL_VARIABLE, Api, NoReply, OutOfStock, Patience

_LAGS = (0.0, 1.0, 2.0)
"""Waits before each look for what was not confirmed, in units of `Patience.listing_lag`."""


class RunPod:
    """RunPod as one account sees it. A context manager; threads may share it."""

    def __init__(self, key: str, *, url: str = "", patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self._api = Api(key, url=url, patience=self.patience)

    @classmethod
    def from_environment(cls, *, patience: Patience | None = None) -> RunPod:
        """Raises ConfigError where the environment holds no key, or httpx is not installed."""
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not key:
            raise ConfigError(
                f"{KEY_VARIABLE} is not set",
                mend=f"Make a key at RunPod and put {KEY_VARIABLE}=... into .env or the environment",
            )
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{KEY_VARIABLE} holds something that no key holds", mend="Copy it again from RunPod")
        try:
            return cls(key, url=os.environ.get(URL_VARIABLE, "").strip().rstrip("/"), patience=patience)
        except ImportError as error:
            raise ConfigError("httpx is not installed", mend="pip install 'unmask[remote]'") from error

    def __repr__(self) -> str:
        return f"RunPod({self._api.rest_url!r})"

    def __enter__(self) -> RunPod:
        return self

    def __exit__(self, *exception: object) -> None:
        self._api.close()

    def pods(self, *, name: str | None = None) -> list[wire.Pod]:
        """All pods of the account, or those of that name; none that is terminated."""
        query = {"includeMachine": "true"} | ({} if name is None else {"name": name})
        body = self._api.ask("GET", "/pods", query=query)
        if not isinstance(body, list):
            raise UnmaskError("RunPod's list of pods is none", mend=wire.LOOK)
        found = [wire.read_pod(entry) for entry in body]
        return [pod for pod in found if pod.status != wire.TERMINATED and name in (None, pod.name)]

    def pod(self, pod_id: str) -> wire.Pod | None:
        """That pod; None where there is none, or it is terminated."""
        if not wire.is_pod_id(pod_id):
            raise ConfigError(
                f"{pod_id!r} is no pod's id", mend="Take one from: unmask remote check STUDY --on runpod --pods"
            )
        body = self._api.ask("GET", f"/pods/{pod_id}", query={"includeMachine": "true"}, missing_is_none=True)
        pod = None if body is None else wire.read_pod(body)
        return None if pod is None or pod.status == wire.TERMINATED else pod

    def create(self, body: dict[str, Any]) -> wire.Pod:
        """Make a pod. Its `name` must be its own: a pod of that name is taken for the one that is asked for here.

        RunPod has no key for idempotence, and a creation whose reply is lost, or says 500 after the fact
        (github.com/transformerlab/transformerlab-app/pull/2305), is paid for: so pods of that name are looked for before
        each further try, and all but one of them are removed. Raises OutOfStock, ConfigError for what RunPod refuses.
        """
        name, lost = body["name"], False
        for _ in range(self.patience.tries):
            try:
                made = self._made(body)
            except (NoReply, OutOfStock) as problem:
                if isinstance(problem, OutOfStock) and not lost:
                    raise
                lost = True
                found = self.appeared(name)
                if not found and isinstance(problem, OutOfStock):
                    raise
                if not found:
                    continue
                made = found[0]
            if lost:
                self.remove_others(made)
            return made
        raise UnmaskError(
            "RunPod does not say whether it made a pod", mend=f"{wire.LOOK}: one named {name} would be ours"
        )

    def remove_others(self, pod: wire.Pod) -> int:
        """Remove pods of the same name, which tries that had seemed lost have made; how many there were."""
        others = [other for other in self.pods(name=pod.name) if other.id != pod.id]
        for other in others:
            self.terminate(other.id)
        return len(others)

    def start(self, pod_id: str) -> None:
        """Start a stopped pod; one that runs by then is no error, since a reply may be lost.

        Raises OutOfStock where its machine has no GPU free, NoReply where nobody says whether it runs and is paid for.
        """
        try:
            self._api.ask("POST", f"/pods/{pod_id}/start")
        except UnmaskError:
            if not self._runs(pod_id):
                raise

    def stop(self, pod_id: str) -> None:
        """Stop a pod; its volume stays and is paid for. One that does not run is left alone."""
        self._end(pod_id, "POST", f"/pods/{pod_id}/stop", over=lambda pod: pod is None or pod.status != wire.RUNNING)

    def terminate(self, pod_id: str) -> None:
        """Remove a pod with all that lies on it. One that is gone is no error."""
        self._end(pod_id, "DELETE", f"/pods/{pod_id}", over=lambda pod: pod is None)

    def catalogue(self) -> dict[str, wire.GpuType]:
        """GPU types by id, with prices and stock."""
        return wire.read_gpu_types(self._api.ask_graphql(wire.CATALOGUE_QUERY))

    def public_keys(self) -> str:
        """The account's public SSH keys, one a line; empty where it has none."""
        myself = (self._api.ask_graphql(wire.PUBLIC_KEYS_QUERY) or {}).get("myself") or {}
        return str(myself.get("pubKey") or "").strip()

    def billed_usd(self, pod_id: str, *, since: datetime) -> float | None:
        """USD that RunPod has billed for a pod since then, in whole hours, disks included; None where nothing is billed yet."""
        query = {
            "podId": pod_id,
            "grouping": "podId",
            "bucketSize": "hour",
            "startTime": since.strftime("%Y-%m-%dT%H:00:00Z"),
        }
        return wire.billed_usd(self._api.ask("GET", "/billing/pods", query=query))

    def _made(self, body: dict[str, Any]) -> wire.Pod:
        reply = self._api.ask("POST", "/pods", body=body, repeatable=False)
        try:
            return wire.read_pod(reply)
        except UnmaskError as error:  # something may have been made all the same
            raise NoReply(str(error)) from None

    def appeared(self, name: str) -> list[wire.Pod]:
        """Pods of that name, whose making was not confirmed: looked for more than once, since a list may lag behind."""
        for wait in _LAGS:
            time.sleep(wait * self.patience.listing_lag)
            if found := self.pods(name=name):
                return sorted(found, key=lambda pod: pod.id)
        return []

    def _runs(self, pod_id: str) -> bool:
        for wait in _LAGS:
            time.sleep(wait * self.patience.listing_lag)
            try:
                pod = self.pod(pod_id)
            except UnmaskError as error:
                raise NoReply(
                    f"RunPod does not say whether pod {pod_id} was started: {error.what}", mend=wire.LOOK
                ) from error
            if pod is not None and pod.status == wire.RUNNING:
                return True
        return False

    def _end(self, pod_id: str, method: str, path: str, *, over: Callable[[wire.Pod | None], bool]) -> None:
        """Ask, and believe what the pod's state says: a reply may be lost, and a pod may have ended by itself."""
        problem: UnmaskError | None = None
        try:
            self._api.ask(method, path, missing_is_none=True)
        except UnmaskError as error:
            problem = error
        if problem is not None and not over(self.pod(pod_id)):
            raise problem
