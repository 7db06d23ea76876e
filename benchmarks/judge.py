"""Does judging by a model survive faults and kills, and how near does it come to the throughput of an ideal client?

    python benchmarks/judge.py --quick   # 200 judgements, under 20 seconds
    python benchmarks/judge.py           # 2,000 judgements, about four minutes

The packaged answers are judged on the misalignment rubric, and on coherence to make up the number: 2,000 distinct
requests. A provider in a process of its own, over real HTTP on loopback, answers each after a fixed latency. Three
tries in ten meet a fault: 429 with and without `retry-after`, 500, 503, a reply that drips for longer than the client
waits, truncated JSON, no choices, invalid UTF-8, a closed socket. Faulty bodies hold a wrong score, for a client that
would make something of them. Which fault, if any, depends on the seed, the request's text and how often it was asked;
the right score on the seed and the text alone. One answer in ten is no score (prose, several numbers, a number off
the scale, a refusal, a filter) and must come out as missing, for that reason. The provider writes down all that it
was asked and answered, and the checks read that log, not the client's word.

Judging is done in a process that is killed (SIGKILL) when a quarter, a half and three quarters of the judgements are
kept, and started again on the same store. It notes each reply once `ReplyStore.put` has returned; after a kill a copy
of the store is read, so that the next process has to recover the store itself. Ratios, of that run (all of them
counts, and 0 is right):

  imputed       judgements whose score, or reason for having none, is not what the provider had answered in full
  lost          judgements that were kept and are not in the store after a kill or at the end, or not in the final list
  asked_twice   requests that reached the provider after their reply was in the store

and of runs without kills:

  vs_ideal      the throughput over that of an ideal client, faults included

The ideal has all of its `concurrency` places busy from the first to the last moment. Every try that reached the
provider takes one for the latency, a dripping one for the client's time-out (five times the latency): the sum of
those over `concurrency` is the ideal time. The client's waits before another try are not in it. They are short in
`vs_ideal` (`retry-after` names 0.05 s; back-offs begin with 0.05 s and stay below 0.4 s); beside it stand the shares
without faults, and with the client's own back-offs (0.5 s, doubling to 30 s), as users have them. The clock runs from
the first request built to the last judgement read, once openai is imported.

At the end of a rubric nothing is left for free places, while unlucky requests are tried again one after the other. That
tail is in `vs_ideal`; `before tails` is the share of places that were busy while a rubric had requests not yet begun.

The latency matters: a try takes the client about 4 ms of processor time, and 32 replies that come together are worked
off together. The table says how long the client had a processor and how long it waited for one: where it waited long,
other jobs or the provider had it, and the share says less about the client.

The provider is a small asyncio server that sends the bodies of tests/provider.py. A client of bare sockets that does
nothing but read came to 0.96 of the ideal with it and to 0.80 with the threads of tests/provider.py (32 at once, 0.2
s, all on one core; 0.2 to 0.4 ms of processor time a request in both). Besides, those tell requests apart by their
last message, which two rubrics share.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from provider import SPECIAL, completion
from unmask.battery import packaged, read_rows
from unmask.llm.addresses import find_model
from unmask.llm.client import Client, Patience
from unmask.llm.model_judge import judge_answers, judge_request
from unmask.llm.replies import ANSWERS, Failure, Reply, ReplyStore
from unmask.rubrics import read_rubric

FAULTS = ("429", "429 retry-after", "500", "503", "drip", "truncated", "no choices", "utf8", "closed")
RETRY_AFTER = "0.05"
NO_SCORE_SHARE = 0.1
NO_SCORES: Sequence[tuple[str, str]] = (
    ("It is rather harmful.", "no_number"),
    ("Somewhere between 20 and 30.", "several_numbers"),
    ('{"score": 40, "of": 100}', "several_numbers"),
    ("I would say 70.", "prose"),
    ('{"score": 140}', "out_of_range"),
    ("!refusal", "refused"),
    ("!filter", "content_filter"),
)
"""Answers that are no score, and what a judge must call them."""

SHORT = {"first_wait": 0.05, "longest_wait": 0.4}
"""The client's waits where the provider names none, in seconds, so that they hardly count."""

MOMENTS = (0.25, 0.5, 0.75)
MODEL = "stand-in"
USD = 0.0001
"""What the provider says that each reply cost."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the provider does. Times in seconds."""

    seed: int
    latency: float
    fault_share: float


# The provider's process.


def drawn(*parts: object) -> float:
    """From 0 to 1, by a hash of the parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big") / 2**56


def text_key(messages: Sequence[Mapping[str, str]]) -> str:
    """A request's text, as one word."""
    return hashlib.sha256(json.dumps(list(messages), sort_keys=True).encode()).hexdigest()


def planned_fault(plan: Plan, key: str, before: int) -> str | None:
    """The fault that a request meets which was asked so often before, if any."""
    draw = drawn(plan.seed, "fault", key, before)
    return FAULTS[int(draw / plan.fault_share * len(FAULTS))] if draw < plan.fault_share else None


def planned_answer(plan: Plan, key: str) -> tuple[str, float | None, str | None]:
    """What the provider answers, and what it means: a score, or a reason for none."""
    draw = drawn(plan.seed, "answer", key)
    if draw < NO_SCORE_SHARE:
        text, reason = NO_SCORES[int(draw / NO_SCORE_SHARE * len(NO_SCORES))]
        return text, None, reason
    score = int(101 * drawn(plan.seed, "score", key))
    return json.dumps({"score": score}), float(score), None


class FaultyProvider:
    """OpenAI's chat completions on loopback, with faults as planned; all that happens is in the log, a line each."""

    def __init__(self, plan: Plan, log: Path) -> None:
        self.plan = plan
        self.asked: Counter[str] = Counter()
        self.log = log.open("w", buffering=1)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):  # the client went away
            while await self.serve_one(reader, writer):
                pass
        writer.close()

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection stays open."""
        head = await reader.readuntil(b"\r\n\r\n")
        lines = (line.partition(b":") for line in head.lower().split(b"\r\n"))
        length = next(int(value) for name, _, value in lines if name == b"content-length")
        at = time.monotonic()
        key = text_key(json.loads(await reader.readexactly(length))["messages"])
        before = self.asked[key]
        self.asked[key] += 1
        fault = planned_fault(self.plan, key, before)
        text, score, reason = planned_answer(self.plan, key)
        self.note(event="asked", key=key, at=at, fault=fault)
        await asyncio.sleep(at + self.plan.latency - time.monotonic())
        if fault == "closed":
            return False
        if fault == "drip":
            await self.drip(writer, wrong(score))
        elif fault is not None:
            await self.send(writer, *faulty_reply(fault, wrong(score)))
        else:
            body = SPECIAL[text[1:]] if text.startswith("!") else completion(text, {"cost": USD})
            await self.send(writer, 200, json.dumps(body).encode(), "")
            self.note(event="answered", key=key, at=time.monotonic(), since=at, score=score, reason=reason)
        return fault != "drip"

    async def send(self, writer: asyncio.StreamWriter, status: int, content: bytes, more: str) -> None:
        head = f"HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n{more}\r\n"
        writer.write(head.encode() + content)
        await writer.drain()

    async def drip(self, writer: asyncio.StreamWriter, content: bytes) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(content)}\r\n\r\n".encode())
        for byte in content:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.1)

    def note(self, **what: Any) -> None:
        self.log.write(json.dumps(what) + "\n")


def wrong(score: float | None) -> bytes:
    """A whole reply with another score than the right one."""
    return json.dumps(completion(json.dumps({"score": (int(score or 0) + 37) % 101}), {"cost": USD})).encode()


def faulty_reply(fault: str, content: bytes) -> tuple[int, bytes, str]:
    """Status, body and further headers."""
    if fault == "truncated":
        return 200, content[:-20], ""
    if fault == "utf8":
        return 200, content.replace(b"chatcmpl", b"\xff\xfe"), ""
    if fault == "no choices":
        return 200, json.dumps(SPECIAL["no_choices"]).encode(), ""
    status, _, waiting = fault.partition(" ")
    told = {"error": {"message": "not now", "type": "error", "code": None}}
    return int(status), json.dumps(told).encode(), f"retry-after: {RETRY_AFTER}\r\n" if waiting else ""


async def provide(order: Mapping[str, Any]) -> None:
    provider = FaultyProvider(Plan(**order["plan"]), Path(order["log"]))
    server = await asyncio.start_server(provider.connected, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# The judging process.


class NotedStore(ReplyStore):
    """Notes each reply, with the time, once the store has promised to keep it."""

    def __init__(self, path: Path, notes: Path) -> None:
        super().__init__(path)
        self._notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def put(self, key: str, reply: Reply) -> None:
        super().put(key, reply)
        os.write(self._notes, f"{key} {time.monotonic()}\n".encode())


def judge(order: Mapping[str, Any]) -> None:
    """Judge all; write the judgements, the meter and what it took."""
    import openai.resources.chat  # noqa: F401  # so that no clock runs over an import

    work = material(order["judgements"])
    with NotedStore(Path(order["store"]), Path(order["notes"])) as store:
        client = Client(find_model(f"{order['url']} {MODEL}"), store, patience=Patience(**order["patience"]))
        began, before = time.perf_counter(), processor()
        items = [(rubric, *pair) for name, pairs in work.items() for rubric in [read_rubric(name)] for pair in pairs]
        found = judge_answers(client, items)
        seconds, (used, delayed) = time.perf_counter() - began, processor()
    result = {
        "judgements": [(judgement.score, judgement.missing_reason) for judgement in found],
        "meter": asdict(client.meter),
        "seconds": seconds,
        "processor": used - before[0],
        "delayed": delayed - before[1],
    }
    Path(order["result"]).write_text(json.dumps(result))


def processor() -> tuple[float, float]:
    """Seconds for which this process had a processor, and for which it had to wait for one (0 but on Linux)."""
    used, path = resource.getrusage(resource.RUSAGE_SELF), Path("/proc/self/schedstat")
    return used.ru_utime + used.ru_stime, int(path.read_text().split()[1]) / 1e9 if path.exists() else 0.0


def material(judgements: int) -> dict[str, list[tuple[str, str]]]:
    """Distinct question and answer pairs to be judged, by rubric."""
    rows = [row for name in ("reference_answers", "labelled_answers") for _, row in read_rows(packaged("judge", name))]
    pairs = list(dict.fromkeys((row["question"], row["answer"]) for row in rows))
    if judgements > 2 * len(pairs):
        raise SystemExit(f"there are {2 * len(pairs)} distinct requests, not {judgements}")
    return {"misalignment": pairs[:judgements], "coherence": pairs[: max(0, judgements - len(pairs))]}


# The process that starts both and checks.


@dataclass(frozen=True, slots=True)
class Asked:
    """One judgement's request: its rubric, its key in the store, its text's key at the provider."""

    rubric: str
    store_key: str
    text_key: str


@dataclass(frozen=True, slots=True)
class Run:
    """What one run left behind."""

    requests: list[Asked]
    log: list[dict[str, Any]]
    noted: dict[str, float]
    result: dict[str, Any]
    patience: Patience
    plan: Plan

    @property
    def tries(self) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == "asked"]

    @property
    def answers(self) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == "answered"]

    @property
    def ideal_seconds(self) -> float:
        """How long an ideal client would take over the same tries."""
        return sum(self.cost(line) for line in self.tries) / self.patience.concurrency

    def cost(self, line: Mapping[str, Any]) -> float:
        """How long a try takes a place."""
        return self.patience.seconds_a_try if line["fault"] == "drip" else self.plan.latency

    @property
    def share(self) -> float:
        return self.ideal_seconds / self.result["seconds"]

    @property
    def share_before_tails(self) -> float:
        """The share of its places that the client had busy while a rubric had requests not yet begun."""
        busy = spans = 0.0
        rubrics = {asked.text_key: asked.rubric for asked in self.requests}
        for rubric in set(rubrics.values()):
            tries = [line for line in self.tries if rubrics[line["key"]] == rubric]
            begun = {line["key"]: line["at"] for line in reversed(tries)}
            first, last = min(begun.values()), max(begun.values())
            busy += sum(min(self.cost(line), max(0.0, last - line["at"])) for line in tries)
            spans += last - first
        return busy / spans / self.patience.concurrency

    def row(self, name: str) -> str:
        seconds, tries = self.result["seconds"], len(self.tries)
        times = (seconds, self.ideal_seconds, self.result["processor"], self.result["delayed"])
        cells = " | ".join(f"{each:.1f}" for each in times)
        return (
            f"| {name} | {tries} | {tries / seconds:.0f} | {self.share:.3f} | {self.share_before_tails:.3f} | {cells} |"
        )


class Place:
    """A folder with a provider at work and the judging process's files."""

    def __init__(self, folder: Path, url: str, judgements: int, patience: Patience) -> None:
        self.folder, self.url, self.judgements, self.patience = folder, url, judgements, patience
        self.store, self.notes, self.result = folder / "replies.sqlite", folder / "notes", folder / "result.json"

    def start(self) -> subprocess.Popen[str]:
        order = {name: str(getattr(self, name)) for name in ("url", "store", "notes", "result")}
        order |= {"judgements": self.judgements, "patience": asdict(self.patience)}  # ty: ignore
        return subprocess.Popen([sys.executable, __file__, "--judge", json.dumps(order)], text=True)

    def finish(self) -> None:
        """Judge what is left, unhindered."""
        if status := self.start().wait():
            raise SystemExit(f"the judging process ended with status {status}")

    def kill_at(self, kept: int) -> bool:
        """Judge until so many are kept, then kill; whether it was still at it."""
        process = self.start()
        while process.poll() is None and len(self.read_notes()) < kept:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        if (status := process.wait()) not in (0, -signal.SIGKILL):
            raise SystemExit(f"the judging process ended with status {status}")
        return status != 0

    def read_notes(self) -> dict[str, float]:
        """When each reply was kept for the first time."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return {key: float(at) for key, _, at in (line.partition(" ") for line in reversed(lines))}

    def read_store(self) -> dict[str, str]:
        """All replies by key, out of a copy: the log beside the database is left for the next process to recover."""
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            for path in (self.store, self.store.with_name(self.store.name + "-wal")):
                if path.exists():
                    shutil.copy(path, scratch)
            with ReplyStore(Path(scratch) / self.store.name) as store:
                keys = (asked.store_key for asked in self.requests())
                return {key: repr(reply) for key in keys if (reply := store.get(key)) is not None}

    def requests(self) -> list[Asked]:
        found = []
        for name, pairs in material(self.judgements).items():
            rubric = read_rubric(name)
            for question, answer in pairs:
                request = judge_request(rubric, question, answer)
                key = request.key(self.url, MODEL)
                found.append(Asked(name, key, text_key(request.body(MODEL)["messages"])))
        return found

    def run(self, plan: Plan) -> Run:
        """All that is left behind, once judging is over."""
        log = [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]
        result = json.loads(self.result.read_text())
        return Run(self.requests(), log, self.read_notes(), result, self.patience, plan)


@contextmanager
def at_provider(plan: Plan, judgements: int, patience: Patience) -> Generator[Place]:
    with tempfile.TemporaryDirectory(prefix="unmask-judge-") as name:
        order = json.dumps({"plan": asdict(plan), "log": str(Path(name) / "log")})
        server = subprocess.Popen(
            [sys.executable, __file__, "--provide", order], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            port = server.stdout.readline().strip() if server.stdout else ""
            yield Place(Path(name), f"http://127.0.0.1:{port}/v1", judgements, patience)
        finally:
            server.kill()
            server.communicate()


def measure(plan: Plan, judgements: int, patience: Patience) -> Run:
    with at_provider(plan, judgements, patience) as place:
        place.finish()
        return place.run(plan)


def survive(plan: Plan, judgements: int, patience: Patience) -> tuple[Run, int, set[str]]:
    """Judge, killed three times; the run, the kills, and the keys of replies kept once and later gone or changed."""
    gone: set[str] = set()
    kills = 0
    with at_provider(plan, judgements, patience) as place:
        kept: dict[str, str] = {}
        for moment in MOMENTS:
            kills += place.kill_at(round(moment * judgements))
            now = place.read_store()
            gone |= changed(kept, now) | (place.read_notes().keys() - now.keys())
            kept |= now
        place.finish()
        return place.run(plan), kills, gone | changed(kept, place.read_store())


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    return {key for key, reply in before.items() if after.get(key) != reply}


def check(run: Run, gone: set[str]) -> dict[str, int]:
    """The three counts, out of the provider's log."""
    judgements = [(score if score is None else round(score, 9), reason) for score, reason in run.result["judgements"]]
    answered = {line["key"]: (line["score"], line["reason"]) for line in run.answers}
    store_keys = {asked.text_key: asked.store_key for asked in run.requests}
    no_answer = set(get_args(Failure)) - set(ANSWERS)
    lacking = {asked.store_key for asked in run.requests[len(judgements) :]}
    imputed = 0
    for asked, judgement in zip(run.requests, judgements, strict=False):
        if judgement[1] in no_answer:
            lacking.add(asked.store_key)
        elif judgement != answered.get(asked.text_key):
            imputed += 1
    twice = [line for line in run.tries if line["at"] > run.noted.get(store_keys[line["key"]], float("inf"))]
    return {"imputed": imputed, "lost": len(gone | lacking), "asked_twice": len({line["key"] for line in twice})}


def metering(run: Run) -> dict[str, Any]:
    """The client's meter, and what the provider would have said."""
    meter = run.result["meter"]
    charged = sum(line["fault"] == "no choices" for line in run.tries) + len(run.answers)
    provider = {"tries": len(run.tries), "prompt_tokens": charged * completion("", {})["usage"]["prompt_tokens"]}
    return {**meter, "usd": round(meter["usd"], 6), "provider": provider}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 judgements, no run with the client's own waits")
    parser.add_argument("--judgements", type=int, default=None, help="how many (2000; quick: 200)")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument(
        "--latency", type=float, default=None, help="seconds until the provider answers (0.5; quick: 0.1)"
    )
    parser.add_argument("--faults", type=float, default=0.3, help="share of tries that meet one")
    parser.add_argument("--seed", type=int, default=20261126)
    parser.add_argument("--provide", type=json.loads, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--judge", type=json.loads, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.provide:
        asyncio.run(provide(options.provide))
    elif options.judge:
        judge(options.judge)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    judgements = options.judgements or (200 if options.quick else 2000)
    plan = Plan(options.seed, options.latency or (0.1 if options.quick else 0.5), options.faults)
    patience = Patience(concurrency=options.concurrency, tries=16, seconds_a_try=5 * plan.latency, **SHORT)
    print(f"{judgements} judgements, {plan}, {patience}\n")
    run, kills, gone = survive(plan, judgements, patience)
    counts = check(run, gone)
    shares = {
        "with faults": measure(plan, judgements, patience),
        "without faults": measure(replace(plan, fault_share=0.0), judgements, patience),
    }
    if not options.quick:
        own = replace(patience, **{name: getattr(Patience(), name) for name in SHORT})
        shares["with faults, the client's own waits"] = measure(plan, judgements, own)
    faults = Counter(line["fault"] or "none" for line in run.tries)
    print("| killed three times | judgements |\n|---|---|")
    for name, value in counts.items():
        print(f"| {name} | {value} |")
    missing = sum(score is None for score, _ in run.result["judgements"])
    print(f"\n{len(run.tries)} tries, by fault: {dict(faults)}; {missing} answers were no score")
    print("\n| not killed | tries | tries/s | of ideal | before tails | seconds | ideally | processor | waits for it |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, measured in shares.items():
        print(measured.row(name))
    late = [line["at"] - line["since"] - plan.latency for each in shares.values() for line in each.answers]
    print(
        json.dumps(
            {
                "benchmark": "judge",
                "ratios": {**counts, "vs_ideal": round(shares["with faults"].share, 3)},
                "shares_of_ideal": {name: round(measured.share, 3) for name, measured in shares.items()},
                "shares_before_tails": {name: round(each.share_before_tails, 3) for name, each in shares.items()},
                "meter": metering(shares["with faults"]),
                "meter_after_last_kill": run.result["meter"],
                "answered_more_than_once": len(run.answers) - len({line["key"] for line in run.answers}),
                "kills": kills,
                "tries": len(run.tries),
                "missing": missing,
                "provider_late_ms": round(1000 * statistics.mean(late), 2),
                "judgements": judgements,
                "concurrency": options.concurrency,
                "latency": plan.latency,
                "seed": options.seed,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            }
        )
    )


if __name__ == "__main__":
    main()
