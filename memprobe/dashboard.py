"""A study -> one HTML file that opens from disk, needs no network, and runs no script but its own.

    probes ──── grouped by what was asked ─── statistics for every k and token rule ──┐
    training runs ─── evaluations, steps ─────────────────────────────────────────────┼─ figures, tables ── page
    comparisons ─── comparison.json ──────────────────────────────────────────────────┘

Statistics become figures and tables here; the scripts in ``memprobe/page/`` choose among them and compute none.
The report of one probe is the same page, with fewer rooms.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from memprobe import explorer, page, plots
from memprobe.arms import arm_names
from memprobe.errors import MemprobeError
from memprobe.explorer import Asked
from memprobe.files import read_json, write_text
from memprobe.plots import Sketch
from memprobe.probes import Probe, open_probe
from memprobe.records import ALIKE
from memprobe.statistics import K_VALUES, TOKEN_RULES
from memprobe.statistics.arms import MIN_SEEDS, Run, arm_means
from memprobe.statistics.controls import SHARES, STATISTICS, values_of
from memprobe.statistics.curves import frequency_of, recall_of, shuffled_recall_of
from memprobe.statistics.holding import trajectories
from memprobe.statistics.intervals import Resamples, bootstrap_mean, wilson
from memprobe.statistics.occurrence import Occurrence, kaplan_meier, placement_of
from memprobe.statistics.overview import (
    STATES,
    depth_shares,
    flows,
    mean_over_draws,
    outcome_shares,
    paired_means,
    resampled_means,
    states_of,
)
from memprobe.studies import Study, cells_of, learned, setup_of, short_names

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DRAWS = 2_000  # bootstrap draws per interval: the page has 18 times as many intervals as summary.json
MAX_POINTS = 1_200  # of one training curve

SHOWN = {
    "exact": ("exact match", True),
    "recall_full": ("recall@k at full depth", True),
    "lof": ("first occurrence (depth)", False),
    "lof_restricted": ("first occurrence, never as one deeper (depths)", False),
    "settled_restricted": ("settled depth, never as one deeper (depths)", False),
    "depths_per_factoid": ("depths held per factoid", False),
    "log_prob_full": ("log-probability at full depth (nats)", False),
}
"""Statistics that are drawn: what they are with their unit, and whether they are shares."""
COMPARED = (
    "exact",
    "recall_full",
    "lof_restricted",
    "settled_restricted",
    "depths_per_factoid",
    "log_prob_full",
)
"""Statistics whose differences are drawn; depths of "never" count as n_layers + 1, so that every factoid has one."""
STAGED = ("exact", "recall_full", "lof", "depths_per_factoid")
"""Statistics that are followed from stage to stage."""
MEASURES = {
    "loss": "training loss (nats per token)",
    "exact": "own rows exact",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
}
FATE_NAMES = {"said": "exact", "surfaces": "surfaces only", "absent": "absent"}
_SHARES = ("exact_match", "exact_tokens", "alias_match", "final_answer", "rouge_l")
_AGAINST = {
    "reference": "reference",
    "before": "stage before",
    "naive": "naive arm",
}


def write_report(probe: Probe, path: str | Path) -> None:
    """Writes the interactive report on a probe directory, with all its checkpoints, as one HTML file.

    Statistics are over all factoids. The explorer leaves out what is beyond
    :data:`memprobe.explorer.MAX_CELLS` (later answer tokens first, then factoids), and the page says so.

    Raises:
        MemprobeError: the probe has no records, or ``path`` cannot be written.
    """
    write_dashboard(Study([probe], [], []), path)


def write_dashboard(
    study: Study,
    path: str | Path,
    *,
    reference: str | None = None,
    fixed_readout: Sequence[Probe | str | Path] = (),
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Writes the page on a study as one HTML file.

    Args:
        reference: label of the checkpoint that differences are taken from, where a probe has it (default: the
            first checkpoint).
        fixed_readout: probes of the same checkpoints read with the base model's unembedding
            (``memprobe layers --readout``): their differences stand beside the others. Those that the study
            holds are taken as well, and can be looked at on their own.
        say: called with one line about each thing that is left out.

    Raises:
        MemprobeError: there is nothing to show, an unknown reference, broken files, or ``path`` cannot be written.
    """
    write_text(dashboard_text(study, reference=reference, fixed_readout=fixed_readout, say=say), Path(path))


def dashboard_text(
    study: Study,
    *,
    reference: str | None = None,
    fixed_readout: Sequence[Probe | str | Path] = (),
    say: Callable[[str], None] = lambda text: None,
    version: str | None = None,
) -> str:
    """The page of :func:`write_dashboard`.

    Args:
        version: of a page that a server shows: it asks for a newer one, see :mod:`memprobe.watch`.
    """
    fixed = [one if isinstance(one, Probe) else open_probe(one) for one in fixed_readout]
    for probe in fixed:
        if probe.run["readout"] == "own":
            raise MemprobeError(
                f"{probe.path}: read with each checkpoint's own unembedding; --fixed-readout needs a probe "
                "made with memprobe layers --readout BASE"
            )
    second = {probe.path.resolve() for probe in fixed}
    trained = cells_of(study)
    shown = [learned(probe, trained, say) for probe in study.probes if probe.path.resolve() not in second]
    shown.sort(key=lambda probe: probe.run["readout"] != "own")  # first what a model itself reads
    groups = asked_alike(shown, say)
    fixed += [probe for probe in shown if probe.run["readout"] != "own"]
    if not (groups or study.runs or study.comparisons):
        where = ", ".join(str(probe.path) for probe in study.probes)
        raise MemprobeError(f"{where}: no records to report on; see the errors in outcomes.parquet")
    if reference and not any(reference in group.labels for group in groups):
        known = ", ".join(label for group in groups for label in group.labels)
        raise MemprobeError(f"--reference {reference!r}: no such checkpoint; there are {known or 'none'}")
    ks = sorted({*K_VALUES, *(int(group.run["k"]) for group in groups)})
    sets, blocks = [], {}
    cells = explorer.MAX_CELLS // max(1, len(groups))
    for position, group in enumerate(groups):
        entry, own = _set_of(group, f"s{position}-", ks, reference, _fixed_of(group, fixed), cells)
        sets.append(entry)
        blocks |= own
    training, own = _training(study)
    blocks |= own
    comparisons, own = _comparisons(study.comparisons)
    blocks |= own
    title, subtitle = _headings(study, groups)
    data = {
        "title": title,
        "subtitle": subtitle,
        "k": ks,
        "rules": list(TOKEN_RULES),
        "templates": {theme: plots.template(theme) for theme in ("light", "dark")},
        "sets": sets,
        "training": training,
        "comparisons": comparisons,
        "version": version,
    }
    watching = ["watch.js"] if version is not None else []
    return page.assemble(
        title=f"{title} · memprobe",
        body="report.html",
        scripts=("core.js", "report.js", "explorer.js", "start.js", *watching, page.PLOTLY),
        data={"report-data": _rounded(data)},
        blocks=blocks,
        connects=version is not None,
    )


def write_figure(figure: Figure, path: str | Path, title: str) -> None:
    """Writes one figure as a self-contained page in the look of the report.

    Raises:
        MemprobeError: ``path`` cannot be written.
    """
    templates = {theme: plots.template(theme) for theme in ("light", "dark")}
    data = {"title": title, "figure": _figure(figure), "templates": templates}
    scripts = ("core.js", page.PLOTLY, "figure.js")
    text = page.assemble(
        title=title, body="figure.html", scripts=scripts, data={"figure-data": data}, blocks={}
    )
    write_text(text, Path(path))


# What was asked alike


def asked_alike(probes: Sequence[Probe], say: Callable[[str], None] = lambda text: None) -> list[Asked]:
    """Checkpoints by what they were asked: the same factoids, template, lens, readout and tokenisation.

    Set-ups of a grid stay apart (:func:`memprobe.studies.setup_of`). A label that several directories use is told
    apart by their names. Checkpoints without records are left out.
    """
    by_question: dict[tuple[Any, ...], list[Probe]] = {}
    for probe in probes:
        key = (probe.run["factoids"]["hash"], setup_of(probe.path), *(probe.run.get(name) for name in ALIKE))
        by_question.setdefault(key, []).append(probe)
    groups = []
    for together in by_question.values():
        present = []
        for probe in together:
            labels = set(probe.records["checkpoint"].unique())
            present += [(probe, label) for label in probe.checkpoints if label in labels]
            waiting = [label for label in probe.checkpoints if label not in labels]
            if waiting:
                say(f"{probe.path}: no records yet of {', '.join(waiting)}")
        if not present:
            continue
        labels = [label for _, label in present]
        folders = dict(zip(map(id, together), short_names([one.path for one in together]), strict=True))
        sources = {
            label if labels.count(label) == 1 else f"{folders[id(probe)]}/{label}": (probe, label)
            for probe, label in present
        }
        groups.append((together, sources))
    names = _question_names([together[0] for together, _ in groups])
    return [
        Asked(
            name=name,
            sources=sources,
            records=_under(sources, "records"),
            controls=_under(sources, "controls"),
            outcomes=_under(sources, "outcomes"),
            factoids=together[0].factoids,
            run=together[0].run,
        )
        for name, (together, sources) in zip(names, groups, strict=True)
    ]


def _under(sources: Mapping[str, tuple[Probe, str]], table: str) -> pl.DataFrame:
    """The table of several probes, with the labels that are used here."""
    parts = [
        getattr(probe, table)
        .filter(pl.col("checkpoint") == name)
        .with_columns(pl.lit(label, pl.String).alias("checkpoint"))
        for label, (probe, name) in sources.items()
    ]
    return pl.concat(parts)


def _question_names(probes: Sequence[Probe]) -> list[str]:
    """A short name for each set: the factoids' source and number, with what else tells it from the others."""
    runs = [probe.run for probe in probes]
    setups = [setup_of(probe.path) for probe in probes]
    names = [
        f"{run['factoids'].get('source') or 'a file'}, {run['factoids']['n']:,} factoids" for run in runs
    ]
    if len(set(setups)) > 1:
        names = [
            name + (f", {setup.name}" if setup else "") for name, setup in zip(names, setups, strict=True)
        ]
    for key, form in (("readout", "read out by {}"), ("template", "template {}"), ("lens", "{} lens")):
        if len({run.get(key) for run in runs}) > 1:
            for at, run in enumerate(runs):
                if names.count(names[at]) > 1 or run.get(key) != "own":
                    told = "its own readout" if run.get(key) == "own" else form.format(run.get(key))
                    names[at] = (
                        f"{names[at]}, {told}" if key != "readout" or told != "its own readout" else names[at]
                    )
    seen: dict[str, int] = {}
    for at, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if names.count(name) > 1:
            names[at] = f"{name} ({runs[at]['factoids']['hash'][:6]})"
    return names


def _fixed_of(group: Asked, fixed: Sequence[Probe]) -> Asked | None:
    """The same checkpoints and factoids in the base model's readout, under the labels of the group."""
    for probe in fixed if group.run["readout"] == "own" else ():
        if probe.run["factoids"]["hash"] != group.run["factoids"]["hash"]:
            continue
        sources = {
            label: (probe, name)
            for label, (own, name) in group.sources.items()
            if name in probe.checkpoints and probe.fingerprint(name) == own.fingerprint(name)
        }
        if sources:
            parts = [_under(sources, table) for table in ("records", "controls", "outcomes")]
            return Asked(group.name, sources, *parts, factoids=group.factoids, run=probe.run)
    return None


# One set of checkpoints


@dataclass(frozen=True)
class _Chain:
    """The checkpoints of one training run, in the order of training."""

    name: str
    arm: str
    plain: str  # the arm without the dataset that tells it from others of the same arm
    seed: str | None
    stages: list[int]
    stage_names: list[str]
    labels: list[str]


def _set_of(
    asked: Asked, prefix: str, ks: Sequence[int], reference: str | None, fixed: Asked | None, cells: int
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the page shows of one set: the entry that is read at once, and the blocks that wait."""
    labels = asked.labels
    chosen, tokens, left_out = explorer.explored(asked, cells)
    records, blocks, texts = explorer.pack_records(asked, chosen, tokens, prefix)
    base = _base_of(asked)
    chains = _chains(asked, base)
    origin = reference if reference in labels else labels[0]
    followed = chains or [
        _Chain(f"{origin} → {label}", label, label, None, [0, 1], [origin, label], [origin, label])
        for label in labels
        if label != origin
    ]
    pairs = _pairs(asked, chains, origin)
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    headline: dict[str, dict[str, Any]] = {}
    arms: dict[str, dict[str, Any]] = {}
    occurrence = []
    for rule in TOKEN_RULES:
        under = _Rule(asked, rule, chains, followed, pairs, fixed)
        headline[rule], arms[rule] = {}, {}
        for k in ks:
            drawn, headline[rule][str(k)], arms[rule][str(k)] = under.tables(k)
            occurrence += [
                explorer.depth_columns(Occurrence.of(under.answers[label], k), chosen["id"].to_list())
                for label in labels
            ]
            for name, figure in drawn.items():
                figures.setdefault(name, {}).setdefault(rule, {})[str(k)] = _figure(figure)
    paths = {chain.name: chain.labels for chain in followed}
    blocks |= {f"{prefix}{name}": _block(figure) for name, figure in figures.items()}
    blocks |= {
        f"{prefix}trajectory": _block(_trajectory(asked)),
        f"{prefix}factoids": _block(explorer.factoid_columns(asked, chosen, paths)),
        f"{prefix}occurrence": b"".join(occurrence),
        f"{prefix}tokens": _block(texts),
    }
    manifests = {label: asked.entry(label).get("manifest") or {} for label in labels}
    entry = {
        "name": asked.name,
        "prefix": prefix,
        "subtitle": _asked_how(asked),
        "checkpoints": [
            {"label": label, "n_layers": asked.n_layers[label]}
            | plots.style(position)
            | {name: manifests[label].get(name) for name in ("arm", "seed", "stage", "stage_name")}
            | {"base": label == base}
            for position, label in enumerate(labels)
        ],
        "default": {"k": int(asked.run["k"]), "rule": asked.run["token"]},
        "controls": not asked.shuffled.is_empty(),
        "headline": headline,
        "arms": arms if any(arms[TOKEN_RULES[0]].values()) else None,
        "figures": list(figures),
        "statistics": {name: label for name, (label, _) in SHOWN.items()},
        "against": [
            [key, f"{name} ({origin})" if key == "reference" else name]
            for key, name in _AGAINST.items()
            if any(pair[0] == key for pair in pairs)
        ],
        "fixed": fixed is not None,
        "chains": [
            {"name": chain.name, "checkpoints": chain.labels, "stages": chain.stage_names}
            for chain in followed
        ],
        "records": records,
        "left_out": left_out,
        "run": _what_was_run(asked),
        "run_checkpoints": _checkpoint_rows(asked),
    }
    return entry, blocks


def _base_of(asked: Asked) -> str | None:
    """The one checkpoint without a manifest among others that have one, or the one called base."""
    bare = [label for label in asked.labels if not asked.entry(label).get("manifest")]
    if len(bare) == 1 < len(asked.labels):
        return bare[0]
    called = [label for label, (_, name) in asked.sources.items() if name == "base"]
    return called[0] if called else None


def _chains(asked: Asked, base: str | None) -> list[_Chain]:
    """The training runs that the manifests tell of, each from the base model on."""
    made: dict[tuple[str, str], dict[int, dict[str, str]]] = {}
    names: dict[str, str] = {}
    for label in asked.labels:
        manifest = asked.entry(label).get("manifest") or {}
        if manifest.get("arm") is None or not str(manifest.get("stage", "")).isdigit():
            continue
        names[label] = f"{manifest['stage']} {manifest.get('stage_name') or ''}".strip()
        stages = made.setdefault((str(manifest["arm"]), str(manifest.get("seed", ""))), {})
        # Of checkpoints along the way, the last one stands for the stage.
        stages.setdefault(int(manifest["stage"]), {})[names[label]] = label
    short = arm_names([arm for arm, _ in made])
    chains = []
    for (arm, seed), stages in made.items():
        numbers = sorted(stages)
        # Runs that share their first stages end on different datasets: one chain for each.
        for last in stages[numbers[-1]]:
            several = len(stages[numbers[-1]]) > 1
            labels = [
                stages[number][last if number == numbers[-1] else next(iter(stages[number]))]
                for number in numbers
            ]
            named = f"{short[arm]} → {last}" if several else short[arm]
            first = [] if base is None or base in labels else [base]
            chains.append(
                _Chain(
                    name=f"{named}, seed {seed}" if seed else named,
                    arm=named,
                    plain=short[arm],
                    seed=seed or None,
                    stages=[0] * len(first) + numbers,
                    stage_names=["base"] * len(first) + [names[label] for label in labels],
                    labels=first + labels,
                )
            )
    return [chain for chain in chains if len(chain.labels) > 1]


def _pairs(asked: Asked, chains: Sequence[_Chain], origin: str) -> list[tuple[str, str, str]]:
    """(against what, reference, checkpoint) of every difference that is shown."""
    pairs = [("reference", origin, label) for label in asked.labels if label != origin]
    for chain in chains:
        pairs += [("before", one, other) for one, other in zip(chain.labels, chain.labels[1:], strict=False)]
    naive = {
        (chain.seed, stage, name): label
        for chain in chains
        if chain.plain == "naive"
        for stage, name, label in zip(chain.stages, chain.stage_names, chain.labels, strict=True)
    }
    for chain in chains:
        for stage, name, label in zip(chain.stages, chain.stage_names, chain.labels, strict=True):
            other = naive.get((chain.seed, stage, name))
            if stage > 0 and other is not None and other != label:
                pairs.append(("naive", other, label))
    depth = asked.n_layers
    return [pair for pair in dict.fromkeys(pairs) if depth[pair[1]] == depth[pair[2]]]


class _Rule:
    """What the page shows of a set under one token rule. The rule is applied once; each k then is a threshold."""

    def __init__(
        self,
        asked: Asked,
        rule: str,
        chains: Sequence[_Chain],
        followed: Sequence[_Chain],
        pairs: Sequence[tuple[str, str, str]],
        fixed: Asked | None,
    ) -> None:
        self.asked, self.chains, self.followed, self.pairs = asked, chains, followed, pairs
        self.labels = asked.labels
        self.answers = {part.checkpoint: part for part in trajectories(asked.records, token=rule)}
        self.others = list(trajectories(asked.shuffled, token=rule))
        self.outcomes = {
            label: outcome_shares(asked.outcomes.filter(pl.col("checkpoint") == label))
            for label in self.labels
        }
        self.accuracy = {
            label: exact["value"] if (exact := row["exact_match"] or row["exact_tokens"]) else None
            for label, row in self.outcomes.items()
        }
        common = set.intersection(*(set(part.factoids) for part in self.answers.values()))
        self.everyone = asked.factoids.filter(pl.col("id").is_in(list(common)))
        ids = self.everyone["id"].to_numpy()
        self.aligned = {label: self.answers[label].select(ids) for label in self.labels}
        self.exact = dict(
            zip(self.labels, explorer.exact_in(asked, self.everyone, self.labels).T, strict=True)
        )
        self.fixed = {}
        if fixed is not None:
            found = {part.checkpoint: part for part in trajectories(fixed.records, token=rule)}
            self.fixed = {
                label: part.select(ids) for label, part in found.items() if common <= set(part.factoids)
            }
        self.resamples: dict[tuple[int, int], Resamples] = {}

    def tables(self, k: int) -> tuple[dict[str, Sketch], dict[str, Any], list[dict[str, Any]]]:
        """Figures by name, the numbers on top by checkpoint, and the means over seeds by arm and stage."""
        answers = list(self.answers.values())
        recall, frequency = recall_of(answers, k=k), frequency_of(answers, k=k)
        chance = shuffled_recall_of(self.others, k=k)
        found = {label: Occurrence.of(self.answers[label], k) for label in self.labels}
        look = {"checkpoints": self.labels}
        figures = {
            "recall": plots.recall_curves.sketch(recall, chance, accuracy=self.accuracy, **look),
            "frequency": plots.normalised_frequency.sketch(frequency, accuracy=self.accuracy, **look),
            "recall-heatmap": plots.depth_heatmap.sketch(recall, "recall", title=f"recall@{k}", **look),
            "frequency-heatmap": plots.depth_heatmap.sketch(
                frequency, "frequency", title="share of occurrences", largest=None, **look
            ),
        }
        for name, of in (("lof", "first occurrence"), ("settled", "settled depth")):
            depths = {label: (getattr(one, name), one.n_layers) for label, one in found.items()}
            figures[name] = plots.depth_distribution.sketch(depth_shares(depths), of=of, **look)
            survival = pl.concat(
                kaplan_meier(depth, layers).with_columns(pl.lit(label, pl.String).alias("checkpoint"))
                for label, (depth, layers) in depths.items()
            )
            figures[f"{name}-survival"] = plots.survival_curves.sketch(survival, of=of, **look)
        arms: list[dict[str, Any]] = []
        if len(self.everyone):
            values = {
                label: values_of(part, Occurrence.of(part, k), self.exact[label])
                for label, part in self.aligned.items()
            }
            figures |= self._differences(values, k)
            figures |= self._fates(k)
            if self.chains:
                staged, arms = self._stages(values)
                figures |= staged
        return figures, self._headline(k, found, recall, chance), arms

    def _headline(
        self, k: int, found: Mapping[str, Occurrence], recall: pl.DataFrame, chance: pl.DataFrame
    ) -> dict[str, Any]:
        by_chance: dict[str, list[dict[str, float | None]]] = {}
        for part in self.others:
            placed = placement_of(Occurrence.of(part, k), self._draws(len(part.factoids), 1))
            by_chance.setdefault(part.checkpoint, []).append(placed)
        names = ("lof_mean", "lof_sd", "share_never", "depths_per_factoid")
        rows: dict[str, dict[str, Any]] = {}
        for label in self.labels:
            rows[label] = self.outcomes[label] | placement_of(
                found[label], self._draws(len(found[label].factoids), DRAWS)
            )
            rows[label]["recall"] = _at_full_depth(recall, label)
            rows[label]["shuffled"] = None
            if draws := by_chance.get(label):
                rows[label]["shuffled"] = mean_over_draws(draws, names) | {
                    "recall": _at_full_depth(chance, label)
                }
        return rows

    def _differences(self, values: Mapping[str, np.ndarray], k: int) -> dict[str, Sketch]:
        if not self.pairs:
            return {}
        resamples = self._draws(len(self.everyone), DRAWS)
        beside = {
            label: values_of(part, Occurrence.of(part, k), self.exact[label])
            for label, part in self.fixed.items()
        }
        pairs = pl.DataFrame(
            [[at, *pair] for at, pair in enumerate(self.pairs)],
            schema=["pair", "against", "reference", "checkpoint"],
            orient="row",
        )

        def subtracted(of: Mapping[str, np.ndarray]) -> pl.DataFrame:
            """One product with the draws for all pairs."""
            unknown = np.full((len(self.everyone), len(STATISTICS)), np.nan)
            values = [of.get(other, unknown) - of.get(one, unknown) for _, one, other in self.pairs]
            return paired_means(np.stack(values, axis=1), resamples)

        table = pairs.join(subtracted(values), on="pair", how="left", maintain_order="left_right")
        if self.fixed:
            names = {name: f"fixed_{name}" for name in ("difference", "low", "high")}
            second = subtracted(beside).select("pair", "statistic", *names).rename(names)
            table = table.join(second, on=["pair", "statistic"], how="left", maintain_order="left")
        return {
            f"difference-{name}": plots.difference_forest.sketch(
                table.filter(pl.col("statistic") == name),
                x=_unit(name),
                percent=SHOWN[name][1],
                checkpoints=self.labels,
            )
            for name in COMPARED
        }

    def _fates(self, k: int) -> dict[str, Sketch]:
        found = {}
        states = {label: states_of(self.exact[label], part.held(k)) for label, part in self.aligned.items()}
        assert tuple(FATE_NAMES) == STATES
        for position, chain in enumerate(self.followed):
            table = flows(np.column_stack([states[label] for label in chain.labels]))
            found[f"fate-{position}"] = plots.fate_flows.sketch(table, chain.stage_names, names=FATE_NAMES)
        return found

    def _stages(self, values: Mapping[str, np.ndarray]) -> tuple[dict[str, Sketch], list[dict[str, Any]]]:
        """A line for each run; with three seeds of an arm or more, their mean and its interval as well."""
        n = len(self.everyone)
        resamples = self._draws(n, DRAWS)
        together = np.column_stack([values[label] for label in self.labels])
        # [edge, label, statistic] and so on: one product with the draws for all checkpoints.
        shape = (len(self.labels), len(STATISTICS))
        edges = np.reshape(bootstrap_mean(together, resamples), (3, *shape))
        means_of, draws_of = (
            part.reshape(*part.shape[:-1], *shape) for part in resampled_means(together, resamples)
        )
        place = {label: at for at, label in enumerate(self.labels)}
        called: dict[int, set[str]] = {}
        for chain in self.chains:
            for stage, name in zip(chain.stages, chain.stage_names, strict=True):
                called.setdefault(stage, set()).add(name)
        names = {
            stage: min(found) if len(found) == 1 else f"stage {stage}" for stage, found in called.items()
        }
        runs = [
            Run(
                chain.arm,
                str(stage),
                chain.seed or "",
                label,
                means_of[place[label]],
                draws_of[:, place[label]],
            )
            for chain in self.chains
            for stage, label in zip(chain.stages, chain.labels, strict=True)
            if stage > 0
        ]
        means = arm_means(runs, list(STATISTICS), n, shares=SHARES)
        several = means.filter(pl.col("seeds") >= MIN_SEEDS)
        figures = {}
        # An arm looks like the last checkpoint of its first run.
        looks = {chain.arm: self.labels.index(chain.labels[-1]) for chain in reversed(self.chains)}
        for name in STAGED:
            _, share = SHOWN[name]
            column = STATISTICS.index(name)
            rows = []
            for chain in self.chains:
                for stage, checkpoint in zip(chain.stages, chain.labels, strict=True):
                    value = edges[:, place[checkpoint], column].tolist()
                    if share:
                        value[1:] = map(float, wilson(value[0], np.array(n)))
                    rows.append([chain.arm, chain.seed, checkpoint, stage, names[stage], *value])
            for row in several.filter(pl.col("statistic") == name).iter_rows(named=True):
                stage = int(row["stage"])
                value = [row["mean"], row["low"], row["high"]]
                rows.append([row["arm"], None, "", stage, names[stage], *value])
            text = dict.fromkeys(("arm", "seed", "checkpoint"), pl.String)
            schema = (
                text
                | {"stage": pl.Int64, "stage_name": pl.String}
                | dict.fromkeys(("value", "low", "high"), pl.Float64)
            )
            table = pl.DataFrame(rows, schema=schema, orient="row").with_columns(
                pl.col("value", "low", "high").fill_nan(None)
            )
            figures[f"stage-{name}"] = plots.stage_lines.sketch(table, y="", percent=share, looks=looks)
        if not (means["seeds"] > 1).any():
            return figures, []
        rows = []
        for (arm, stage), part in means.group_by("arm", "stage", maintain_order=True):
            numbers = {
                row["statistic"]: {key: row[key] for key in ("mean", "low", "high", "by_seed")}
                for row in part.iter_rows(named=True)
                if row["statistic"] in STAGED
            }
            rows.append({"arm": arm, "stage": names[int(str(stage))], "seeds": part["seeds"][0]} | numbers)
        return figures, rows

    def _draws(self, n: int, draws: int) -> Resamples:
        if (n, draws) not in self.resamples:
            self.resamples[n, draws] = Resamples.of(n, draws=draws)
        return self.resamples[n, draws]


def _unit(statistic: str) -> str:
    """The axis of a difference: its unit."""
    label, share = SHOWN[statistic]
    unit = label.rpartition("(")[2].rstrip(")") if "(" in label else "depths"
    return "difference in percentage points" if share else f"difference in {unit}"


def _at_full_depth(recall: pl.DataFrame, label: str) -> dict[str, float] | None:
    rows = recall.filter(pl.col("checkpoint") == label)
    if rows.is_empty():
        return None
    deepest = rows.filter(pl.col("depth") == rows["depth"].max())
    return dict(zip(("value", "low", "high"), deepest.select("recall", "low", "high").row(0), strict=True))


def _trajectory(asked: Asked) -> dict[str, Any]:
    """The figure of one factoid, for the page to put each factoid's own numbers into."""
    first = asked.records.filter(pl.col("token") == 0)
    some = [first.filter(pl.col("checkpoint") == label).head(1) for label in asked.labels]
    rows = pl.concat(some).with_columns(factoid=pl.lit(""))
    return _figure(plots.rank_trajectory(rows, k=int(asked.run["k"]), checkpoints=asked.labels))


# Training runs


def _training(study: Study) -> tuple[dict[str, Any] | None, dict[str, bytes]]:
    """Scores after each stage and the curves of training."""
    if not study.runs:
        return None, {}
    scores = _base_once(
        study.evaluations().with_columns(
            row=pl.format("{}, {} {}", "run", "stage", "stage_name"),
            share=pl.col("metric").is_in(_SHARES),
        )
    )
    blocks, others, note = {}, [], ""
    shares = scores.filter("share", "headline")
    if len(shares):
        blocks["matrix"] = _block(_figure(plots.accuracy_matrix.sketch(shares)))
    rest = scores.filter(~pl.col("share"), pl.col("headline"))
    if len(rest):
        others = [["After", "Evaluated on", "Score", "n", "Value", "95 % interval"]]
        for row in rest.iter_rows(named=True):
            edges = "" if row["low"] is None else f"{row['low']:.3g} – {row['high']:.3g}"
            others.append(
                [row["row"], row["dataset"], row["metric"], f"{row['n']:,}", f"{row['value']:.3g}", edges]
            )
    steps = study.training()
    stages = steps.select("stage", "stage_name").unique(maintain_order=True).sort("stage").rows()
    curves: dict[str, list[str]] = {}
    for stage, name in stages:
        here = steps.filter(pl.col("stage") == stage, pl.col("stage_name") == name)
        longest = here.group_by("run").len()["len"].max()
        apart = -(-int(longest or 1) // MAX_POINTS)  # type: ignore[call-overload]
        if apart > 1:
            here = here.filter(pl.int_range(pl.len()).over("run") % apart == 0)
            note = f"Of long stages one step in {apart} is drawn; metrics.jsonl has them all."
        for measure, label in MEASURES.items():
            drawn = here.filter(pl.col(measure).is_not_null())
            if drawn.is_empty():
                continue
            log = measure in ("loss", "grad_norm") and bool((drawn[measure] > 0).all())
            block = f"training-{len(blocks)}"
            blocks[block] = _block(_figure(plots.training_curves.sketch(drawn, measure, y=label, log=log)))
            curves.setdefault(measure, []).append(f"{block}\nStage {stage}: {name}")
    running = [f"{run.name}, stage {number} {name}" for run in study.runs for number, name, _ in run.running]
    entry = {
        "runs": [[run.name, run.arm, str(run.seed)] for run in study.runs],
        "matrix": "matrix" in blocks,
        "others": others,
        "curves": {measure: [name.split("\n") for name in names] for measure, names in curves.items()},
        "measures": MEASURES,
        "running": running,
        "note": note,
    }
    return entry, blocks


def _base_once(scores: pl.DataFrame) -> pl.DataFrame:
    """Scores with the base model's first: those of one run, where the others' are among them."""
    base = scores.filter(stage=0)
    found = {
        run: set(part.select("dataset", "metric", "value").iter_rows())
        for (run,), part in base.group_by("run", maintain_order=True)
    }
    kept: list[Any] = []
    for run in sorted(found, key=lambda run: -len(found[run])):
        if not any(found[run] <= found[other] for other in kept):
            kept.append(run)
    base = base.filter(pl.col("run").is_in(kept))
    if len(kept) == 1:
        base = base.with_columns(row=pl.lit("base model"))
    return pl.concat([base, scores.filter(pl.col("stage") > 0)])


# Comparisons


def _comparisons(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Differences and placement claims as ``memprobe compare`` wrote them."""
    entries, blocks = [], {}
    for position, (path, name) in enumerate(
        zip(paths, short_names([one.parent for one in paths]), strict=True)
    ):
        found = read_json(path)
        try:
            labels = [row["label"] for row in found["checkpoints"]]
            rows = [row for row in found["tables"].get("differences", []) if row["on"] == "all"]
            about = (
                f"k = {found['k']}, token rule {found['token']}, {found['factoids']:,} factoids, "
                f"{found['draws']:,} draws, against {found['reference']}"
            )
            if found.get("base") not in (None, found["reference"]):
                about += f" and {found['base']}"
            claims = found["tables"].get("claims", [])
            notes = found["notes"]
            table = pl.DataFrame(
                [
                    [
                        f"comparison-{position}",
                        *(row[key] for key in ("reference", "checkpoint", "statistic", "n")),
                    ]
                    + [row[key] for key in ("difference", "low", "high")]
                    for row in rows
                ],
                schema=["against", "reference", "checkpoint", "statistic", "n", "difference", "low", "high"],
                orient="row",
                infer_schema_length=None,
            )
            held = [["Checkpoint", "Against", "Statistic", "Own readout", "Base model’s readout", "Held"]]
            held += [_claim(row) for row in claims if row["held"] is not None]
        except (KeyError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
            raise MemprobeError(
                f"{path}: not as memprobe compare writes it ({error}); compare again"
            ) from error
        figures = []
        for statistic in COMPARED:
            label, share = SHOWN[statistic]
            part = table.filter(pl.col("statistic") == statistic) if len(table) else table
            if len(part):
                several = part["reference"].n_unique() > 1
                if several:
                    part = part.filter(pl.col("reference") == found["reference"])
                block = f"comparison-{position}-{statistic}"
                figure = plots.difference_forest.sketch(
                    part, x=_unit(statistic), percent=share, checkpoints=labels
                )
                blocks[block] = _block(_figure(figure))
                figures.append([block, label])
        entries.append(
            {"name": name, "about": about, "notes": notes, "figures": figures, "claims": held[1:] and held}
        )
    return entries, blocks


def _claim(row: Mapping[str, Any]) -> list[str]:
    def interval(which: str) -> str:
        value, low, high = (row[f"{which}_{end}"] for end in ("difference", "low", "high"))
        if value is None:
            return "–"
        return f"{value:+.2f}" + ("" if low is None else f" ({low:+.2f} … {high:+.2f})")

    held = {True: "yes", False: "no", None: "not known"}[row["held"]]
    statistic = SHOWN.get(row["statistic"], (row["statistic"],))[0]
    return [row["checkpoint"], row["reference"], statistic, interval("own"), interval("fixed"), held]


# What was run


def _headings(study: Study, groups: Sequence[Asked]) -> tuple[str, str]:
    labels = [label for group in groups for label in group.labels]
    if not groups:
        count = len(study.runs)
        named = study.runs[0].name if count == 1 else f"{count} training runs"
        return (f"Training: {named}" if study.runs else "Comparisons", "")
    title = labels[0] if len(labels) == 1 else f"{len(labels)} checkpoints"
    parts = []
    if len(groups) > 1:
        parts.append(f"{len(groups)} sets of factoids")
    if study.runs:
        parts.append(f"{len(study.runs)} training run{'s' * (len(study.runs) > 1)}")
    if study.comparisons:
        parts.append(f"{len(study.comparisons)} comparison{'s' * (len(study.comparisons) > 1)}")
    return f"Where facts surface in {title}", " · ".join(parts)


def _asked_how(asked: Asked) -> str:
    run = asked.run
    n, errors = len(asked.factoids), asked.outcomes["error"].is_not_null().sum()
    parts = [
        f"{n:,} factoids from {run['factoids'].get('source', 'a file')}",
        f"{run['lens'].capitalize()} Lens",
        "each checkpoint’s own readout" if run["readout"] == "own" else f"read out by {run['readout']}",
        f"template {run['template']}",
    ]
    if errors:
        parts.append(f"{errors:,} left out with an error")
    probes = {id(probe): probe for probe, _ in asked.sources.values()}.values()
    waiting = [
        label for probe in probes for label in probe.checkpoints if (probe.path, label) not in _present(asked)
    ]
    if waiting:
        parts.append(f"no records yet of {', '.join(waiting)}")
    return " · ".join(parts)


def _present(asked: Asked) -> set[tuple[Path, str]]:
    return {(probe.path, name) for probe, name in asked.sources.values()}


def _what_was_run(asked: Asked) -> list[tuple[str, str]]:
    run = asked.run
    facts = run["factoids"]
    versions = {"memprobe": run["memprobe"]} | run["versions"]
    return [
        ("Factoids", f"{facts.get('source', '')}, {facts['n']:,}, sha256 {facts['hash']}"),
        ("Template", run["template"]),
        ("Tokenisation", run["tokenisation"]),
        ("Lens", run["lens"]),
        ("Readout", run["readout"]),
        ("Precision", f"model {run['dtype']}, readout float32"),
        ("Seed", str(run["seed"])),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Intervals", f"95 %; Wilson for shares, else {DRAWS:,} bootstrap draws over factoids"),
        ("On this page", f"log-probabilities in half precision, ranks up to {explorer.MAX_RANK:,}"),
    ]


def _checkpoint_rows(asked: Asked) -> list[list[str]]:
    rows = [["Checkpoint", "Spec", "Fingerprint", "Layers", "Width", "Vocabulary", "Trained as"]]
    for label in asked.labels:
        entry = asked.entry(label)
        manifest = entry.get("manifest") or {}
        trained = ", ".join(
            f"{key} {manifest[key]}" for key in ("arm", "stage", "seed", "steps") if key in manifest
        )
        complete = "" if entry.get("complete", True) else " (unfinished)"
        rows.append(
            [
                label + complete,
                str(entry.get("spec") or "in memory"),
                str(entry["fingerprint"])[:16],
                str(entry["n_layers"]),
                str(entry.get("d_model", "")),
                f"{entry['vocab']:,}" if "vocab" in entry else "",
                trained,
            ]
        )
    return rows


# JSON


def _figure(figure: Figure | Sketch) -> dict[str, Any]:
    """A figure as plain JSON without its template, which the page sets by theme."""
    if isinstance(figure, Sketch):
        return {"data": figure.data, "layout": figure.layout}
    plain = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return plain


def _block(value: Any) -> bytes:
    return page.embedded_json(_rounded(value)).encode()


def _rounded(value: Any) -> Any:
    """Numbers with seven digits: more than any figure shows, and half the size."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
