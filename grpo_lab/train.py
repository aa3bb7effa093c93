"""`python -m grpo_lab.train`: the conductor. It holds no GPU, starts what the plan says, watches, and sums up."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import hydra
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from grpo_lab import completions, curve, results, store, tracker
from grpo_lab import config as configuration
from grpo_lab import console as terminal
from grpo_lab.cli import explain, refuse, run_app
from grpo_lab.config import CONF, Config
from grpo_lab.errors import RequestError
from grpo_lab.logs import Log
from grpo_lab.machine import Machine, describe, gpu_memory_gib, read_machine
from grpo_lab.plan import Plan, Ports, make_plan, shell
from grpo_lab.ports import lease
from grpo_lab.preflight import check_data, check_targets
from grpo_lab.processes import Child
from grpo_lab.redaction import redact, redact_text
from grpo_lab.server import Server, ServerError, attach, vllm_server
from grpo_lab.store import Row, Run

POLL_S = 0.2

configuration.register()


class RunFailed(RuntimeError):
    """The run ended without finishing; what there is to say has been said. Carries the exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Failure(RuntimeError):
    """Why a run failed, with its class of DESIGN section 3."""

    def __init__(self, failure_class: str, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.row: Row = {"class": failure_class, "message": message, "log": str(log) if log else None}


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def app(composed: DictConfig) -> float | None:
    """Hydra's entry: one point of a sweep, or the only one. Returns accuracy after training.

    Leaves by SystemExit, which Hydra lets through without a word of its own.
    """
    try:
        return conduct(configuration.from_hydra(composed), Console())
    except (RequestError, OmegaConfBaseException) as error:
        sys.exit(refuse(explain(error)))
    except RunFailed as error:
        sys.exit(error.exit_code)


def conduct(config: Config, console: Console) -> float | None:
    """Plan, check, run. Raises RequestError before anything is started, RunFailed after."""
    machine = read_machine()
    folder = Path(config.runs_dir) / (config.name or default_name(config))
    with lease(3) as free:
        plan = make_plan(config, machine, folder=folder, ports=Ports(*free))
        check_targets(config)
        tracker.check(config.tracker)
        terminal.banner(console, config, plan, machine, folder)
        if config.dry_run:
            show_commands(console, plan)
            return None
        check_data(config)
        run = Run(folder)
        finished = settle_folder(run, config, console)
        if finished is None:
            create(run, config, plan, machine)
            finished = execute(run, config, plan, console)
    accuracy = finished["metrics"]["accuracy_after"]
    return accuracy["value"] if accuracy else None


def default_name(config: Config) -> str:
    """Readable, and different for every different config."""
    data = str(config.data.get("_target_", "")).rpartition(".")[2]
    layout = "" if config.vllm.mode == "off" else f"-tp{config.vllm.tp}dp{config.vllm.dp}"
    return f"{config.model.name}-{data}-{config.vllm.mode}{layout}-{configuration.identity(config)}"


def show_commands(console: Console, plan: Plan) -> None:
    for name, command in (("prepare", plan.prepare), ("server", plan.server), ("trainer", plan.trainer)):
        if command is not None:
            console.print(
                f"\n# {name}\n{shell(command.env, command.argv)}", highlight=False, markup=False, soft_wrap=True
            )


def settle_folder(run: Run, config: Config, console: Console) -> Row | None:
    """Make room for the run, or return the result of one that is finished already.

    Raises:
        RequestError: for an unfinished run with a checkpoint, or a folder of another config, until the user decides.
    """
    if not run.config.exists():
        return None
    if config.resume is False:
        console.print(f"  the earlier run is now {run.set_aside()}", highlight=False)
        return None
    if configuration.identity(configuration.load(run.config)) != configuration.identity(config):
        raise RequestError(
            f"{run.folder} holds a run of another config; choose another name=, or resume=false to start over"
        )
    result = store.read_json(run.result)
    if result and result["status"] == "finished":
        console.print("  finished before; resume=false runs it again", highlight=False)
        terminal.summary(console, run, result, None)
        return dict(result)
    checkpoint = run.last_checkpoint()
    if checkpoint and config.resume is None:
        raise RequestError(
            f"{run.folder} was left at step {checkpoint[1]}: resume=true goes on from there, resume=false starts over"
        )
    step = checkpoint[1] if checkpoint else 0
    run.rewind(step)
    for leftover in (run.result, run.outcome, run.stop_request, run.progress):
        leftover.unlink(missing_ok=True)
    if checkpoint:
        console.print(f"  going on from step {step}", highlight=False)
    return None


def create(run: Run, config: Config, plan: Plan, machine: Machine) -> None:
    """The folder with what was asked, what was decided, and where it runs. Secrets stay out."""
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    configuration.save(config, run.config)
    devices = {"devices": plan.devices, "generating_devices": plan.generating_devices}
    store.write_json(run.plan, redact({**dataclasses.asdict(plan), **devices}))
    before = store.read_json(run.env) or {}
    store.write_json(
        run.env,
        {
            "run_id": before.get("run_id") or f"{configuration.identity(config)}-{os.urandom(3).hex()}",
            "command": redact_text(shlex.join(["python", "-m", "grpo_lab.train", *sys.argv[1:]])),
            "git_commit": git_commit(),
            **describe(machine),
        },
    )


def git_commit() -> str | None:
    """Commit of the harness where it runs from a clone, with `+changes` if the tree is not clean."""
    if shutil.which("git") is None:
        return None
    here = Path(__file__).parent
    answers = [
        subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)
        for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    ]
    if any(answer.returncode for answer in answers):
        return None
    return answers[0].stdout.strip() + ("+changes" if answers[1].stdout.strip() else "")


def execute(run: Run, config: Config, plan: Plan, console: Console) -> Row:
    """Start the children, wait for the end, write result.json. Raises RunFailed if the run did not finish."""
    failed: Row | None = None
    seen: Row = {}
    with stop_signals(run) as stop, terminal.Progress(console, run) as progress:
        try:
            prepare(run, config, plan, progress, stop)
            started = time.monotonic()
            with server_of(run, config, plan, stop, progress) as server:
                if server is not None:
                    seen["startup_s"] = time.monotonic() - started
                progress.show("starting the trainer")
                train(run, config, plan, progress, stop, server)
                seen["peak_memory_gib"] = gpu_memory_gib(plan.server_gpus)
        except Failure as failure:
            failed = failure.row
        except ServerError as error:
            failed = {"class": error.failure_class, "message": str(error), "log": str(run.server_log)}
        except KeyboardInterrupt:
            stop.hard = True
    if stop.asked and failed is None and not finished(run):
        raise interrupted(run, stop, console)
    completions.gather(run)
    result = results.build(run, config, plan, status="failed" if failed else "finished", failure=failed, server=seen)
    curve.draw(run, result)
    store.write_json(run.result, result)
    terminal.summary(console, run, result, (store.read_json(run.outcome) or {}).get("look"))
    if failed:
        terminal.failure(console, failed)
        raise RunFailed(failed["message"])
    return result


def finished(run: Run) -> bool:
    return bool((store.read_json(run.outcome) or {}).get("finished"))


def interrupted(run: Run, stop: Stop, console: Console) -> RunFailed:
    checkpoint = run.last_checkpoint()
    where = f"at step {checkpoint[1]}; resume=true goes on from there" if checkpoint else "before the first checkpoint"
    console.print(f"stopped {where}", highlight=False)
    return RunFailed("stopped", exit_code=128 + stop.number)


@dataclasses.dataclass
class Stop:
    """What the user's signals ask for: to end after the step at hand, or at once."""

    asked: bool = False
    hard: bool = False
    number: int = signal.SIGINT


@contextlib.contextmanager
def stop_signals(run: Run) -> Iterator[Stop]:
    """Ctrl-C and SIGTERM: the first lets a training step end and saves it, the second ends all at once."""
    stop = Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        training = (store.read_json(run.progress) or {}).get("phase") == "training"
        stop.hard = stop.asked or not training
        stop.asked, stop.number = True, number
        if training:
            run.stop_request.touch()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def server_of(run: Run, config: Config, plan: Plan, stop: Stop, progress: terminal.Progress) -> Iterator[Server | None]:
    """The vLLM server of the run for its length, None where it has none or uses somebody else's."""

    def on_progress(line: str) -> None:
        if stop.hard:
            raise KeyboardInterrupt
        progress.show(f"vLLM server | {line}")

    if config.vllm.url is not None:
        attach(config.vllm.url, tp=plan.tp, dp=plan.dp, backend=str(plan.weight_transfer), timeout_s=30.0)
    if plan.server is None:
        yield None
        return
    with vllm_server(
        plan.server, log=run.server_log, timeout_s=config.timeouts.startup, on_progress=on_progress
    ) as server:
        yield server


def prepare(run: Run, config: Config, plan: Plan, progress: terminal.Progress, stop: Stop) -> None:
    """Make the checkpoint with random weights where the run needs one that is not there yet."""
    if plan.prepare is None:
        return
    progress.show("drawing random weights")
    with Child(plan.prepare.argv, env=plan.prepare.env, log=run.worker_log) as child:
        while (code := child.poll()) is None:
            time.sleep(POLL_S)
            if stop.hard:
                raise KeyboardInterrupt
    if code != 0:
        raise Failure("error", f"drawing random weights ended with exit code {code}", run.worker_log)


def train(run: Run, config: Config, plan: Plan, progress: terminal.Progress, stop: Stop, server: Server | None) -> None:
    """Start the trainer and wait for its end. Raises Failure, ServerError, KeyboardInterrupt on a second signal."""
    told = False
    with Child(plan.trainer.argv, env=plan.trainer.env, log=run.worker_log) as child:
        started = time.time()
        while (code := child.poll()) is None:
            time.sleep(POLL_S)
            if stop.hard:
                raise KeyboardInterrupt
            if stop.asked and not told:
                progress.say("stopping after this step (once more: at once)")
                told = True
            progress.update()
            if server is not None:
                server.check()
            check_pace(run, config, started)
    if code != 0:
        raise failure_of(run, code)


def check_pace(run: Run, config: Config, started: float) -> None:
    """Raises Failure when the worker has shown no progress for longer than the time limit of its phase."""
    begun = run.progress.exists()
    limit = config.timeouts.step if begun else config.timeouts.startup
    quiet = time.time() - (run.progress.stat().st_mtime if begun else started)
    if quiet > limit:
        key = "timeouts.step" if begun else "timeouts.startup"
        raise Failure("timeout", f"no progress for {quiet:.0f} s ({key}={limit:g})", run.worker_log)


def failure_of(run: Run, code: int) -> Failure:
    """What the worker said itself, otherwise what its exit code and the end of its log say."""
    said = (store.read_json(run.outcome) or {}).get("failure")
    if said:
        return Failure(said["class"], said["message"], run.worker_log)
    if code == -signal.SIGKILL:
        return Failure("killed", "the trainer was killed (signal 9); out of host memory?", run.worker_log)
    log = Log(run.worker_log)
    said = [f"the trainer ended with exit code {code}", *log.causes(), log.tail()]
    return Failure("worker_crash", "\n".join(said), run.worker_log)


def main() -> None:
    """Exit code 0: finished. 1: failed. 2: refused. 128 + signal: stopped."""
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
