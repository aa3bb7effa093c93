"""Where a run's rows are shown: Weights & Biases, trackio, or nowhere. metrics.jsonl is the record.

The trainers' own reporting stays off, so a row is the same everywhere and logged once. Nothing here needs a
network or a key unless `mode: online` asks for it.
"""

import contextlib
import importlib.util
import io
import netrc
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from grpo_lab.config.errors import RequestError
from grpo_lab.config.limits import check_limits
from grpo_lab.config.redaction import redact

_TRACKIO_REMOTES = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")

TAG_CHARS = 64
"""W&B refuses a run with a longer tag."""

Row = Mapping[str, float | int | str | None]


class TrackerSettings(Protocol):
    """The keys of conf/tracker/*.yaml."""

    kind: str
    mode: str
    project: str | None
    entity: str | None
    space_id: str | None


class Tracker(Protocol):
    def log(self, row: Row, step: int) -> None:
        """One row for one step; steps rise. A `None` is left out."""

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table under one name; its columns are the keys of all rows."""

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None: ...

    def how_to_look(self) -> str:
        """One line that tells a user how to see this run."""


def check(settings: TrackerSettings) -> None:
    """Refuse what cannot work, without importing the tracker. Raises RequestError."""
    check_limits(settings, "tracker")
    if settings.kind == "none" or settings.mode == "disabled":
        return
    if importlib.util.find_spec(settings.kind) is None:
        raise RequestError(f"tracker={settings.kind}: not installed; pip install {settings.kind}, or use tracker=none")
    if settings.space_id and (settings.kind, settings.mode) != ("trackio", "online"):
        raise RequestError(f"tracker.space_id={settings.space_id}: a Space needs tracker=trackio tracker.mode=online")
    if settings.mode == "offline":
        return
    if settings.kind == "wandb" and not (wandb_key() or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")):
        raise RequestError(
            "tracker.mode=online: no W&B key; set WANDB_API_KEY, run `wandb login`, or tracker.mode=offline"
        )
    if settings.kind == "trackio" and not (settings.space_id or any(map(os.environ.get, _TRACKIO_REMOTES))):
        raise RequestError(
            "tracker.mode=online: trackio has nowhere to send; set tracker.space_id=owner/name or TRACKIO_SERVER_URL, "
            "or use tracker.mode=offline"
        )


def wandb_url() -> str:
    return (os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").rstrip("/")


def wandb_key() -> str | None:
    """The key that wandb would find; the same places that it looks in."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key.strip()
    given = os.environ.get("NETRC")
    files = [Path(given)] if given else [Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()]
    host = urlsplit(wandb_url()).netloc
    return next(filter(None, (_netrc_password(file, host) for file in files if file.is_file())), None)


def _netrc_password(file: Path, host: str) -> str | None:
    try:
        entry = netrc.netrc(file).authenticators(host)
    except (netrc.NetrcParseError, OSError) as error:
        raise RequestError(f"tracker.mode=online: cannot read {file} ({error}); set WANDB_API_KEY") from error
    return entry[2] if entry else None


def open_tracker(
    settings: TrackerSettings,
    *,
    folder: Path,
    run_id: str,
    name: str,
    group: str | None,
    tags: Sequence[str],
    config: Mapping[str, Any],
    earlier: Sequence[Mapping[str, Any]] = (),
) -> Tracker:
    """Start or continue the run `run_id`; wandb's files go into `folder`. Secrets in `config` are hidden.

    `earlier`: the rows, each with its `step`, of a run that goes on.
    """
    check(settings)
    if settings.kind == "none" or settings.mode == "disabled":
        return _Nowhere()
    if settings.kind == "trackio":
        return _Trackio(settings, run_id, name, group, tags, redact(config))
    opened = _Wandb(settings, folder, run_id, name, group, tags, redact(config))
    if settings.mode == "offline":
        for row in earlier:
            opened.log(row, row["step"])
    return opened


class _Nowhere:
    def log(self, row: Row, step: int) -> None:
        pass

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        pass

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        pass

    def how_to_look(self) -> str:
        return "no tracker (tracker=none): the numbers are in metrics.jsonl"


class _Wandb:
    """Offline, a continued run gets one more `offline-run-*` folder of the same id, which holds the run from its first
    step: the one before lacks what was logged in the last second before a kill, and of two folders that are uploaded
    under one id the second replaced the first in many releases (wandb issue 3841)."""

    def __init__(
        self,
        settings: TrackerSettings,
        folder: Path,
        run_id: str,
        name: str,
        group: str | None,
        tags: Sequence[str],
        config: dict[str, Any],
    ) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        online = settings.mode == "online"
        self._files = folder / "wandb"
        self._run = wandb.init(
            project=settings.project or name,
            entity=settings.entity,
            dir=str(folder),
            id=run_id,
            name=name,
            group=group,
            tags=[tag[:TAG_CHARS] for tag in tags],
            config=config,
            mode="online" if online else "offline",
            resume="allow" if online else None,
            reinit="finish_previous",
            settings=_wandb_settings(),
        )

    def log(self, row: Row, step: int) -> None:
        self._run.log({key: value for key, value in row.items() if value is not None}, step=step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        self._run.log({name: wandb.Table(**_columns(rows))})

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=exit_code)

    def how_to_look(self) -> str:
        if not self._run.offline:
            return f"W&B: {self._run.url}"
        files = shlex.quote(str(self._files))
        return f"W&B (offline): wandb leet {files}   upload: wandb sync {files}/offline-run-*"


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Arguments of a tracker's Table: wandb's and trackio's are the same."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    data = [[row.get(column) for column in columns] for row in rows]
    return {"columns": columns, "data": data, "allow_mixed_types": True}


def _wandb_settings() -> Any:
    """No console text, code, package list, system metrics, nor the command line, which may hold secrets."""
    import wandb

    return wandb.Settings(
        console="off",
        silent=True,
        save_code=False,
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


class _Trackio:
    """A trackio run is known by its name; the run id makes it unique. It has no tags and no summary."""

    def __init__(
        self,
        settings: TrackerSettings,
        run_id: str,
        name: str,
        group: str | None,
        tags: Sequence[str],
        config: dict[str, Any],
    ) -> None:
        with contextlib.redirect_stdout(io.StringIO()), _local_only(settings.mode == "offline"):
            import trackio

            self._run = trackio.init(
                project=settings.project or name,
                name=f"{name} ({run_id})",
                space_id=settings.space_id,
                group=group,
                config=config | {"tags": list(tags), "run_id": run_id},
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self._end: Callable[[], object] = trackio.finish  # also keeps it from finishing again at exit
        self._project, self._space = settings.project or name, settings.space_id
        self._step = 0

    def log(self, row: Row, step: int) -> None:
        self._step = step
        self._run.log({key: value for key, value in row.items() if value is not None}, step=step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        import trackio

        self._run.log({name: trackio.Table(**_columns(rows))}, step=self._step)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """The summary becomes `final/*` of the last step."""
        plain = {key: value for key, value in summary.items() if isinstance(value, (int, float, str))}
        final = {f"final/{key}": value for key, value in (plain | {"exit_code": exit_code}).items()}
        self._run.log(final, step=self._step)
        with contextlib.redirect_stdout(io.StringIO()):
            self._end()

    def how_to_look(self) -> str:
        if self._space:
            return f"trackio: https://huggingface.co/spaces/{self._space}"
        where = os.environ.get("TRACKIO_DIR")
        prefix = f"TRACKIO_DIR={shlex.quote(where)} " if where else ""
        return f"trackio: {prefix}trackio show --project {shlex.quote(self._project)}"


@contextlib.contextmanager
def _local_only(wanted: bool) -> Iterator[None]:
    """Hide the variables that would make trackio send rows away although `mode` is offline."""
    hidden = {key: os.environ.pop(key) for key in _TRACKIO_REMOTES if wanted and key in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
