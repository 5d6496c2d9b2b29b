"""Pages of the site that are made when it is built: what a command's help says, and what the stored results hold.

A hook of MkDocs. Nothing here is typed by hand twice: the command line's reference comes from the commands, tables
and figures of findings from the files that ``python -m training report`` wrote. Written pages link to those files, so
that they can be read where the repository is; on the site the same links lead to its pages.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from analyses import claims

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages and the published figures."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    for name, (stored, _) in LIVE.items():
        files.append(File.generated(config, name, content=live(stored)))
    for figure in published():
        name = str(figure.relative_to(ROOT))
        files.append(File.generated(config, name, abs_src_path=str(figure)))
    return files


PAGE_OF = {
    "analyses/10_what_the_paper_claims.ipynb": "findings/claims.md",
    "analyses/instruments/results/report.md": "findings/planted-truth-tables.md",
    "analyses/instruments/results/small/report.md": "findings/planted-truth-small.md",
    "analyses/instruments/results/gemma/report.md": "findings/planted-truth-gemma.md",
    "analyses/lenses": "findings/lenses-tables.md",
    "analyses/study/README.md": "findings/study-tables.md",
    "analyses/study-500/README.md": "findings/study-500.md",
    "analyses/where/report.md": "findings/where-tables.md",
    "memprobe/cli": "reference/cli.md",
    "training/__main__.py": "reference/training-cli.md",
    "memprobe/statistics/vocabulary.py": "reference/statistics.md",
}
"""What a page of the repository links to, and the site's page that shows it."""
_LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of a written page to files of the repository lead to what the site has of them."""
    del config, files
    return site_links(markdown, page.file.src_uri)


def site_links(markdown: str, name: str) -> str:
    """Markdown of a page (its path below ``docs``) with the site's links; figures keep their path below the root."""
    here = (ROOT / "docs" / name).parent

    def to_site(found: re.Match[str]) -> str:
        target = os.path.relpath(here / found[0], ROOT)
        on_site = PAGE_OF.get(target, target if target.startswith("figures/") else None)
        return found[0] if on_site is None else os.path.relpath(ROOT / "docs" / on_site, here)

    return _LINK.sub(to_site, markdown)


LIVE = {
    "gallery/demo.html": (
        "analyses/demo",
        "The report of `memprobe demo`: built-in facts in SmolLM2-135M-Instruct",
    ),
    "gallery/study.html": ("analyses/study", "The published study"),
}
"""Interactive pages of the gallery: the stored results that each is made of, and what it shows."""


def published() -> list[Path]:
    """The figures that the repository holds."""
    return sorted((ROOT / "figures").rglob("*.png"))


def live(stored: str) -> str:
    """The interactive page on stored results, as ``memprobe dashboard`` writes it."""
    from memprobe.dashboard import dashboard_text
    from memprobe.studies import open_study

    return dashboard_text(open_study([ROOT / stored]))


INSTRUMENTS = ROOT / "analyses" / "instruments" / "results"


def pages() -> dict[str, str]:
    """The text of each generated page, by its path below ``docs``."""
    from analyses.speed.costs import page as costs
    from memprobe.cli import app as commands
    from training.__main__ import app as training

    return {
        "reference/cli.md": command_line(commands.app, "memprobe"),
        "reference/training-cli.md": command_line(training, "python -m training"),
        "findings/study-tables.md": (ROOT / "analyses" / "study" / "README.md").read_text(encoding="utf-8"),
        "findings/planted-truth-tables.md": INSTRUMENTS.joinpath("report.md").read_text(encoding="utf-8"),
        **{
            f"findings/planted-truth-{name}.md": INSTRUMENTS.joinpath(name, "report.md").read_text(
                encoding="utf-8"
            )
            for name in ("small", "gemma")
        },
        "findings/study-500.md": study_500(),
        "findings/claims.md": claims.page(),
        "findings/cost.md": costs(),
        "findings/lenses-tables.md": lenses_tables(),
        "findings/where-tables.md": (ROOT / "analyses" / "where" / "report.md").read_text(encoding="utf-8"),
        "gallery.md": gallery(),
        "reference/statistics.md": statistics(),
    }


STUDY_500 = """# 500 facts on one GPU

SmolLM2-135M-Instruct (weights dequantised from 4 bits) learns 500 made-up keys, then 500 LAMA facts that it did not
know; bfloat16 autocast, learning rate 1e-4, batch 32. Other than in the paper, mixing rows have 12 words
in the place of 50 and stage 1 takes 30 epochs in the place of 20. Perplexity is on abstracts, which no arm mixes in.

Three seeds an arm, each with other LAMA facts and mixing rows. What that says of the paper's claims (arms without
three seeds are not judged):

![What is left of 500 keys, by arm](../figures/study-500/forgetting.png)

{verdicts}

- **REMIX with generic text** keeps {generic} of the keys, by seed {generic_seeds}; where one fixed sentence
  stands before all rows in the place of the first half of the words, {sentence}. **Random words** keep {random} in the
  paper's form, {random_sentence} behind the fixed sentence, and {redrawn} where they are drawn
  anew in each epoch (one seed). So neither the form of the prompt nor that the rows are fixed explains why random words
  keep nothing here.
- **Weight regularisation helps most**, other than the paper says: EWC at the strength that the pilot chose keeps
  {ewc}, and every seed learned D_B. KL keeps {kl}, 10 % replay {replay} (of keys that
  are not shown again {unseen}).
- **What it costs**: perplexity on abstracts after stage 1 is {perplexity}.
  Known facts that the model still recalls after stage 2: {known}.

What an arm costs, a cell, its stage 1 included (seconds in a process beside seven to nine others on the card):

{cost}

How every cell ended:

{cells}

The cells: `python -m training grid training/grids/study-500.toml --data-dir data --workers 8`, on an NVIDIA H100; the
two matched arms of seeds 0 and 1 on an H200, before passes were recorded as CUDA graphs, which computes the same up to
rounding. The tables from the stored results:
`python -m training report analyses/study-500 --figures figures/study-500`.

## The pilot

500 other keys, then 500 WebQuestions, one seed; rows with 50 words in stage 1 alone. Where D_B is not at 1 it was not
learned, so that what is kept cannot be interpreted. The rule: of the strengths with D_B at 1, the one that keeps most;
of EWC three were tried, of KL five. Among random rows of 50 words, 500 keys are not learned in 20 epochs.
`python -m training grid training/grids/pilot-500.toml --data-dir data --workers 6`

{pilot}
"""

_CLAIMS_500 = ("forgetting", "mixing", "baselines", "nats")


def study_500() -> str:
    """The study with 500 facts: verdicts, every cell, and the pilot that chose its settings."""
    import polars as pl

    folder = ROOT / "analyses" / "study-500"
    cells = pl.read_parquet(folder / "cells.parquet").sort("arm", "seed")
    shown = cells.select(
        "arm",
        "seed",
        "learned",
        pl.format("{} %", (100 * pl.col("retention")).round(1)).alias("keys kept"),
        pl.format("{} %", (100 * pl.col("retention_unseen")).round(1)).alias("of keys not shown again"),
        pl.format("{} %", (100 * pl.col("known_after_1")).round(0)).alias("known facts after stage 1"),
        pl.format("{} %", (100 * pl.col("known")).round(0)).alias("after stage 2"),
        pl.col("perplexity_after_1").round(1).alias("perplexity after stage 1"),
        pl.col("perplexity").round(1).alias("after 2"),
        pl.col("weight_change").round(1).alias("weights moved in stage 2"),
        "tokens",
    )
    found = pl.read_csv(folder / "tables" / "claims.csv").filter(
        pl.col("family").is_in(_CLAIMS_500), pl.col("verdict") != "not tested"
    )
    kept = {row["arm"]: row for row in pl.read_csv(folder / "tables" / "forgetting.csv").to_dicts()}

    def share(arm: str) -> str:
        row = kept[arm]
        low, high = row["low"], row["high"]
        interval = "" if low is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
        return f"{100 * row['retention']:.1f} %{interval}"

    def by_arm(column: str, arms: Mapping[str, str], scale: float = 1.0, unit: str = "") -> str:
        means = {
            arm: mean for arm, mean in cells.group_by("arm").agg(pl.col(column).mean()).iter_rows() if mean
        }
        return ", ".join(f"{name} {scale * means[arm]:.0f}{unit}" for arm, name in arms.items())

    return STUDY_500.format(
        verdicts=claims.verdicts_table(found),
        generic=share("generic-1"),
        generic_seeds=", ".join(
            f"{100 * kept_by:.1f} %" for kept_by in cells.filter(arm="generic-1")["retention"].to_list()
        ),
        sentence=share("generic-sentence"),
        random=share("random-1"),
        random_sentence=share("random-sentence"),
        redrawn=share("random-redrawn"),
        ewc=share("ewc-ewc100000"),
        kl=share("kl-kl0.3"),
        replay=share("replay"),
        unseen=f"{100 * kept['replay']['unseen']:.1f} %",
        perplexity=by_arm(
            "perplexity_after_1",
            {
                "naive": "naive",
                "matched-tokens": "matched tokens",
                "random-1": "random words",
                "generic-1": "generic text",
            },
        ),
        known=by_arm(
            "known",
            {
                "naive": "naive",
                "ewc-ewc100000": "EWC",
                "replay": "replay",
                "random-1": "random words",
                "generic-1": "generic text",
            },
            100,
            " %",
        ),
        cost=claims.markdown(
            pl.read_csv(folder / "tables" / "cost.csv")
            .drop("setup")
            .with_columns(pl.col("steps", "tokens", "seconds").round(0).cast(int))
        ),
        cells=claims.markdown(shown),
        pilot=claims.markdown(pl.read_csv(folder / "pilot.csv")),
    )


LENSES = """# Lenses: the stored tables

From `analyses/lenses`, made by `make fits`. Depths are means over facts, never counted as one depth further than there
are, with 95 % intervals over facts; *net* is minus shuffled answers; *agree*, the share of facts placed within two
depths of the Logit Lens; *floor*, how far apart two fits on halves of a lens's corpus place the mean, and a fact.

{known}

## On held-out text

KL to the model's own output by depth, in nats, of each fitted lens and of the Logit Lens on the same text.

{held_out}
"""


def lenses_tables() -> str:
    """Where the built-in facts surface by each lens, and how well each fitted lens predicts held-out text."""
    import polars as pl

    folder = ROOT / "analyses" / "lenses"
    known = pl.read_csv(folder / "known.csv")

    def ends(name: str) -> pl.Expr:
        return pl.format("{} [{}, {}]", *(pl.col(f"{name}{end}").round(1) for end in ("", "_low", "_high")))

    shown = known.select(
        pl.col("checkpoint").alias("model"),
        "lens",
        "k",
        ends("lof").alias("mean first occurrence"),
        pl.col("chance").round(1).alias("of shuffled answers"),
        ends("net").alias("net"),
        ends("difference").alias("less the Logit Lens"),
        pl.format("{} %", (100 * pl.col("agree")).round(0)).alias("agree"),
        pl.format("{}, {}", pl.col("floor_mean").round(2), pl.col("floor").round(2)).alias("floor"),
    )
    rows = []
    for path in sorted(folder.glob("*.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        rows += [
            {"model": about["model"], "lens": about["kind"], "tokens": about["corpus"]["tokens"]}
            | {"depth": at["depth"], "KL": round(at["kl"], 2), "Logit Lens": round(at["logit_kl"], 2)}
            for at in about["depths"]
            if at["depth"] % 6 == 0 or at["depth"] == about["n_layers"] - 1
        ]
    return LENSES.format(known=claims.markdown(shown), held_out=claims.markdown(pl.DataFrame(rows)))


COVERAGE = ROOT / "tests" / "benchmarks" / "interval_coverage.json"


def statistics() -> str:
    """Every statistic as the vocabulary has it, and how often its interval held the truth."""
    from memprobe.statistics.vocabulary import INTERVALS, STATISTICS

    measured = coverage(json.loads(COVERAGE.read_text(encoding="utf-8")))

    parts = [
        "# Statistics",
        "",
        "Keys as tables and JSON have them, from `memprobe.statistics.vocabulary`. All intervals are 95 %; how often",
        "they hold the truth was [measured](coverage.md), in simulated samples of usual size and in small or censored",
        "ones; where a statistic was not simulated itself, there is no number. `NAME_net` is a statistic minus that of",
        "shuffled answers.",
        "",
        "| key | what it is | unit | interval at one checkpoint | holds the truth in |",
        "|---|---|---|---|---|",
    ]
    for row in STATISTICS.values():
        label = row.label.format(k="k", never="n+1").replace("|", "\\|")
        held = measured.get("share_never" if row.interval == "wilson" else row.key, "")
        parts.append(f"| `{row.key}` | {label} | {row.unit} | {INTERVALS[row.interval]} | {held} |")
    return "\n".join(parts) + "\n"


def coverage(stored: Mapping[str, Any]) -> dict[str, str]:
    """How often the interval of each statistic at one checkpoint held the truth: ``95.4 % (92.7 to 97.3)``.

    Before the brackets stands the sample of usual size, in them the range over all simulated designs.
    """
    renamed = {"share never (Wilson)": "share_never"}
    usual = {renamed.get(name, name): share for name, share in stored["coverage"].items()}
    found: dict[str, list[float]] = {name: [share] for name, share in usual.items()}
    for name, share in stored["small"]["coverage"].items():
        found[renamed.get(name, name)].append(share)
    for row in stored["designs"]:
        given = row["share"] is not None and row.get("without", 0.0) <= 0.5  # else it says "too few"
        if row["design"] == "one checkpoint" and row["statistic"] in found and given:
            found[row["statistic"]].append(row["share"])
    return {
        name: f"{100 * usual[name]:.1f} % ({100 * min(all_of):.1f} to {100 * max(all_of):.1f})"
        for name, all_of in found.items()
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
    """Interactive pages, each in a frame, and every published figure, each with the command that makes it."""
    parts = ["# Gallery", ""]
    for name, (stored, caption) in LIVE.items():
        parts += [
            f"## {caption.partition(':')[0]}",
            "",
            f"{caption}. Made of `{stored}` by `memprobe dashboard {stored}`; [open it alone]({name}).",
            "",
            f'<iframe src="{name}" title="{caption.replace("`", "")}" loading="lazy" '
            'style="width: 100%; height: 40rem; border: 1px solid #8888"></iframe>',
            "",
        ]
    parts += ["## Figures", "", "Each is drawn from the JSON of its name.", ""]
    for figure in published():
        name = str(figure.relative_to(ROOT))
        parts += [f"![{figure.stem}]({name})", "", f"`{name.removesuffix('.png')}.json`", ""]
    return "\n".join(parts)
