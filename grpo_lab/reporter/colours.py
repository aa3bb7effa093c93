"""The colours of the page, light and dark, and the stand-ins for them that matplotlib draws with."""

from __future__ import annotations

INK, SOFT, LINE = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0{number}0505" for number in range(1, 9))
VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES, 1)
}
"""Stand-in colour -> CSS variable."""

LIGHT = {
    **{"ink": "#1b2430", "soft": "#566170", "line": "#d5dbe3", "page": "#ffffff"},
    **{"series-1": "#2f6fb0", "series-2": "#d17a22", "series-3": "#2e8b6f", "series-4": "#b5527b"},
    **{"series-5": "#7a68b8", "series-6": "#8a8d2f", "series-7": "#4c9fc4", "series-8": "#8d6f5a"},
}
DARK = {
    **{"ink": "#e6eaf0", "soft": "#9aa6b5", "line": "#323c49", "page": "#12171e"},
    **{"series-1": "#6ea8e0", "series-2": "#eba35a", "series-3": "#5fc2a2", "series-4": "#e08aae"},
    **{"series-5": "#aa9be6", "series-6": "#c3c665", "series-7": "#86cbe9", "series-8": "#c2a48e"},
}
