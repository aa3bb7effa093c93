"""`python -m grpo_lab.report FOLDER...`: report.md, report.html and table.csv of the runs below.

A number stands with its interval and n; a run that did not finish, or may not stand beside the others, with its reason.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grpo_lab.config import output
from grpo_lab.config.cli import refuse
from grpo_lab.config.errors import RequestError
from grpo_lab.reporter import contents, page, rows
from grpo_lab.store import folder as store


def main() -> None:
    """Exit code 0, or 2 where there is nothing to report or the request is wrong."""
    parser = argparse.ArgumentParser(prog="python -m grpo_lab.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a sweep, of a run, or of several")
    parser.add_argument("--out", type=Path, help="where to write the files (default: the first folder)")
    parser.add_argument("--csv", type=Path, help="write table.csv here too")
    parser.add_argument("--published", type=Path, help="published.csv to put beside (default: the experiment's own)")
    asked = parser.parse_args()
    output.settle()
    try:
        print(write(asked.folders, asked.out or asked.folders[0], asked.csv, asked.published), end="")
    except RequestError as error:
        sys.exit(refuse(str(error)))


def write(folders: list[Path], out: Path, csv: Path | None = None, published: Path | None = None) -> str:
    """Write the files; the Markdown, followed by their names. Raises RequestError."""
    made = contents.make(folders, published)
    markdown, files = made.markdown(), [out / "report.md", out / "report.html", out / "table.csv"]
    try:
        out.mkdir(parents=True, exist_ok=True)
        store.write_text(files[0], markdown)
        store.write_text(files[1], page.html(made))
        for file in (files[2], *([csv] if csv else [])):
            rows.write_csv(list(made.runs), file)
    except OSError as error:
        raise RequestError(
            f"{error.filename}: cannot be written ({error.strerror}); --out=FOLDER writes elsewhere"
        ) from None
    return f"{markdown}\nwritten: {', '.join(map(str, files))}\n"


if __name__ == "__main__":
    main()
