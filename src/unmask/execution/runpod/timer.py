"""The dead-man's timer: a shell command that makes a pod stop itself after some seconds, whoever is still there.

RunPod documents `sleep 2h; runpodctl stop pod $RUNPOD_POD_ID` for this (docs.runpod.io/pods/manage-pods), and that every pod has
`runpodctl` and a key of its own scope (docs.runpod.io/runpodctl, docs.runpod.io/pods/templates/environment-variables). No key of
the user's is sent. A shell over SSH does not see a pod's variables: RunPod's images write them to /etc/rp_environment
(github.com/runpod/containers, container-template/start.sh), and the first process has them.
"""

from __future__ import annotations

import secrets
import shlex
from math import ceil
from typing import Literal

from unmask.execution.runpod import wire

_FOLDER = "$HOME/.unmask-timer"

# Still alive means not stopped, so nothing counts as success and all is tried again. The key stays out of every argv: printf is
# built into the shell, and curl reads its header from a pipe.
_SCRIPT = """echo $$ >"{folder}/pid"
mine() {{ [ "$(cat "{folder}/token" 2>/dev/null)" = {token} ] || exit 0; }}
sleep {seconds}
mine
[ -n "$RUNPOD_POD_ID" ] || [ ! -r /etc/rp_environment ] || . /etc/rp_environment
of_init() {{ tr '\\0' '\\n' </proc/1/environ 2>/dev/null | sed -n "s/^$1=//p"; }}
[ -n "$RUNPOD_POD_ID" ] || RUNPOD_POD_ID=$(of_init RUNPOD_POD_ID)
[ -n "$RUNPOD_API_KEY" ] || RUNPOD_API_KEY=$(of_init RUNPOD_API_KEY)
export RUNPOD_API_KEY
pod="${{RUNPOD_POD_ID:-{pod}}}"
if command -v timeout >/dev/null; then bounded="timeout 60"; else bounded=; fi
while :; do
  mine; $bounded runpodctl {old} pod "$pod" && sleep 60
  mine; $bounded runpodctl pod {new} "$pod" && sleep 60
  mine; printf 'header = "Authorization: Bearer %s"\\n' "$RUNPOD_API_KEY" |
    curl -fsS -m 60 -K - -X {method} "{url}/pods/$pod{path}" && sleep 60
  sleep 20
done"""

_VERBS = {
    "stop": {"old": "stop", "new": "stop", "method": "POST", "path": "/stop"},
    "terminate": {"old": "remove", "new": "delete", "method": "DELETE", "path": ""},
}
"""`runpodctl stop pod` and `remove pod` are the older words, `pod stop` and `pod delete` the newer
(github.com/runpod/runpodctl, cmd/legacy/legacy.go)."""


def timer_command(pod_id: str, *, seconds: float, action: Literal["stop", "terminate"] = "stop") -> str:
    """One POSIX shell command that arms the timer and returns at once; the timer outlives the connection and the client.

    Arming again replaces an earlier timer: the one that wakes and finds another's token ends without doing anything.
    """
    if not wire.is_pod_id(pod_id):
        raise ValueError("no pod's id")
    token = secrets.token_hex(8)
    script = _SCRIPT.format(
        folder=_FOLDER, token=token, seconds=max(1, ceil(seconds)), pod=pod_id, url=wire.REST_URL, **_VERBS[action]
    )
    detached = f"nohup $(command -v setsid) sh -c {shlex.quote(script)} unmask-timer"
    return (
        f'mkdir -p "{_FOLDER}" && chmod 700 "{_FOLDER}" && echo {token} >"{_FOLDER}/token" '
        f'&& {{ {detached} </dev/null >"{_FOLDER}/log" 2>&1 & }}'
    )
