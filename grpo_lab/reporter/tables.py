"""Tables as data: the same cells become Markdown and HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grpo_lab.reporter import paired
from grpo_lab.reporter.best import best
from grpo_lab.reporter.configurations import Configuration, failure_of
from grpo_lab.reporter.folder import LeftOut, name
from grpo_lab.store import markdown, measures, stats
from grpo_lab.store.estimates import Estimate
from grpo_lab.store.folder import Row
from grpo_lab.store.measures import Measure

SAMPLE = 300
"""Characters of a completion in a table."""
HOW_TO_READ = (
    "Beside each number: its 95% interval and n. A timing of one run is the median of its n steps (or rounds) after "
    "warm-up; fewer than 6 have no interval but their range. An accuracy of one run is over n problems. Where a "
    "configuration ran with several seeds, the number is the mean over the runs (n runs), with Student's t interval "
    "over them, never narrower than the runs' own. Bold: the best of the configurations that did the same work, each "
    "with three runs or more, where its interval stands clear of all the others' (of accuracies on the same problems, "
    "where each paired difference does)."
)


@dataclass(frozen=True)
class Cell:
    text: str
    interval: str = ""
    n: str = ""
    best: bool = False
    number: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    numbers: frozenset[int] = field(default_factory=frozenset)
    """Columns that are right-aligned."""
    note: str = ""
    """Below the table."""

    def markdown(self) -> str:
        rows = markdown.table(self.head, ([_plain(cell) for cell in row] for row in self.rows), self.numbers)
        above = f"{self.caption}\n\n" if self.caption else ""
        below = f"\n{self.note}\n" if self.note else ""
        return f"## {self.title}\n\n{above}{rows}\n{below}"

    _repr_markdown_ = markdown
    """How a notebook shows it."""


def _plain(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    aside = ", ".join(part for part in (cell.interval, cell.n) if part)
    return f"{text} ({aside})" if aside else text


def measured(estimate: Estimate | None, *, is_best: bool = False) -> Cell:
    if estimate is None:
        return Cell("not measured")
    value, interval = estimate.text()
    return Cell(value, interval, estimate.count, is_best, number=True)


def comparisons(configurations: Sequence[Configuration], headlines: Sequence[Measure]) -> list[Table]:
    """Where all did the same work, one table with a row for each way to do it; otherwise one table for each headline,
    with a row for each work and a column for each way. None where there is nothing to compare."""
    works, ways = _in_order(entry.work for entry in configurations), _in_order(entry.way for entry in configurations)
    there = [key for key in headlines if any(key.name in entry.estimates for entry in configurations)]
    if len(ways) < 2 or not there:
        return []
    marked = {key.name: best(configurations, key) for key in there}
    placed = {(entry.work, entry.way): entry for entry in configurations}

    def cell(work: str, way: str, key: Measure) -> Cell:
        return _compared(placed.get((work, way)), key, marked[key.name])

    if len(works) == 1:
        rows = [[Cell(way), *(cell(works[0], way, key) for key in there)] for way in ways]
        better = ", ".join(f"{key.label}: {key.better} is better" for key in there)
        head = ["configuration", *(key.heading for key in there)]
        caption = f"{_of_all(configurations)} {better}."
        return [Table("At a glance", head, rows, caption, _from(1, head), _note(there))]
    return [
        Table(
            key.heading,
            ["work", *ways],
            [[Cell(work), *(cell(work, way, key) for way in ways)] for work in works],
            f"{key.better} is better.".capitalize(),
            _from(1, ["work", *ways]),
            _note([key]),
        )
        for key in there
    ]


def _note(several: Sequence[Measure]) -> str:
    """The sentence that timings need: what has a unit and a best is one."""
    return stats.WITHIN_A_RUN if any(measure.unit and measure.better for measure in several) else ""


def pairs(configurations: Sequence[Configuration]) -> Table | None:
    """The accuracy of each configuration less that of the first of its work, where both answered the same problems."""
    rows = []
    for work in _in_order(entry.work for entry in configurations):
        first, *others = [entry for entry in configurations if entry.work == work]
        differences = [(entry, less) for entry in others if (less := paired.difference(entry, first))]
        rows += [[Cell(work), Cell(entry.way), Cell(first.way), measured(less)] for entry, less in differences]
    head = ["work", "pass@1 after of", "less that of", "difference"]
    caption = "Problem by problem, so that how hard the problems are drops out."
    return Table("Paired over the same problems", head, rows, caption, _from(3, head)) if rows else None


def _from(first: int, head: Sequence[str]) -> frozenset[int]:
    return frozenset(range(first, len(head)))


def _compared(entry: Configuration | None, measure: Measure, marked: Sequence[Configuration]) -> Cell:
    if entry is None:
        return Cell("no result")
    return (
        Cell(entry.failure) if entry.failure else measured(entry.estimates.get(measure.name), is_best=entry in marked)
    )


def results(configurations: Sequence[Configuration], kind: str) -> Table:
    """A row for each configuration with all that tables show of it."""
    marked = {measure.name: best(configurations, measure) for measure in measures.columns(kind)}
    works = _in_order(entry.work for entry in configurations)

    def column(measure: Measure) -> list[Cell]:
        return [
            measured(entry.estimates.get(measure.name), is_best=entry in marked[measure.name])
            for entry in configurations
        ]

    shown = _without_twins(
        {
            measure: column(measure)
            for measure in measures.columns(kind)
            if measure.shown and any(measure.name in entry.estimates for entry in configurations)
        }
    )
    start = {
        "work": [Cell(entry.work) for entry in configurations],
        "configuration": [Cell(entry.way) for entry in configurations],
        "runs": [Cell(_ended(entry)) for entry in configurations],
    }
    if len(works) == 1:
        del start["work"]
    if all(cell.text == "1" for cell in start["runs"]):
        del start["runs"]
    head = [*start, *(measure.heading for measure in shown)]
    rows = list(zip(*start.values(), *shown.values(), strict=True))
    caption = _of_all(configurations) if len(works) == 1 else ""
    return Table("All configurations", head, rows, caption, _from(len(start), head), _note(list(shown)))


def _without_twins(columns: dict[Measure, list[Cell]]) -> dict[Measure, list[Cell]]:
    """Without those of the same unit and numbers as one before, as tokens a second per GPU are on one GPU."""
    kept: dict[Measure, list[Cell]] = {}
    for measure, cells in columns.items():
        if not measure.unit or (measure.unit, cells) not in [(other.unit, each) for other, each in kept.items()]:
            kept[measure] = cells
    return kept


def _of_all(configurations: Sequence[Configuration]) -> str:
    """The one work of all, and their layout where that is not told of each."""
    layouts = {entry.layout for entry in configurations} - {entry.way for entry in configurations}
    told = any(entry.layout in entry.way for entry in configurations)
    return ", ".join([configurations[0].work, *(layouts if len(layouts) == 1 and not told else [])]) + "."


def _ended(entry: Configuration) -> str:
    done, all_of_them = len(entry.folders), len(entry.runs)
    return str(done) if done == all_of_them else f"{done} of {all_of_them}: {failure_of(_first_unfinished(entry))[0]}"


def _first_unfinished(configuration: Configuration) -> Row:
    return next(row for row in configuration.runs if row["status"] != "finished")


def unfinished(rows: Sequence[Row], folders: Sequence[Path]) -> Table | None:
    """Every run that failed or could not start, with its reason."""
    failed = [row for row in rows if row["status"] != "finished"]
    cells = [
        [Cell(name(Path(row["run"]), folders)), Cell(str(row["status"])), *map(Cell, failure_of(row))] for row in failed
    ]
    return Table("Did not finish", ["run", "status", "class", "reason"], cells) if cells else None


def warned(rows: Sequence[Row], folders: Sequence[Path]) -> Table | None:
    """The signs of ill health that runs show, each with the completion that shows it."""
    cells = [
        [Cell(name(Path(row["run"]), folders)), Cell(str(sign.get("message", key))), Cell(_start(sign.get("sample")))]
        for row in rows
        for key, sign in (row.get("warnings") or {}).items()
        if isinstance(sign, Mapping)
    ]
    return Table("Warnings", ["run", "sign", "for example"], cells) if cells else None


def _start(sample: object) -> str:
    text = str(sample or "")
    return text if len(text) <= SAMPLE else f"{text[:SAMPLE]}..."


def left_out(several: Sequence[LeftOut]) -> Table | None:
    rows = [[Cell(run.run), Cell(run.why)] for run in several]
    caption = "In none of the numbers and pictures of this report."
    return Table("Left out", ["run", "why"], rows, caption) if rows else None


def _in_order(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
