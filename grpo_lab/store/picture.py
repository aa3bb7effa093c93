"""The picture of one run: reward over the steps, held-out accuracy at both ends."""

from __future__ import annotations

from grpo_lab.machine.disk import DiskFull, writing
from grpo_lab.store.folder import Run
from grpo_lab.store.records import Result


def draw(run: Run, result: Result) -> None:
    """Write reward_curve.png. Raises DiskFull, with no torn file left.

    Matplotlib is imported here: it takes longer than the rest of the conductor.
    """
    from matplotlib.figure import Figure

    rows = [row for row in run.rows() if row.get("reward") is not None]
    if not rows:
        return
    figure = Figure(figsize=(7, 4), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    steps = [row["step"] for row in rows]
    rewards = [row["reward"] for row in rows]
    axes.plot(steps, rewards, color="#b9c8dc", linewidth=1)
    window = max(1, len(rows) // 20)
    axes.plot(steps, _smooth(rewards, window), color="#1f4e79", label=f"reward, mean of {window} steps", linewidth=2)
    between = [row for row in run.rows() if row.get("eval/accuracy") is not None]
    if between:
        label = f"held-out pass@1 (n={between[-1]['eval/n']})"
        values = [row["eval/accuracy"] for row in between]
        axes.plot([row["step"] for row in between], values, ".-", color="#7a5c99", linewidth=1, label=label)
    for moment, step, colour in (("before", 0, "#c05a1c"), ("after", steps[-1], "#2b7a3d")):
        accuracy = result.metrics[f"accuracy_{moment}"]
        if accuracy:
            low, high = accuracy["ci95"]
            value = accuracy["value"]
            label = f"held-out pass@1 {moment}: {value:.2f} (n={accuracy['n']})"
            error = [
                [max(0.0, value - low)],
                [max(0.0, high - value)],
            ]  # an older result may exclude its value by rounding
            axes.errorbar([step], [value], yerr=error, fmt="o", color=colour, capsize=4, label=label)
    axes.set(xlabel="step", ylabel="reward, accuracy", title=run.folder.name)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    try:
        with writing(run.reward_curve):
            figure.savefig(run.reward_curve)
    except DiskFull:
        run.reward_curve.unlink(missing_ok=True)
        raise


def _smooth(values: list[float], window: int) -> list[float]:
    """Mean of the last `window` values at each point."""
    return [sum(part) / len(part) for end in range(1, len(values) + 1) if (part := values[max(0, end - window) : end])]
