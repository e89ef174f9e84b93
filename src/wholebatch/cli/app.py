"""The table of commands, and what stands above them all: the version and the help."""

from __future__ import annotations

from typing import Annotated

import typer

from wholebatch.cli import branch, config, data, demo, evaluate, export, models, plan, plot, predict, train, verify
from wholebatch.cli.words import WORDS
from wholebatch.version import __version__

MISTAKE = 2  # the exit code of a mistake in what was asked


def make() -> typer.Typer:
    """Return the application: every command a function that gives back what is to be done."""
    app = typer.Typer(
        name="wholebatch",
        add_completion=False,
        rich_markup_mode=None,
        invoke_without_command=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    learn = "With nothing else, trains on digits; no data are downloaded."
    app.command("train", context_settings=WORDS, epilog=learn)(train.train)
    app.command("evaluate", context_settings=WORDS)(evaluate.evaluate)
    app.command("predict")(predict.predict)
    app.command("export")(export.export)
    app.command("branch", context_settings=WORDS)(branch.branch)
    app.command("plan", context_settings=WORDS)(plan.plan)
    app.command("plot")(plot.plot)
    app.command("verify", context_settings=WORDS)(verify.verify)
    app.command("demo")(demo.demo)
    app.command("models", context_settings=WORDS)(models.models)
    group = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
    group.callback()(_config_options)
    group.command("show", context_settings=WORDS)(config.show)
    group.command("validate", context_settings=WORDS)(config.validate)
    app.add_typer(group, name="config")
    looks = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
    looks.callback()(_data_options)
    looks.command("show", context_settings=WORDS)(data.show)
    looks.command("check")(data.check)
    app.add_typer(looks, name="data")
    return app


def _version(asked: bool) -> None:
    if asked:
        print(f"wholebatch {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Ask for a batch size, get exactly that step, on whatever hardware you have."""
    _help_where_nothing_is_asked(context)


def _config_options(context: typer.Context) -> None:
    """Show or check a configuration."""
    _help_where_nothing_is_asked(context)


def _data_options(context: typer.Context) -> None:
    """Look at data before training on them."""
    _help_where_nothing_is_asked(context)


def _help_where_nothing_is_asked(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(MISTAKE)
