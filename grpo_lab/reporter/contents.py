"""What a report says, as data: Markdown, HTML and CSV are made from it."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo_lab.reporter import (
    configurations,
    context,
    curves,
    finding,
    folder,
    layouts,
    pictures,
    published,
    rollouts,
    rows,
    tables,
)
from grpo_lab.reporter.configurations import Configuration
from grpo_lab.reporter.drawing import Picture
from grpo_lab.reporter.rollouts import Rollouts
from grpo_lab.reporter.tables import Table
from grpo_lab.store.folder import Row
from grpo_lab.store.measures import headlines


@dataclass(frozen=True)
class Contents:
    title: str
    finding: str
    """What came out, in a sentence or a few."""
    facts: Sequence[tuple[str, str]]
    """What is the same for all numbers: hardware, versions, command."""
    glance: Sequence[Table]
    """What layouts are compared by."""
    pictures: Sequence[Picture]
    tables: Sequence[Table]
    """All that was measured, and what was published."""
    troubles: Sequence[Table]
    """What did not finish and what was left out, with the reasons."""
    rollouts: Rollouts | None
    """What the policies wrote, for the page."""
    runs: Sequence[Row]
    """For table.csv."""

    def markdown(self) -> str:
        facts = "\n".join(f"- {label}: {' '.join(value.split())}" for label, value in self.facts)
        every = [table.markdown() for table in (*self.glance, *self.tables, *self.troubles)]
        ends = [f"{tables.HOW_TO_READ}\n", f"## How and where\n\n{facts}\n"]
        return "\n".join([f"# {self.title}\n", f"{' '.join(self.finding.split())}\n", *every, *ends])


def make(folders: Sequence[Path], published_file: Path | None = None) -> Contents:
    """Read, compare, draw. Raises RequestError where there is nothing to report, or published_file is wrong."""
    usable = context.comparable(folder.find(folders), folders)
    kind = str(usable.rows[0]["kind"])
    several = configurations.group(usable.rows)
    drawn, damaged = curves.curves(several, folders) if kind == "train" else ({}, [])
    browsed, unreadable = rollouts.read(usable.rows, folders) if kind == "train" else (None, [])
    sweep = next((row["sweep"] for row in usable.rows), None)
    source = published_file or published.find(sweep)
    beside = published.beside(published.read(source, kind), several) if source else None
    troubles = (tables.unfinished(usable.rows, folders), tables.left_out([*usable.left_out, *damaged, *unreadable]))
    return Contents(
        title=", ".join(path.absolute().name for path in folders),
        finding=finding.sentences(several, usable.rows, kind),
        facts=_facts(usable.rows, sweep),
        glance=[*filter(None, [tables.warned(usable.rows, folders)]), *tables.comparisons(several, headlines(kind))],
        tables=[table for table in (tables.results(several, kind), tables.pairs(several), beside) if table],
        pictures=_pictures(several, drawn, kind),
        troubles=[table for table in troubles if table],
        rollouts=browsed,
        runs=rows.table([*usable.rows, *usable.aside]),
    )


def _pictures(several: Sequence[Configuration], drawn: dict[str, list[curves.Curve]], kind: str) -> list[Picture]:
    """The reward beside the accuracy first, layouts before them where they were varied."""
    over_steps = {
        column: pictures.curve(column, lines) for column, lines in drawn.items() if curves.has_picture(column)
    }
    first = [pictures.held_out(several, drawn), over_steps.pop(curves.REWARD, None)]
    rest = [*over_steps.values(), pictures.step_times(several), pictures.speed_and_accuracy(several)]
    return [*layouts.crossings(several, kind), *(picture for picture in (*first, *rest) if picture)]


def _command(rows: Sequence[Row], sweep: Path | None) -> str:
    """That of the sweep, else that of the first run."""
    commands = [folder.frozen(sweep).command] if sweep else [row["env"].get("command") for row in rows]
    several = list(dict.fromkeys(str(command or "unknown") for command in commands))
    return several[0] + (f" (one of {len(several)}; the others: table.csv)" if len(several) > 1 else "")


def _facts(rows: Sequence[Row], sweep: Path | None) -> list[tuple[str, str]]:
    finished = [row for row in rows if row["status"] == "finished"] or rows
    counts = collections.Counter(str(row["status"]) for row in rows)
    facts = {
        "runs": ", ".join(f"{count} {status}" for status, count in counts.items()),
        "model": ", ".join(dict.fromkeys(str(row.get("model")) for row in rows)),
        "hardware": context.hardware(finished[0])
        + ("" if finished[0].get("gpus") else " (no GPU: a process counts as one)"),
        "versions": context.versions(finished[0]),
        "grpo_lab": ", ".join(dict.fromkeys(context.commit(row) for row in finished)),
        "command": _command(finished, sweep),
    }
    return list(facts.items())
