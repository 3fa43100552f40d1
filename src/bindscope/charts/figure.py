"""Figures: a chart with its description and its numbers, and how to write it as SVG, PNG or PDF.

In the report page a figure uses the colors of the reader's theme: each color of a chart is one of `INK`, which maps it
to a variable of the page's style sheet. Marks also differ in shape, dash or size, so no figure depends on color alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import pandas as pd

if TYPE_CHECKING:
    import altair as alt

#: Color in a chart and its files -> variable of the page's style sheet, which also has a value for the dark theme.
INK = {
    "#1b1b1b": "ink",
    "#494949": "soft",
    "#d5d5d5": "grid",
    "#6f6f6f": "axis",
    "#fefefe": "paper",
    "#0067a5": "s1",
    "#b34700": "s2",
    "#00755a": "s3",
    "#8e3a80": "s4",
    "#6b5900": "s5",
    "#5e5e5e": "s6",
    "#f3f7fb": "h0",
    "#dbe8f4": "h1",
    "#bdd6ec": "h2",
    "#93c0e1": "h3",
    "#2c74b0": "h4",
    "#1e619d": "h5",
    "#124b83": "h6",
    "#08306b": "h7",
}
#: Variable -> color.
COLOR = {name: color for color, name in INK.items()}
#: Colors, shapes and dashes of six series (after Okabe & Ito); each color has a contrast above 4.5:1 to the background.
SERIES = [COLOR[f"s{i}"] for i in range(1, 7)]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
DASHES = [[1, 0], [6, 4], [2, 3], [8, 3, 2, 3], [4, 2], [1, 2]]
#: Shades of a heat map, light to dark.
STEPS = [COLOR[f"h{i}"] for i in range(8)]

_SVG = "http://www.w3.org/2000/svg"
#: Attributes of vega's SVG that the page does not need, since the figure is one image with a description there.
_SPARE = {
    "class",
    "role",
    "aria-roledescription",
    "aria-hidden",
    "aria-label",
    "pointer-events",
    "version",
    "cursor",
    "opacity=1",
    "stroke-width=0",
}
_LONG = re.compile(r"(\d+\.\d)\d+")


#: Section of the report that shows a figure without a claim; "lead" is at the top.
Section = Literal["lead", "training", "heads", "measures", "runs", "further"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with its description and its numbers.

    name: name of its files and of its anchor in the page
    title: what it shows
    chart: an Altair chart, see `styled`
    text: a description, computed from the numbers
    data: a row per mark of the chart
    claim: id of the claim that it belongs to, "" for none
    section: section of the report that shows it, where it belongs to no claim
    note: how to read it
    """

    name: str
    title: str
    chart: alt.TopLevelMixin
    text: str
    data: pd.DataFrame
    claim: str = ""
    section: Section = "further"
    note: str = ""

    def __repr__(self) -> str:
        return f"{self.title}\n{self.text}"

    def _repr_svg_(self) -> str:
        """For a notebook: the drawing, with its description for those who do not see it. It may overflow, since the
        fonts of a reader may be wider than those that it was laid out with."""
        about = f'<svg role="img" overflow="visible" aria-label={quoteattr(repr(self))} '
        return svg(self.chart).replace("<svg ", about, 1)


def styled(chart: Any) -> Any:
    """The chart with the fonts, colors and lines of all figures."""
    ink, soft = COLOR["ink"], COLOR["soft"]
    letters = {"labelFontSize": 12.5, "titleFontSize": 12.5, "titleFontWeight": "normal", "labelColor": ink}
    lines = {"domainColor": COLOR["axis"], "tickColor": COLOR["axis"], "gridColor": COLOR["grid"], "titlePadding": 8}
    keys = {"labelLimit": 420, "symbolSize": 110, "symbolStrokeWidth": 2.5}
    title = {"fontSize": 13.5, "anchor": "start", "fontWeight": "bold", "color": ink}
    return chart.configure(
        font="Helvetica, Arial, Liberation Sans, sans-serif",
        background=COLOR["paper"],
        aria=False,
        padding=6,
        axis=letters | lines | {"labelFontSize": 12, "titleColor": ink},
        legend=letters | keys | {"titleColor": ink},
        header=letters | {"labelLimit": 300, "titleColor": ink},
        title=title | {"subtitleColor": soft, "subtitleFontSize": 11.5},
        view={"stroke": COLOR["grid"]},
        text={"color": ink, "fontSize": 11.5},
    )


def svg(chart: alt.TopLevelMixin) -> str:
    """The chart as an SVG document, drawn without a browser or network."""
    import vl_convert  # imported here because it takes long and most commands draw nothing

    return str(vl_convert.vegalite_to_svg(chart.to_dict(validate=False)))


def png(document: str, scale: float = 2.0) -> bytes:
    """An SVG document as a PNG image of `scale` pixels per unit."""
    import vl_convert

    return bytes(vl_convert.svg_to_png(document, scale=scale))


def pdf(document: str) -> bytes:
    """An SVG document as a PDF page."""
    import vl_convert

    return bytes(vl_convert.svg_to_pdf(document))


def inline(document: str, name: str) -> str:
    """An SVG document for the report page: in the colors of the theme, without attributes that the page does not need.

    document: the SVG document
    name: name of the figure; the elements `name-title` and `name-text` of the page are its title and description
    """
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(document)
    _thin(root, name)
    background = root[0]
    background.attrib["fill"] = "var(--paper)"
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title", "aria-describedby": f"{name}-text"}
    return ElementTree.tostring(root, encoding="unicode")


def _thin(element: ElementTree.Element, name: str) -> None:
    """Make ids unique to the figure, round numbers to one decimal, and remove empty shapes; in place."""
    for key, value in list(element.attrib.items()):
        if key in _SPARE or f"{key}={value}" in _SPARE:
            del element.attrib[key]
        elif value in INK:
            element.attrib[key] = f"var(--{INK[value]})"
        elif key == "id":
            element.attrib[key] = f"{name}-{value}"
        elif value.startswith("url(#"):
            element.attrib[key] = value.replace("url(#", f"url(#{name}-")
        elif key in ("d", "transform", "x", "y", "x1", "x2", "y1", "y2", "width", "height"):
            element.attrib[key] = _LONG.sub(r"\1", value)
    for child in list(element):
        _thin(child, name)
        kind = child.tag.rpartition("}")[2]
        bare = kind == "path" and child.attrib.get("d", "") in ("", "M0,0h0v0h0Z")
        if bare or (kind == "g" and len(child) == 0):
            element.remove(child)
        elif kind == "g" and not child.attrib:
            at = list(element).index(child)
            element.remove(child)
            for i, inner in enumerate(list(child)):
                element.insert(at + i, inner)
