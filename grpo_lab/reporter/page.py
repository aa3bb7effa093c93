"""The report as one HTML file that needs nothing else: no script, no font, no request."""

from __future__ import annotations

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
    return environment.get_template("page.html.j2").render(
        contents=contents, pictures=drawn, how_to_read=tables.HOW_TO_READ, light=LIGHT, dark=DARK
    )
