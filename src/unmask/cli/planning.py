"""The plan of a collection, printed before anything is run: a table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.cli.screen import console, print_json

if TYPE_CHECKING:
    from unmask.models.planning import CollectionPlan

WORK_NAMES = {
    "prompts": "prompts, run once",
    "answers": "answers, written",
    "responses": "responses, read",
    "texts": "texts, read whole",
}
_DECIMAL = ("", "k", "M", "G", "T", "P", "E")


def print_plan(plan: CollectionPlan, *, as_json: bool) -> None:
    """Print what a collection will do, take and leave behind. Nothing is run or written."""
    if as_json:
        print_json(plan.as_record())
        return
    _print_work(plan)
    _print_needs(plan)
    console().out("Nothing was run or written: this is a plan.")


def _print_work(plan: CollectionPlan) -> None:
    from rich.table import Table

    record = plan.as_record()
    table = Table(header_style="bold")
    table.add_column("work")
    for name in ("passes", "tokens", "padding", "arithmetic", "fetched", "time"):
        table.add_column(name, justify="right")
    for work in record["work"]:
        padding = 1 - work["tokens"] / work["padded_tokens"] if work["padded_tokens"] else 0.0
        table.add_row(
            WORK_NAMES[work["kind"]],
            f"{work['passes']:,}",
            f"{work['tokens']:,}",
            f"{padding:.1%}",
            flops(work["flops"]),
            size(work["bytes_read"]),
            _cell(work["seconds"]),
        )
    total = sum(work["passes"] for work in record["work"])
    table.add_section()
    table.add_row(
        "all",
        f"{total:,}",
        f"{plan.tokens:,}",
        f"{plan.padding:.1%}",
        flops(plan.flops),
        size(plan.bytes_read),
        _cell(plan.seconds),
    )
    console().print(table)


def _print_needs(plan: CollectionPlan) -> None:
    from rich.table import Table

    table = Table(header_style="bold")
    table.add_column("need")
    table.add_column("amount", justify="right")
    table.add_column("what it is", overflow="fold")
    for name, amount, meaning in _needs(plan):
        table.add_row(name, amount, meaning)
    console().print(table)


def _needs(plan: CollectionPlan) -> list[tuple[str, str, str]]:
    memory, disk, layers = plan.memory, plan.disk, len(plan.architecture.layers)
    parts = (
        ("weights", memory.weights),
        ("a batch's activations", memory.activations),
        ("logits", memory.logits),
        ("keys and values", memory.caches),
        ("readings not yet stored", memory.kept),
    )
    rows = [
        (
            "model",
            f"{scaled(plan.architecture.parameters)} parameters",
            f"a response runs {plan.depth} of {layers} layers",
        ),
        ("texts", f"{plan.texts:,}", f"{plan.response_tokens:,} tokens of response; models that read: {plan.readers}"),
        ("arithmetic", flops(plan.flops), "matrices, causal attention and output head, padding and all"),
        ("fetched", size(plan.bytes_read), "weights, keys and values, from the device's memory once a pass"),
        ("peak memory", size(memory.total), _listed(parts)),
    ]
    stored = (("one row a response", disk.responses), ("one row a token", disk.tokens), ("headers", disk.headers))
    rows.append(("disk", size(disk.total), _listed(stored) or "nothing is stored"))
    if plan.speed is None:
        rows.append(("time", "not measured", "without loading the model there is nothing to time"))
    else:
        rate = f"{plan.speed.tokens_per_second:,.0f} tokens/s, {flops(plan.speed.body_flops_per_second)}/s"
        rows.append(("time", duration(plan.seconds), f"measured on {plan.speed.device}: {rate}; loading not counted"))
    return rows


def _listed(parts: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {size(amount)}" for name, amount in parts if amount)


def scaled(amount: float) -> str:
    """Three significant digits with a decimal prefix: `134 M`, `1.28 T`."""
    power = 0
    while abs(amount) >= 999.5 and power < len(_DECIMAL) - 1:
        amount /= 1000
        power += 1
    digits = 0 if abs(amount) >= 99.95 or power == 0 else 1 if abs(amount) >= 9.995 else 2
    return f"{amount:,.{digits}f} {_DECIMAL[power]}".rstrip()


def flops(amount: float) -> str:
    """Floating-point operations: `583 GFLOP`."""
    return _with_unit(amount, "FLOP")


def size(amount: float) -> str:
    """Bytes, in powers of 1000: `538 MB`."""
    return _with_unit(amount, "B")


def duration(seconds: float | None) -> str:
    """`40 s`, `12 min`, `3.5 h`, `2.1 days`; `not measured` for None."""
    if seconds is None:
        return "not measured"
    for limit, unit, length in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            amount = seconds / length
            return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
    return f"{seconds / 86_400:.1f} days"


def _cell(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _with_unit(amount: float, unit: str) -> str:
    number, _, prefix = scaled(amount).partition(" ")
    return f"{number} {prefix}{unit}"


def print_study_plan(folder: Path, *, as_json: bool) -> None:
    """Print what is left of collecting a study's activations."""
    from unmask.pipeline import open_study

    plan = open_study(folder).collection_plan()
    if plan is not None:
        print_plan(plan, as_json=as_json)
    elif as_json:
        print_json(None)
    else:
        console().out("Nothing is left to be collected.")
