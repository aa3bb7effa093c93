"""From the results below a folder to tables, pictures and a page. Nothing calls it; torch is not needed.

folder -> context (what may stand together) -> configurations (over seeds) -> tables, curves, pictures, published
-> contents -> Markdown, CSV, page.
"""

from grpo_lab.reporter.rows import table, write_csv

__all__ = ["table", "write_csv"]
