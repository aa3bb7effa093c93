"""`python -m grpo_lab.report`: what is averaged, what is marked, what is left out and why."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from grpo_lab.config.errors import RequestError
from grpo_lab.reporter import configurations, contents, curves, folder, layouts, pictures
from grpo_lab.reporter.contents import Contents
from grpo_lab.store import estimates, stats
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from tests.conftest import ROOT
from tests.results import make, sweep, timing


def report(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "grpo_lab.report", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


def cells(made: Contents, title: str) -> dict[str, list[str]]:
    """First cell of each row of a table -> the others, as Markdown has them."""
    (table,) = [one for one in (*made.glance, *made.tables, *made.troubles) if one.title == title]
    rows = [line.strip("| ").split(" | ") for line in table.markdown().splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows[2:]}


def test_the_command_writes_the_report_and_prints_it(tmp_path: Path) -> None:
    for seed, step in enumerate((1.0, 1.1, 1.2)):
        make(tmp_path / "sweep" / f"seed={seed}", seed=seed, metrics={"step_time_s": timing(step)}, rewards=[0.1, 0.2])
    ended = report(tmp_path / "sweep", "--csv", tmp_path / "mine.csv")
    assert ended.returncode == 0, ended.stderr
    # Mean 1.1, deviation 0.1: Student's t of two degrees of freedom is 4.303, 4.303 * 0.1 / sqrt(3) = 0.248.
    assert "1.100 (0.852 to 1.348, n=3 runs)" in ended.stdout
    assert (tmp_path / "sweep" / "report.md").read_text() in ended.stdout
    assert "<svg" in (tmp_path / "sweep" / "report.html").read_text()
    rows = list(csv.DictReader((tmp_path / "sweep" / "table.csv").open()))
    assert [(row["seed"], float(row["step_time_s"]), row["step_time_s_n"]) for row in rows] == [
        ("0", 1.0, "8"),
        ("1", 1.1, "8"),
        ("2", 1.2, "8"),
    ]
    assert (tmp_path / "mine.csv").read_text() == (tmp_path / "sweep" / "table.csv").read_text()


def test_nothing_heavy_is_imported() -> None:
    program = "import sys, grpo_lab.report; print({'torch', 'transformers', 'trl', 'vllm'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ended.stdout.strip() == "set()"


def test_a_report_of_single_runs_says_that_they_had_several_commands(tmp_path: Path) -> None:
    for dp in (1, 2, 2):
        command = f"python -m grpo_lab.train vllm.dp={dp}"
        make(tmp_path / f"run{len(list(tmp_path.iterdir()))}", dp=dp, env={"command": command})
    said = dict(contents.make([tmp_path]).facts)["command"]
    assert said == "python -m grpo_lab.train vllm.dp=1 (one of 2; the others: table.csv)"


def test_only_seeds_are_averaged(tmp_path: Path) -> None:
    for rate, seed, step in ((1e-6, 0, 1.0), (1e-6, 1, 3.0), (1e-5, 0, 5.0)):
        metrics = {"step_time_s": timing(step)}
        make(tmp_path / f"{rate},{seed}", seed=seed, metrics=metrics, grpo={"learning_rate": rate})
    shown = cells(contents.make([tmp_path]), "At a glance")
    assert shown["learning_rate=1e-06"][0].startswith("2.000 (0.000 to ")
    assert shown["learning_rate=1e-05"] == ["5.000 (4.900 to 5.100, n=8)"]


def seeds(folder: Path, steps: list[float], **said: Any) -> None:
    """Runs of one configuration with these step times."""
    for seed, step in enumerate(steps):
        make(folder / f"seed={seed}", seed=seed, metrics={"step_time_s": timing(step)}, **said)


@pytest.mark.parametrize(("slower", "marked"), [(1.3, True), (1.01, False)])
def test_the_best_is_marked_only_where_it_stands_clear(tmp_path: Path, slower: float, marked: bool) -> None:
    for dp, step in ((2, 1.0), (1, slower), (4, slower + 5)):
        seeds(tmp_path / f"dp={dp}", [step, step + 0.01, step - 0.01], dp=dp)
    shown = cells(contents.make([tmp_path]), "At a glance")
    assert shown["colocate tp=1 dp=2"][0].startswith("**1.000**") is marked
    assert "**" not in shown["colocate tp=1 dp=1"][0] + shown["colocate tp=1 dp=4"][0]


@pytest.mark.parametrize("runs", [1, 2])
def test_nothing_is_best_with_fewer_than_three_runs(tmp_path: Path, runs: int) -> None:
    seeds(tmp_path / "fast", [1.0] * runs, dp=2)
    seeds(tmp_path / "slow", [9.0] * 3, dp=1)
    assert "**" not in contents.make([tmp_path]).markdown()


def test_what_did_other_work_is_not_compared(tmp_path: Path) -> None:
    for gpus, step in ((2, 1.0), (4, 9.0)):
        seeds(tmp_path / f"gpus={gpus}", [step] * 3, gpus=gpus)
        seeds(tmp_path / f"gpus={gpus},dp=1", [step + 1] * 3, gpus=gpus, dp=1)
    shown = cells(contents.make([tmp_path]), "step, s")
    assert shown["tiny 2 GPUs"] == ["2.000 (1.942 to 2.058, n=3 runs)", "**1.000** (0.942 to 1.058, n=3 runs)"]
    assert shown["tiny 4 GPUs"] == ["10.00 (9.94 to 10.06, n=3 runs)", "**9.000** (8.942 to 9.058, n=3 runs)"]


def test_fewer_than_six_times_have_a_range_and_no_interval(tmp_path: Path) -> None:
    make(tmp_path / "new", metrics={"step_time_s": {"median": 1.0, "ci95": None, "range": [0.9, 1.2], "n": 3}})
    make(tmp_path / "old", dp=1, metrics={"step_time_s": {"median": 2.0, "ci95": [1.9, 2.2], "n": 3}})
    shown = cells(contents.make([tmp_path]), "At a glance")
    assert list(shown.values()) == [["2.000 (1.900 to 2.200, range of 3)"], ["1.000 (0.900 to 1.200, range of 3)"]]


def test_a_sentence_under_every_table_of_timings_says_what_its_intervals_leave_out(tmp_path: Path) -> None:
    for dp in (1, 2):
        make(tmp_path / f"dp={dp}", dp=dp, metrics={"step_time_s": timing(1.0), "reward_last": {"value": 0.5, "n": 2}})
    assert contents.make([tmp_path]).markdown().count("runs of one configuration were up to 6% apart.") == 2


def share(right: int, n: int = 500) -> dict[str, Any]:
    return dict(stats.proportion([1] * right + [0] * (n - right)))


def test_two_seeds_with_equal_accuracy_are_not_certain(tmp_path: Path) -> None:
    """This was "0.658 (0.658 to 0.658, n=2 runs)", in bold."""
    for dp, right in ((1, 329), (2, 200)):
        for seed in (0, 1):
            make(tmp_path / f"{dp},{seed}", dp=dp, seed=seed, metrics={"accuracy_after": share(right)})
    shown = cells(contents.make([tmp_path]), "At a glance")
    assert shown["colocate tp=1 dp=1"] == ["0.658 (0.628 to 0.687, n=2 runs)"]


def answered(folder: Path, answers: list[list[int]], **said: Any) -> None:
    for seed, marks in enumerate(answers):
        run = make(
            folder / f"seed={seed}", seed=seed, metrics={"accuracy_after": share(sum(marks), len(marks))}, **said
        )
        store.write_json(run.evaluation("after"), marks)


def test_accuracies_on_the_same_problems_are_compared_paired(tmp_path: Path) -> None:
    """Of 400 problems one configuration answers all that the other does and 40 more: far less than unpaired intervals
    could tell apart, and no doubt."""
    answered(tmp_path / "a", [[1] * 160 + [0] * 240] * 3, dp=1)
    answered(tmp_path / "b", [[1] * 200 + [0] * 200] * 3, dp=2)
    made = contents.make([tmp_path])
    assert cells(made, "At a glance")["colocate tp=1 dp=2"][0].startswith("**0.500**")
    ((way, less, gain),) = cells(made, "Paired over the same problems").values()
    assert (way, less) == ("colocate tp=1 dp=2", "colocate tp=1 dp=1")
    assert gain == "0.100 (0.069 to 0.130, n=400 problems)"


def test_seeds_that_disagree_widen_a_paired_difference(tmp_path: Path) -> None:
    answered(tmp_path / "a", [[1] * 160 + [0] * 240] * 3, dp=1)
    answered(tmp_path / "b", [[1] * right + [0] * (400 - right) for right in (150, 200, 250)], dp=2)
    made = contents.make([tmp_path])
    assert "**" not in made.markdown()
    assert "-0.2" in "".join(cells(made, "Paired over the same problems")["tiny"])


def test_other_problems_are_not_paired(tmp_path: Path) -> None:
    answered(tmp_path / "a", [[1] * 100 + [0] * 300] * 3, dp=1)
    answered(tmp_path / "b", [[1] * 100 + [0] * 200] * 3, dp=2)
    assert "Paired" not in contents.make([tmp_path]).markdown()


def test_what_did_not_finish_is_a_cell_with_its_reason(tmp_path: Path) -> None:
    make(tmp_path / "good", metrics={"step_time_s": timing(1.0)})
    make(tmp_path / "wide", tp=8, gpus=0, failure={"class": "infeasible", "message": "vllm.tp=8: 2 GPUs\nare here"})
    make(tmp_path / "fat", tp=2, failure={"class": "oom", "message": "out | of memory"})
    made = contents.make([tmp_path])
    assert cells(made, "At a glance")["colocate tp=8 dp=2"] == ["infeasible"]
    assert cells(made, "At a glance")["colocate tp=2 dp=2"] == ["oom"]
    assert cells(made, "Did not finish")["wide"] == ["infeasible", "infeasible", "vllm.tp=8: 2 GPUs are here"]
    assert "out \\| of memory" in made.markdown()


OTHERS = {
    "another hardware: 8 x NVIDIA H100": {"env": {"gpus": ["NVIDIA H100"] * 8}},
    "another versions: torch 2.11.0": {"env": {"torch": "2.11.0"}},
    "another kind of result: bench": {"kind": "bench"},
}


@pytest.mark.parametrize("why", OTHERS)
def test_what_may_not_stand_beside_is_left_out(why: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        make(tmp_path / f"seed={seed}", seed=seed, metrics={"step_time_s": timing(1.0)})
    make(tmp_path / "stray", seed=2, metrics={"step_time_s": timing(100.0)}, **OTHERS[why])  # type: ignore[arg-type]
    made = contents.make([tmp_path])
    assert cells(made, "Left out")["stray"][0].startswith(why)
    assert cells(made, "All configurations")["colocate tp=1 dp=2"][1].startswith("1.000 (")
    assert [bool(row["left_out"]) for row in made.runs] == [False, False, True]


def test_another_commit_is_left_out_of_a_sweep(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep")
    for seed in (0, 1):
        make(folder / f"seed={seed}", seed=seed, metrics={"step_time_s": timing(1.0)})
    make(folder / "stray", seed=2, metrics={"step_time_s": timing(100.0)}, env={"git_commit": "b" * 40})
    assert cells(contents.make([folder]), "Left out")["stray"][0].startswith("another commit of grpo_lab: bbbb")


def test_runs_started_by_hand_are_compared_by_what_differs(tmp_path: Path) -> None:
    """Also with a sweep beside them, with failures, and over commits of the harness; the layout that all share is said
    once."""
    folder = sweep(tmp_path / "sweep")
    make(folder / "a", grpo={"learning_rate": 1e-5}, metrics={"step_time_s": timing(1.0)})
    make(tmp_path / "hot", grpo={"learning_rate": 1e-3}, metrics={"step_time_s": timing(2.0)})
    make(tmp_path / "cold", grpo={"learning_rate": 1e-7}, failure={"class": "oom", "message": "out of memory"})
    later = {"git_commit": "b" * 40}
    make(tmp_path / "later", grpo={"learning_rate": 1e-3}, metrics={"step_time_s": timing(3.0)}, env=later)
    made = contents.make([tmp_path])
    shown = cells(made, "At a glance")
    assert list(shown) == [
        "learning_rate=1e-07 grpo_lab=aaaaaaa",
        "learning_rate=1e-05",
        "learning_rate=0.001 grpo_lab=aaaaaaa",
        "learning_rate=0.001 grpo_lab=bbbbbbb",
    ]
    assert shown["learning_rate=1e-07 grpo_lab=aaaaaaa"] == ["oom"]
    assert "tiny, colocate tp=1 dp=2." in made.markdown()
    assert [table.title for table in made.troubles] == ["Did not finish"]
    assert "1 of 4 runs did not finish: oom 1." in made.finding
    assert dict(made.facts)["grpo_lab"] == f"{'a' * 40}, {'b' * 40}"


def test_two_sweeps_do_not_meet_over_a_run_started_by_hand(tmp_path: Path) -> None:
    for name in ("one", "two"):
        for dp in (1, 2) if name == "one" else (2,):
            sweep(tmp_path / name) if not (tmp_path / name).exists() else None
            make(tmp_path / name / f"dp={dp}", dp=dp, metrics={"step_time_s": timing(1.0)})
    for seed in range(4):
        make(tmp_path / f"hand{seed}", dp=4, seed=seed, metrics={"step_time_s": timing(1.0)})
    made = contents.make([tmp_path])
    assert list(cells(made, "Left out")) == ["two/dp=2"]
    assert len(cells(made, "At a glance")) == 3


def test_the_finding_of_one_run_is_its_gain(tmp_path: Path) -> None:
    def gain(low: float, high: float) -> dict[str, Any]:
        return {"value": 0.1, "ci95": [low, high], "n": 500}

    shares = {"accuracy_before": share(200), "accuracy_after": share(250)}
    rose = "pass@1 rose, 0.400 to 0.500, +0.100 (+0.050 to +0.150, n=500)."
    for name, low, words in (("up", 0.05, rose), ("flat", -0.05, "did not change measurably")):
        make(tmp_path / name, metrics={**shares, "accuracy_gain": gain(low, 0.15)})
        assert words in contents.make([tmp_path / name]).finding


@pytest.mark.parametrize(
    ("runs", "slower", "words"),
    [
        (3, 9.0, "Best in step: colocate tp=1 dp=2 1.000 ("),
        (1, 9.0, "Step from 1.000 to 9.000 s. To call one best takes 3 runs of each."),
        (3, 1.0, "none stands clear of the others"),
    ],
)
def test_the_finding_calls_best_only_what_is(tmp_path: Path, runs: int, slower: float, words: str) -> None:
    seeds(tmp_path / "fast", [1.0] * runs, dp=2)
    seeds(tmp_path / "slow", [slower] * runs, dp=1)
    made = contents.make([tmp_path])
    assert words in made.finding
    places = [made.markdown().index(text) for text in (made.finding, "## At a glance", "- hardware:")]
    assert places == sorted(places), "the finding first, how and where last"


def test_the_signs_of_a_run_stand_with_their_completion(tmp_path: Path) -> None:
    sign = {"copied_prompts": {"message": "60% of the last answers are copied", "sample": "\\boxed{82-49}"}}
    make(tmp_path / "hacked", warnings=sign, metrics={"step_time_s": timing(1.0)})
    make(tmp_path / "sound", seed=1, metrics={"step_time_s": timing(1.0)})
    made = contents.make([tmp_path])
    assert cells(made, "Warnings") == {"hacked": ["60% of the last answers are copied", "\\boxed{82-49}"]}
    assert "1 of 2 runs warn" in made.finding


def test_a_column_of_the_numbers_of_another_is_left_out(tmp_path: Path) -> None:
    speeds = {"generated_tokens_per_s": timing(9.0), "generated_tokens_per_s_per_gpu": timing(9.0)}
    make(tmp_path / "one", gpus=1, metrics=speeds)
    assert "generated per GPU" not in contents.make([tmp_path]).markdown()
    make(tmp_path / "two", gpus=2, dp=4, metrics={**speeds, "generated_tokens_per_s_per_gpu": timing(4.5)})
    assert "generated per GPU" in contents.make([tmp_path]).markdown()


def test_sweeps_are_mixed_only_when_each_is_named(tmp_path: Path) -> None:
    for name, step in (("one", 1.0), ("two", 2.0)):
        for dp in (1, 2) if name == "one" else (2,):
            sweep(tmp_path / name) if not (tmp_path / name).exists() else None
            make(tmp_path / name / f"dp={dp}", dp=dp, metrics={"step_time_s": timing(step)})
    assert "another sweep: two" in cells(contents.make([tmp_path]), "Left out")["two/dp=2"][0]
    both = contents.make([tmp_path / "one", tmp_path / "two"])
    assert len(both.runs) == 3
    assert not both.troubles


DAMAGES = {
    "torn": b'{"step": 1, "reward": 1.0}\n{"step": 2, "rew',
    "binary": b"\x00\xff\x00",
    "backwards": b'{"step": 2, "reward": 1.0}\n{"step": 1, "reward": 1.0}\n',
    "foreign": b'{"loss": 1.0}\n',
    "text": b'{"step": 1, "reward": "high"}\n',
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_metrics_are_left_out_of_the_curves(damage: str, tmp_path: Path) -> None:
    make(tmp_path / "whole", rewards=[0.25, 0.5], metrics={"reward_last": {"value": 0.5, "n": 1}})
    make(tmp_path / damage, seed=1).metrics.write_bytes(DAMAGES[damage])
    made = contents.make([tmp_path])
    assert "metrics.jsonl is damaged" in cells(made, "Left out")[damage][0]
    (reward,) = [one for one in made.pictures if one.title == "Reward over the steps: tiny"]
    assert "colocate tp=1 dp=2<" in reward.svg, "one run, not the mean of two"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        '{"status": "done"}',
        '{"status": "finished", "metrics": 3}',
        '{"status": "finished", "tp": "2"}',
        '{"status": "finished", "energy_j": 2}',
        "\xff",
    ],
)
def test_a_damaged_result_is_left_out(text: str, tmp_path: Path) -> None:
    make(tmp_path / "whole", metrics={"step_time_s": timing(1.0)})
    run = make(tmp_path / "bad", seed=1)
    run.result.write_bytes(text.encode("latin-1"))
    made = contents.make([tmp_path])
    assert "result.json" in cells(made, "Left out")["bad"][0]
    assert len(made.runs) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"points": 3}', '{"command": 3, "points": []}', '{"points": [{}]}'])
def test_a_damaged_sweep_is_reported_by_its_runs(text: str, tmp_path: Path) -> None:
    make(tmp_path / "whole", metrics={"step_time_s": timing(1.0)})
    (tmp_path / "sweep.json").write_text(text)
    assert len(contents.make([tmp_path]).runs) == 1


def test_numbers_that_are_none_are_not_shown(tmp_path: Path) -> None:
    """Python's JSON writes NaN; a hand or another tool may have put anything into a field."""
    metrics = {"step_time_s": {"median": float("nan"), "ci95": None, "n": 2}, "mfu": {"median": "fast"}}
    make(tmp_path / "run", metrics={**metrics, "samples_per_s": timing(4.0), "reward_last": {"value": 0.5, "n": 3}})
    shown = cells(contents.make([tmp_path]), "All configurations")
    assert shown["colocate tp=1 dp=2"] == ["0.500 (n=3)"]


def test_a_run_without_its_end_is_named(tmp_path: Path) -> None:
    make(tmp_path / "ended", metrics={"step_time_s": timing(1.0)})
    (tmp_path / "begun").mkdir()
    Run(tmp_path / "begun").plan.write_text("{}")
    assert cells(contents.make([tmp_path]), "Left out") == {"begun": ["no result yet (no result.json)"]}


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_a_result_is_refused(there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    if there:
        folder.mkdir()
    ended = report(folder)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert str(folder) in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == ([folder] if there else [])


def test_models_are_in_the_order_of_their_sizes(tmp_path: Path) -> None:
    for model in ("qwen2.5-14b", "qwen2.5-3b", "qwen2.5-7b"):
        for dp in (1, 2):
            make(tmp_path / f"{model},{dp}", model=model, dp=dp, metrics={"step_time_s": timing(1.0)})
    assert list(cells(contents.make([tmp_path]), "step, s")) == ["qwen2.5-3b", "qwen2.5-7b", "qwen2.5-14b"]


def test_what_follows_from_the_work_makes_no_way_of_its_own(tmp_path: Path) -> None:
    """transformers are told the length as a least one, vLLM is not: that is no third way to do it."""
    for length in (64, 128):
        for mode, forced in (("colocate", {"ignore_eos": True}), ("off", {"min_new_tokens": length})):
            make(
                tmp_path / f"{mode}-{length}",
                vllm_mode=mode,
                grpo={"max_completion_length": length, "generation_kwargs": forced},
                metrics={"step_time_s": timing(length / 64)},
            )
    made = contents.make([tmp_path])
    assert list(cells(made, "step, s")) == ["tiny max_completion_length=64", "tiny max_completion_length=128"]
    assert {len(row) for row in cells(made, "step, s").values()} == {2}
    works = [row[0].text for row in next(table for table in made.tables if table.title == "All configurations").rows]
    assert works == sorted(works, key=lambda work: int(work.rpartition("=")[2])), "one work's ways beside each other"


def test_a_picture_names_what_differs(tmp_path: Path) -> None:
    for length in (64, 128):
        make(
            tmp_path / str(length),
            grpo={"max_completion_length": length},
            metrics={"step_time_s": timing(1.0), "time_s": {"train": timing(1.0)}},
        )
    (picture,) = [one for one in contents.make([tmp_path]).pictures if one.title == "Where a step's time goes: tiny"]
    assert "max_completion_length=64, colocate" in picture.svg
    assert "tiny" not in picture.svg.partition(">")[2]


def test_layouts_of_the_same_gpus_are_lines_over_tp(tmp_path: Path) -> None:
    """A picture for each mode and number of GPUs; what did not run has its reason, and other layouts no picture."""
    speeds = {"small": {1: 100.0, 2: 50.0, 4: 25.0}, "large": {1: 10.0, 2: 20.0}}
    for model, by_tp in speeds.items():
        for tp, speed in by_tp.items():
            metrics = {"generated_tokens_per_s_per_gpu": timing(speed, speed / 100)}
            make(tmp_path / f"{model},{tp}", kind="bench", model=model, tp=tp, dp=4 // tp, gpus=4, metrics=metrics)
    failure = {"class": "oom", "message": "out of memory"}
    make(tmp_path / "wide", kind="bench", model="large", tp=4, dp=1, gpus=4, failure=failure)
    several = configurations.group(folder.find([tmp_path]).rows)
    (picture,) = layouts.crossings(several, "bench")
    assert picture.title == "TP against DP on 4 GPUs, colocate: large, small"
    for text in ("tp=1 dp=4", "tp=4 dp=1", "relative to tp=1", "large: oom"):
        assert text in picture.svg


def test_the_interval_of_a_layout_holds_both_ends(tmp_path: Path) -> None:
    speed, base = estimates.Estimate(20.0, 19.0, 21.0, 3), estimates.Estimate(10.0, 9.0, 11.0, 3)
    over = layouts._over(speed, base, is_base=False)
    assert over is not None
    assert (over.value, over.low, over.high) == pytest.approx((2.0, 19 / 11, 21 / 9))


def test_curves_are_those_that_the_trainer_logs(tmp_path: Path) -> None:
    """One picture a column that is not all zero; a raw line, a smooth one, whole steps, a band over seeds."""
    columns = ["rewards/accuracy/mean", "rewards/format/mean", "entropy", "grad_norm", "completions/mean_length", "kl"]
    shares = {"accuracy_after": share(100), "accuracy_before": share(50)}
    for seed in (0, 1):
        run = make(tmp_path / f"seed={seed}", seed=seed, metrics=shares)
        for step in range(1, 61):
            row = dict.fromkeys(columns, 1.0 + seed + step / 60)
            between = {"eval/accuracy": 0.15, "eval/n": 200} if step == 30 else {}
            run.append_metrics({"step": step, "reward": step / 60, "clip_ratio/region_mean": 0.0, **row, **between})
    made = contents.make([tmp_path])
    titles = [picture.title.partition(" over")[0] for picture in made.pictures]
    assert titles[:2] == ["Held-out pass@1", "Reward"]
    rest = ["Reward: accuracy", "Reward: format", "Completion length", "Entropy", "KL from the reference"]
    assert titles[2:] == [*rest, "Gradient norm"], "clip_ratio is all zero"
    entropy = next(picture for picture in made.pictures if picture.title.startswith("Entropy"))
    assert "opacity: 0.35" in entropy.svg, "each step, faint"
    assert "band: from the lowest to the highest" in entropy.caption
    several = configurations.group(folder.find([tmp_path]).rows)
    points = pictures._held_out(several[0], curves.curves(several)[0])
    assert [(step, round(value, 9)) for step, value, *_ in points] == [(0, 0.1), (30, 0.15), (60, 0.2)]
    low, high = stats.wilson(0.15, 400)
    assert points[1][2:] == pytest.approx((low, high)), "both seeds' problems"


def test_a_smooth_line_is_the_mean_of_a_window_before_it() -> None:
    values = np.arange(100.0)
    assert curves.smooth(values)[[0, 1, 99]].tolist() == [0.0, 0.5, 97.0]


def test_each_load_of_a_bench_is_a_row(tmp_path: Path) -> None:
    for tp, speed in ((1, 1000.0), (2, 700.0)):
        loads = [
            {"name": name, "load": {"prompt_len": length}, "metrics": {"generated_tokens_per_s_per_gpu": timing(found)}}
            for name, length, found in (("short", 512, speed), ("long", 8192, speed / 10))
        ]
        make(tmp_path / f"tp={tp}", kind="bench", tp=tp, loads=loads, metrics=loads[0]["metrics"])
    failed = make(tmp_path / "tp=4", kind="bench", tp=4, failure={"class": "oom", "message": "out of memory"})
    asked = "\nbench: {prompt_len: 512, loads: {short: {}, long: {prompt_len: 8192}}}\n"
    failed.config.write_text(failed.config.read_text() + asked)
    made = contents.make([tmp_path])
    shown = cells(made, "generated per GPU, tokens/s")
    assert list(shown) == ["tiny long", "tiny short"]
    assert shown["tiny long"][0] == "100.0 (99.9 to 100.1, n=8)"
    assert shown["tiny long"][2] == shown["tiny short"][2] == "oom", "the loads that it would have measured"
    assert len(made.runs) == 6


PUBLISHED = """model,vllm_mode,dp,metric,value,unit,source,over
tiny,server,2,steps_per_s,0.5,1/s,https://example.org/c,
tiny,colocate,2,steps_per_s,0.5,1/s,https://example.org/a,
tiny,colocate,2,step_time_s,0.4,,https://example.org/b,dp=1
tiny,,,steps_per_s,0.5,1/s,https://example.org/d,
"""


def test_published_numbers_stand_beside_measured_ones(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "runs", "python -m grpo_lab.train --multirun experiment=mine seed=0")
    for dp, step in ((1, 4.0), (2, 1.0)):
        make(folder / f"dp={dp}", dp=dp, metrics={"step_time_s": timing(step)})
    (tmp_path / "experiments" / "mine").mkdir(parents=True)
    (tmp_path / "experiments" / "mine" / "published.csv").write_text(PUBLISHED)
    ended = report("runs", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    rows = [line.strip("| ").split(" | ") for line in ended.stdout.splitlines() if "example.org" in line]
    assert [row[1:5] for row in rows] == [
        ["steps_per_s", "0.5 1/s", "1.000 (0.909 to 1.111, n=8)", "2.00"],
        ["ratio of step_time_s", "0.4", "0.250 (0.220 to 0.282, n=8)", "0.62"],
        ["steps_per_s", "0.5 1/s", "not measured", ""],
        ["steps_per_s", "0.5 1/s", "2 configurations fit: more keys are needed", ""],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,metric,value\ntiny,step_time_s,1\n", "line 2: no column unit, source"),
        ("metric,value,unit,source\nstep_tim_s,1,s,x\n", "did you mean 'step_time_s'"),
        ("metric,value,unit,source\nstep_time_s,fast,s,x\n", "value=fast"),
        ("metric,value,unit,source\nstep_time_s,1\n", "not as many cells"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_published_file_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    make(tmp_path / "runs" / "one", metrics={"step_time_s": timing(1.0)})
    if text is not None:
        (tmp_path / "published.csv").write_text(text)
    with pytest.raises(RequestError, match=message):
        contents.make([tmp_path / "runs"], tmp_path / "published.csv")


def test_a_hundred_thousand_steps_take_seconds(tmp_path: Path) -> None:
    run = make(tmp_path / "long", metrics={"step_time_s": timing(1.0)})
    rest = json.dumps({f"profile/{number}": number / 7 for number in range(40)})[1:]
    with run.metrics.open("w") as lines:
        lines.writelines(f'{{"step": {step}, "reward": {step / 1e5}, {rest}\n' for step in range(1, 100_001))
    started = time.process_time()
    made = contents.make([tmp_path])
    assert time.process_time() - started < 5, "of the processor: other work does not count"
    (reward,) = [one for one in made.pictures if one.title == "Reward over the steps: tiny"]
    assert len(reward.svg) < 60_000
    steps = curves.read(run)
    assert steps is not None
    assert len(steps["step"]) == 100_000
    thinned, means = curves.thin(steps["step"], steps["reward"])
    assert len(thinned) == curves.POINTS
    np.testing.assert_allclose(means, thinned / 1e5)


def test_a_picture_escapes_names() -> None:
    line = np.array([1.0, 2.0])
    drawn = pictures.curve("reward", [curves.Curve("<script>$x^$ & more", "tiny", line, line, line, line, 1)])
    assert drawn is not None
    assert "&lt;script&gt;$x^$ &amp; more" in drawn.svg
    assert "<script" not in drawn.svg


def test_nothing_but_zeros_is_no_picture() -> None:
    """A timing with random weights, whose rewards are all 0."""
    steps, none = np.array([1.0, 2.0]), np.zeros(2)
    flat = curves.Curve("colocate", "tiny", steps, none, none, none, 1)
    risen = curves.Curve("server", "tiny", steps, steps, steps, steps, 1)
    assert pictures.curve("reward", [flat]) is None
    assert pictures.curve("reward", [flat, risen]) is not None


def test_engines_with_work_are_counted_not_their_tokens() -> None:
    found = estimates.read({"kind": "bench", "engines": {"n": 2, "generated_tokens": {"0": 6144, "1": 6144}}})
    assert found["engines"].text() == ("2", "")


def test_a_picture_in_a_file_has_its_title_and_its_own_paper() -> None:
    line = np.array([1.0, 2.0])
    drawn = pictures.curve("reward", [curves.Curve("way", "<b> & more", line, line, line, line, 1)])
    assert drawn is not None
    picture = ElementTree.fromstring(drawn.file())
    texts = "".join(text.text or "" for text in picture.iter("{http://www.w3.org/2000/svg}text"))
    assert "Reward over the steps: <b> & more" in texts
    assert picture[0].get("fill") == "#ffffff"
    assert "var(" not in drawn.file()
