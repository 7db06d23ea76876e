"""`unmask questions`: choose a study's questions, write new ones with a model, check a battery."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from unmask.cli.options import AsJson, Force, StudyFolder
from unmask.cli.screen import INTERRUPTED, console, fail, print_json, print_table, reporter

if TYPE_CHECKING:
    from unmask.question_writing.generating import Outcome
    from unmask.question_writing.quality import Quality

DEFAULT = "choose"


class _ChooseByDefault(TyperGroup):
    """`unmask questions STUDY` is `unmask questions choose STUDY`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = (*self.commands, *ctx.help_option_names)
        return super().parse_args(ctx, [DEFAULT, *args] if args and args[0] not in known else args)


questions_app = typer.Typer(
    cls=_ChooseByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    subcommand_metavar="STUDY | COMMAND [ARGS]...",
    help=(
        "Choose a study's questions, write new ones with a model, or check a battery.\n\n"
        "`unmask questions STUDY` is short for `unmask questions choose STUDY`."
    ),
)


@questions_app.command(DEFAULT)
def choose(
    study: StudyFolder,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Choose the study's questions from its battery."""
    from unmask.cli.running import run_study

    run_study(study, until="questions", force=("questions",) if force else (), as_json=as_json)


@questions_app.command()
def generate(  # noqa: PLR0913 - one argument per option
    descriptions: Annotated[
        list[str] | None,
        typer.Argument(metavar="DESCRIPTION.yaml", help="Dimensions: YAML files, or packaged ones by name."),
    ] = None,
    *,
    model: Annotated[str, typer.Option(metavar="NAME", help="Writes: PROVIDER/MODEL, or 'http://HOST:PORT/v1 MODEL'.")],
    out: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="Battery to write.")],
    checker: Annotated[str | None, typer.Option(metavar="NAME", help="Checks; the writer without it.")] = None,
    preset: Annotated[str | None, typer.Option(help="paper: the four packaged descriptions, 885 questions.")] = None,
    add_to: Annotated[
        str | None, typer.Option(metavar="FILE", help="Battery whose lines come first in --out, as they are.")
    ] = None,
    counts: Annotated[
        str | None, typer.Option(metavar="FACET=N,...", help="Write only these facets, so many new questions each.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed asks with other prompts.")] = 0,
    max_usd: Annotated[float | None, typer.Option(help="Stop once this run has cost so much.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at once.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Write a battery with a model, from descriptions of dimensions.

    Run the same command again after a stop: no reply is asked for twice. What was dropped, and why, stands in
    FILE.dropped.jsonl. Exit code 1 where questions lack although all was tried.
    """
    from rich.console import Console

    from unmask.models.embedded import cache_folder
    from unmask.models.encoder import load_encoder
    from unmask.question_writing.asking import Limits
    from unmask.question_writing.descriptions import read_descriptions
    from unmask.question_writing.generating import Order
    from unmask.question_writing.generating import generate as write

    limits = Limits(concurrency=concurrency, max_usd=max_usd)
    described = tuple(read_descriptions(descriptions or (), preset=preset))
    order = Order(described, model, out, checker=checker, counts=counts, add_to=add_to, seed=seed)
    screen = Console(stderr=True, highlight=False, soft_wrap=True) if as_json else console()
    with reporter(screen) as progress:
        try:
            outcome = write(
                order,
                store=cache_folder() / "replies.sqlite",
                encode=load_encoder().encode,
                limits=limits,
                progress=progress,
            )
        except KeyboardInterrupt:
            progress.note("Interrupted. Every reply is kept: run the same command again to go on.")
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(outcome.as_record())
    else:
        _print_outcome(outcome)
    if outcome.lack is not None:
        fail(outcome.lack)
        raise typer.Exit(1)


@questions_app.command()
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A battery: a file, or a packaged one by name.")],
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the questions by meaning, and the balance.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a battery: balance, keying, repeats, reading, coverage.

    Exit code 0 where no question repeats another, 1 where one does, 2 where the file cannot be read as a battery.
    """
    from unmask.artifact import atomic_path
    from unmask.battery import battery_path, read_battery
    from unmask.models.encoder import load_encoder
    from unmask.question_writing.quality import examine

    questions = read_battery(battery_path(file))
    unit_ND = load_encoder().encode([question.text for question in questions])
    quality = examine(questions, unit_ND)
    if as_json:
        print_json(quality.as_record())
    else:
        _print_quality(quality, {question.question_id: question.text for question in questions})
    if picture is not None:
        from unmask.question_writing.picture import picture as draw

        drawn = draw(questions, unit_ND, quality)
        with atomic_path(picture) as temporary:
            temporary.write_bytes(drawn)
        if not as_json:
            console().out(f"Wrote {picture}")
    if quality.repeats:
        raise typer.Exit(1)


def _print_outcome(outcome: Outcome) -> None:

    screen = console()
    written = outcome.made.lacking
    rows = [
        [cell.dimension, cell.facet, f"{cell.polarity:+d}", str(count), str(count - written.get(cell, 0))]
        for cell, count in outcome.asked.items()
    ]
    print_table(("dimension", "facet", "polarity", "asked", "written"), rows, left=2)
    if outcome.dropped:
        print_table(
            ("dropped because", "texts or replies"), [[name, str(n)] for name, n in outcome.dropped.items()], left=1
        )
    for name, meter in outcome.usage.items():
        unknown = f", and {meter['usd_unknown']} replies of unknown cost" if meter["usd_unknown"] else ""
        screen.out(
            f"{name}: {meter['asked']} replies asked for, {meter['from_store']} taken from the store, "
            f"{meter['prompt_tokens'] + meter['completion_tokens']:,} tokens, {meter['usd']:.4f} USD{unknown}"
        )
    if outcome.made.lines:
        screen.out(f"Wrote {outcome.out}: {len(outcome.made.lines)} new questions in {outcome.made.rounds} rounds")


def _print_quality(quality: Quality, texts: dict[str, str]) -> None:

    screen = console()
    coverage = {(row.dimension, row.facet): row for row in quality.coverage}
    print_table(
        ("dimension", "facet", "all", "+1", "-1", "0", "nearest", "distinct"),
        [
            [
                *(row.dimension, row.facet, str(coverage[row.dimension, row.facet].questions)),
                *(str(count) for count in (row.agree, row.disagree, row.neither)),
                _number(coverage[row.dimension, row.facet].nearest, 3),
                _number(coverage[row.dimension, row.facet].distinct, 1),
            ]
            for row in quality.balance
        ],
        left=2,
    )
    print_table(
        ("dimension", "keyed", "share +1", "exact 95 % interval"),
        [
            [row.dimension, str(row.keyed), _number(row.share, 3), f"{_number(row.low, 3)} to {_number(row.high, 3)}"]
            for row in quality.keying
        ],
        left=1,
    )
    print_table(
        ("dimension", "words", "fewest", "most", "sentences", "grade"),
        [
            [
                row.dimension,
                f"{row.words:.1f}",
                str(row.fewest),
                str(row.most),
                f"{row.sentences:.2f}",
                f"{row.grade:.1f}",
            ]
            for row in quality.reading
        ],
        left=1,
    )
    screen.out("nearest: mean cosine of nearest neighbours within the facet")
    screen.out("distinct: effective number of distinct texts (Vendi score); grade: Flesch-Kincaid")
    for each in quality.repeats:
        kind = "the same text" if each.exact else f"cosine {each.cosine:.3f}"
        screen.out(f"{each.first} and {each.second}: {kind}\n  {texts[each.first]}\n  {texts[each.second]}")
    screen.out(f"{quality.questions} questions, {len(quality.repeats)} repeats (cosine from {quality.bound}, or exact)")


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
