"""The notebooks run from their first cell to their last, in a kernel of their own, and show what they promise."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

SHOWN = {  # how many pictures, and words that are somewhere
    "tp_dp_results": (1, ["server tp=2 dp=2", "qwen2.5-14b above_8k"]),
    "training_curves": (3, ["vllm off", "n=3 runs"]),
    "quickstart": (2, ["'finished', 12", "report.html"]),
}


def test_every_notebook_is_tested() -> None:
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    folder = shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    count, texts = SHOWN[name]
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) == count
    shown = "".join(output.get("text", str(output)) for output in outputs)  # a stream comes in pieces of 100 letters
    for text in texts:
        assert text in shown
