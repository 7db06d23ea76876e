"""Commands that run a study or show where it stands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from unmask.cli.screen import INTERRUPTED, console, print_json, print_table, reporter, words

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from unmask.stage import Stage
    from unmask.study import StageRecord


def run_study(
    folder: Path, *, until: str | None, force: tuple[str, ...], as_json: bool, ray: Mapping[str, Any] | None = None
) -> None:
    """Run what is not done, with progress, and print the summary table. `ray`: shards are made there, with these options."""
    from rich.console import Console

    from unmask.pipeline import STAGES, open_study, ray_engine

    screen = Console(stderr=True, highlight=False, soft_wrap=True) if as_json else console()
    pipeline = open_study(folder)
    engine = None if ray is None else ray_engine(**ray)
    ran: dict[str, bool] = {}
    with reporter(screen) as progress:
        screen.out(f"unmask {folder}: base {pipeline.config.base.model}", style="bold")

        def told(stage: Stage, record: StageRecord, fresh: bool) -> None:
            ran[stage.name] = fresh
            took = f"done in {record.seconds:.0f} s" if fresh else "unchanged"
            progress.note(f"[{len(ran)}/{len(STAGES)}] {stage.title}: {took}")

        try:
            records = pipeline.run(until=until, force=force, progress=progress, on_stage=told, engine=engine)
        except KeyboardInterrupt:
            progress.note(f"Interrupted. Finished batches are kept; go on with: unmask run {shlex.quote(str(folder))}")
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(
            [{"stage": r.stage, "ran": ran[r.stage], "seconds": r.seconds, "summary": r.summary} for r in records]
        )
        return
    _print_summary(records)
    if records[-1].stage == STAGES[-1].name:
        screen.out(f"\nReport: {(folder / 'report.html').resolve().as_uri()}")


def make_share(folder: Path, *, stage: str, shard: str, as_json: bool) -> None:
    """Make a share of a stage's shards, with progress. Exit code 1 where some of them could not be made."""
    from rich.console import Console

    from unmask.pipeline import Share, open_study

    screen = Console(stderr=True, highlight=False, soft_wrap=True) if as_json else console()
    share = Share.parse(shard)
    pipeline = open_study(folder)
    with reporter(screen) as progress:
        try:
            found = pipeline.make_share(stage, share, progress=progress)
        except KeyboardInterrupt:
            progress.note("Interrupted. Finished shards are kept: the same command makes the rest")
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(
            {"stage": stage, "shard": str(share), "made": found.made, "there": found.there, "failed": found.failed}
        )
    else:
        said = f"{stage} {share}: {found.made} shards made, {found.there} were there, {len(found.failed)} failed"
        screen.out(f"{said}. When all shares are made: unmask run {shlex.quote(str(folder))}")
    if found.failed:
        raise typer.Exit(1)


def _print_summary(records: list[StageRecord]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_lines=False, header_style="bold", expand=False)
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("result", overflow="fold")
    for record in records:
        lines = [f"{name.replace('_', ' ')}: {words(value)}" for name, value in record.summary.items()]
        table.add_row(record.stage, f"{record.seconds:.0f}", escape("\n".join(lines)))
    console().print(table)
    console().print(f"total {sum(record.seconds for record in records):.0f} s of work")


def print_status(folder: Path, *, as_json: bool) -> None:
    """Print every stage's state and reason."""
    from unmask.pipeline import open_study, status_rows

    statuses = open_study(folder).status()
    if as_json:
        print_json(status_rows(statuses))
        return
    rows = [(status.stage, status.state, status.reason, str(status.folder)) for status in statuses]
    colours = {"done": "green", "stale": "yellow", "missing": "dim"}
    print_table(("stage", "state", "why", "folder"), rows, colours=colours)
    if any(status.state != "done" for status in statuses):
        console().out(f"Go on with: unmask run {shlex.quote(str(folder))}")
