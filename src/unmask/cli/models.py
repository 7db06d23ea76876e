"""`unmask model`: the embedded models."""

from __future__ import annotations

from typing import Annotated

import typer

from unmask.cli.screen import console, reporter

model_app = typer.Typer(no_args_is_help=True, help="The embedded models.", rich_markup_mode=None)


@model_app.command("pull")
def pull(name: Annotated[str, typer.Argument(help="Name of an embedded model.")] = "smollm2") -> None:
    """Fetch an embedded model, check it, and unpack it into the cache (once)."""
    from unmask.models.embedded import is_pulled, pull_embedded

    screen = console()
    known = is_pulled(name)
    with reporter(screen) as progress:
        folder = pull_embedded(name, progress=progress)
    screen.out(f"{name} {'was there already' if known else 'is ready'}: {folder}")


@model_app.command("list")
def list_models() -> None:
    """List the embedded models and where they lie."""
    from unmask.models.embedded import EMBEDDED, embedded_folder, is_pulled

    for spec in EMBEDDED.values():
        place = (
            str(embedded_folder(spec.name)) if is_pulled(spec.name) else f"not pulled: unmask model pull {spec.name}"
        )
        console().out(f"{spec.name}  {spec.description}  {place}")
