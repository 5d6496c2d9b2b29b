"""Pages of the site that are made when it is built: what a command's help says, and what the stored results hold.

A hook of MkDocs. Nothing here is typed by hand twice: the command line's reference comes from the commands, tables
and figures of findings from the files that ``python -m training report`` wrote.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages and the published figures."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    for figure in sorted((ROOT / "figures").glob("*/*.png")):
        name = f"figures/{figure.parent.name}/{figure.name}"
        files.append(File.generated(config, name, abs_src_path=str(figure)))
    return files


def pages() -> dict[str, str]:
    """The text of each generated page, by its path below ``docs``."""
    from memprobe.cli import app as commands
    from training.__main__ import app as training

    return {
        "reference/cli.md": command_line(commands.app, "memprobe"),
        "reference/training-cli.md": command_line(training, "python -m training"),
        "findings/study-tables.md": (ROOT / "analyses" / "study" / "README.md").read_text(encoding="utf-8"),
        "findings/planted-truth-tables.md": (
            ROOT / "analyses" / "instruments" / "results" / "report.md"
        ).read_text(encoding="utf-8"),
        "gallery.md": gallery(),
    }


def command_line(app: typer.Typer, name: str) -> str:
    """Every command with what its ``--help`` says, as Markdown."""
    group: Any = typer.main.get_command(app)
    parts = [f"# `{name}`", "", group.help or ""]
    for key, command in sorted(group.commands.items()):
        parts += ["", f"## `{name} {key}`", "", inspect.cleandoc(command.help or ""), "", *options(command)]
    return "\n".join(parts) + "\n"


def options(command: Any) -> Iterator[str]:
    """The table of a command's arguments and options, line by line."""
    yield "| option | what it does |"
    yield "|---|---|"
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or "--help" in parameter.opts:
            continue
        argument = parameter.param_type_name == "argument"
        names = [parameter.name.upper()] if argument else [*parameter.opts, *parameter.secondary_opts]
        said = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
        default = parameter.default
        if default not in (None, False, True, (), []) and not callable(default) and "default" not in said:
            said += f" Default: `{default}`."
        yield f"| {', '.join(f'`{one}`' for one in names)} | {said} |"


def gallery() -> str:
    """Every published figure with its file's name."""
    parts = ["# Gallery", "", "Figures of the stored results; each is drawn from the JSON of its name.", ""]
    for figure in sorted((ROOT / "figures" / "study").glob("*.png")):
        parts += [
            f"![{figure.stem}](figures/study/{figure.name})",
            "",
            f"`figures/study/{figure.stem}.json`",
            "",
        ]
    return "\n".join(parts)
