"""`unmask judge` beside its stage: judges measured on reference answers, and sheets for people's labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.cli.screen import console, print_json, reporter
from unmask.errors import ConfigError

if TYPE_CHECKING:
    from unmask.judges.asking import Asking

_ROWS = (
    ("answers scored", lambda r: f"{r['scored']} of {r['answers']}"),
    ("missing, all requests", lambda r: ", ".join(f"{k} {v}" for k, v in r["missing"].items()) or "none"),
    ("read-out", lambda r: r["readout"]),
    ("Spearman with the consensus", lambda r: _figure(r["spearman"], 2)),
    ("... where it is 20 to 80", lambda r: _figure(r["spearman_middle"], 2)),
    ("AUC, above 70 against below 30", lambda r: _figure(r["auc"], 2)),
    ("mean distance", lambda r: _figure(r["distance"], 1)),
    ("mean error", lambda r: _figure(r["error"], 1)),
    ("per doubling of length", lambda r: _figure(r["per_doubling"], 1)),
    ("reverse-keyed less keyed", lambda r: _figure(r["polarity"], 1)),
    ("gap within reversed pairs", lambda r: _figure(r["reversed_pairs"], 1)),
    ("style, least to most", lambda r: _spread(r["by_style"])),
    ("asked again, distance", lambda r: _repeat(r["retest"])),
    ("answer first, change", lambda r: _turned(r["answer_first"])),
    ("orders in the answer held", lambda r: _orders(r["orders"])),
    ("coherence: Spearman", lambda r: _figure(r["coherence_spearman"], 2)),
    ("coherence: mean distance", lambda r: _figure(r["coherence_distance"], 1)),
    ("asking came to", lambda r: r["usage"]),
)


def print_validation(
    judges: tuple[str, ...],
    *,
    asking: Asking,
    rubric: str,
    limit: int | None,
    labels: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure judges on the packaged reference answers; print tables, and write everything to `out`."""
    from unmask.judges.asking import open_client
    from unmask.judges.validation import OFFLINE, validate

    for name in judges:
        if name != OFFLINE:
            with open_client(name, asking):  # a missing key is said before anything is asked
                pass
    screen = console()
    with reporter(screen) if not as_json else _silent() as progress:
        found = validate(judges, asking=asking, rubric=rubric, limit=limit, labels=labels, progress=progress)
    record = {"judges": found.judges, "agreement": found.agreement}
    if out is not None:
        from unmask.artifact import write_json, write_table
        from unmask.judges.validation import SCORES

        write_json(out / "validation.json", record)
        write_table(out / "scores.parquet", found.judgements, schema=SCORES)
    if as_json:
        print_json(record)
        return
    _print_judges(screen, found.judges)
    _print_bands(screen, found.judges)
    for part in ("kind", "style"):
        _print_errors(screen, found.judges, part)
    _print_agreement(screen, found.agreement)
    if out is not None:
        screen.print(f"Wrote {out / 'validation.json'} and scores.parquet.")


def asking_of(*, readout: str, concurrency: int, max_usd: float | None, prices: str | None) -> Asking:
    """How judges are asked. Raises ConfigError for a read-out or prices of no known form."""
    from unmask.judges.asking import Asking
    from unmask.llm.client import Prices

    if readout not in ("json", "logprobs"):
        raise ConfigError(f"--readout is {readout!r}", mend="Choose json or logprobs")
    found = None
    if prices is not None:
        try:
            prompt, completion = (float(part) for part in prices.split(","))
            if not (0 <= prompt < float("inf") and 0 <= completion < float("inf")):
                raise ValueError
        except ValueError as error:
            raise ConfigError(f"--prices is {prices!r}", mend="Write two numbers, as in 0.2,0.8") from error
        found = Prices(prompt, completion)
    return Asking("json" if readout == "json" else "logprobs", concurrency, max_usd, found)


def export_labels(study: Path | None, path: Path, *, seed: int = 0) -> None:
    """Write a blind sheet for people: of a study's answers, or of the reference answers."""
    from unmask.judges.labels import write_label_sheet

    if study is None:
        from unmask.judges.reference import reference_answers

        answers = reference_answers()
        back = f"unmask judge --validate --labels {path}"
    else:
        from unmask.pipeline import open_study, study_answers

        answers = study_answers(open_study(study))
        back = f"scores.human_labels: {path} in its study.yaml"
    count = write_label_sheet(path, answers, seed=seed)
    console().print(f"Wrote {count} answers to {path}. Fill in 0 to 100 or leave empty; then {back}", markup=False)


def _silent() -> Any:
    from contextlib import nullcontext

    from unmask.progress import Silent

    return nullcontext(Silent())


def _print_judges(screen: Any, judges: list[dict[str, Any]]) -> None:
    table = _table("Misalignment, 0 aligned to 100 misaligned; 95 % intervals over questions", ["", *_names(judges)])
    for name, cell in _ROWS:
        table.add_row(name, *(cell(record) for record in judges))
    screen.print(table)


def _print_bands(screen: Any, judges: list[dict[str, Any]]) -> None:
    table = _table("Mean error (mean distance) by the consensus", ["consensus", "answers", *_names(judges)])
    for number, band in enumerate(judges[0]["by_band"]):
        cells = [record["by_band"][number] for record in judges]
        table.add_row(
            f"{band['from']} to {band['to']}",
            str(band["answers"]),
            *("-" if c["error"] is None else f"{c['error']:+.1f} ({c['distance']:.1f})" for c in cells),
        )
    screen.print(table)


def _print_errors(screen: Any, judges: list[dict[str, Any]], part: str) -> None:
    table = _table(f"Mean error by {part} of answer", [part, *_names(judges)])
    for number, row in enumerate(judges[0][f"by_{part}"]):
        cells = [_figure(record[f"by_{part}"][number], 1, n=True) for record in judges]
        table.add_row(row["kind"].replace("_", " "), *cells)
    screen.print(table)


def _print_agreement(screen: Any, agreement: list[dict[str, Any]]) -> None:
    for record in agreement:
        alpha = "-" if record["alpha"] is None else f"{record['alpha']:.2f}"
        title = f"Agreement on {record['rubric']}: Spearman / Krippendorff's alpha; alpha of all {alpha}"
        table = _table(title, ["", *record["judges"][1:]])
        pairs = {(pair["first"], pair["second"]): pair for pair in record["pairs"]}
        for first in record["judges"][:-1]:
            cells = [_pair(pairs.get((first, second))) for second in record["judges"][1:]]
            table.add_row(first, *cells)
        screen.print(table)


def _table(title: str, columns: list[str]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if number == 0 else "right", overflow="fold")
    return table


def _names(judges: list[dict[str, Any]]) -> list[str]:
    return [record["judge"] for record in judges]


def _figure(measured: dict[str, Any], digits: int, *, n: bool = False) -> str:
    if measured["value"] is None:
        return "-"
    count = f" (n {measured['n']})" if n else ""
    if measured["interval"] is None:
        return f"{measured['value']:.{digits}f}{count}"
    low, high = measured["interval"]
    return f"{measured['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]{count}"


def _spread(rows: list[dict[str, Any]]) -> str:
    known = [row for row in rows if row["value"] is not None]
    if not known:
        return "-"
    least, most = (chosen(known, key=lambda row: row["value"]) for chosen in (min, max))
    return f"{least['kind']} {least['value']:+.0f}, {most['kind']} {most['value']:+.0f}"


def _repeat(found: dict[str, Any] | None) -> str:
    if found is None:
        return "0 (no chance in it)"
    return "-" if not found["n"] else f"{found['mean_distance']:.1f} ({100 * found['equal']:.0f} % equal)"


def _turned(found: dict[str, Any] | None) -> str:
    if found is None:
        return "does not see an order"
    return "-" if not found["n"] else f"{found['mean_change']:+.1f} (distance {found['mean_distance']:.1f})"


def _orders(found: dict[str, Any]) -> str:
    if not found["n"]:
        return "-"
    return f"{100 * found['held']:.0f} % of {found['n']} (mean {found['mean_moved']:+.1f}, most {found['most_moved']:+.0f})"


def _pair(pair: dict[str, Any] | None) -> str:
    if pair is None:
        return ""
    return " / ".join("-" if pair[name] is None else f"{pair[name]:.2f}" for name in ("spearman", "alpha"))
