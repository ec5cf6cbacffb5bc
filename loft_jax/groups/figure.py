"""A network with its filter groups, as SVG: a bar for each layer, as long as it has filters."""

from html import escape

from loft_jax.models import Explanation

_COLOURS = {"inner": "#2a78b8", "stream": "#e0a03c", "whole": "#9a9a9a"}
_MEANINGS = {
    "inner": "can be split over workers and pruned",
    "stream": "several layers add to it: left whole",
    "whole": "left whole",
}
_ROW, _NAMES, _BARS, _NOTES, _TOP = 22, 250, 320, 620, 64


def draw(explanation: Explanation, title: str) -> str:
    """Return the figure as the text of an SVG file."""
    widest = max((axis.width for axis in explanation.axes), default=1)
    height = _TOP + _ROW * len(explanation.axes) + 16
    total = _NAMES + _BARS + _NOTES
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height}" width="{total}" '
        'font-family="sans-serif" font-size="12">',
        f"<title>Filter groups of {escape(title)}</title>",
        f'<rect width="{total}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for number, (kind, meaning) in enumerate(_MEANINGS.items()):
        x = 12 + 280 * number
        lines.append(f'<rect x="{x}" y="34" width="12" height="12" fill="{_COLOURS[kind]}"/>')
        lines.append(f'<text x="{x + 18}" y="44">{kind}: {meaning}</text>')
    for number, axis in enumerate(explanation.axes):
        y = _TOP + _ROW * number
        length = max(2, round((_BARS - 60) * axis.width / widest))
        note = axis.reason or f"{axis.parameters:,} parameters, {axis.flops / 1e6:,.2f} MFLOPs an image"
        shown = note if len(note) <= 95 else f"{note[:94]}…"
        lines += [
            f'<text x="{_NAMES - 8}" y="{y + 15}" text-anchor="end">{escape(explanation.name(axis))}</text>',
            f'<rect x="{_NAMES}" y="{y + 3}" width="{length}" height="{_ROW - 6}" fill="{_COLOURS[axis.kind]}">'
            f"<title>{escape(', '.join(axis.places))}</title></rect>",
            f'<text x="{_NAMES + length + 6}" y="{y + 15}">{axis.width}</text>',
            f'<text x="{_NAMES + _BARS}" y="{y + 15}" fill="#555555">{escape(shown)}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
