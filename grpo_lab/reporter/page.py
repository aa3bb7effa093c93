"""The report as one HTML file that needs nothing else: no font, no request, no script but its own."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from grpo_lab.reporter import tables
from grpo_lab.reporter.colours import DARK, LIGHT
from grpo_lab.reporter.contents import Contents


def html(contents: Contents) -> str:
    """Everything is escaped but our own SVG: reasons, names and sources are other people's text."""
    environment = Environment(
        loader=PackageLoader("grpo_lab.reporter", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = [(picture.title, picture.caption, Markup(picture.svg)) for picture in contents.pictures]
    script = files("grpo_lab.reporter").joinpath("rollouts.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        contents=contents,
        pictures=drawn,
        how_to_read=tables.HOW_TO_READ,
        light=LIGHT,
        dark=DARK,
        script=Markup(script),
        allowed=f"'sha256-{digest}'" if contents.rollouts else "'none'",
        rollouts=Markup(contents.rollouts.json()) if contents.rollouts else None,
    )
