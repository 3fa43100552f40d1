"""A figure: one chart, the words that say what it shows, and the numbers behind it; and its forms: SVG, PNG, PDF.

In the page a figure takes the colors of the reader's theme: each color of the chart is one of `INK`, and stands for a
variable of the page's style sheet. Marks differ in shape, dash or size too, never in color alone.
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

#: Color in a chart and in its files -> variable of the page's style sheet, which has a dark value too.
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
#: By variable name.
COLOR = {name: color for color, name in INK.items()}
#: Six series (after Okabe & Ito), each above 4.5:1 on its paper; with their shapes and dashes.
SERIES = [COLOR[f"s{i}"] for i in range(1, 7)]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
DASHES = [[1, 0], [6, 4], [2, 3], [8, 3, 2, 3], [4, 2], [1, 2]]
#: Light to dark.
STEPS = [COLOR[f"h{i}"] for i in range(8)]

_SVG = "http://www.w3.org/2000/svg"
#: Attributes of vega's SVG that say nothing on a page where the figure is one image with a description.
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


#: Part of a report that shows a figure without a claim. lead: at the top.
Section = Literal["lead", "training", "heads", "measures", "runs", "further"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One chart with its words and numbers.

    name: of its files and its anchor.
    title: what it shows.
    chart: an Altair chart in the house style (`styled`).
    text: what there is to see, computed from the numbers.
    data: what is drawn, a row per mark.
    claim: id of the claim that it belongs to; "" for none.
    section: where a figure without a claim stands.
    note: how to read it.
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
    """The chart in the house style."""
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
    import vl_convert  # loading it takes long, and most commands draw nothing

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
    """An SVG document made ready for the page: named by the elements `name-title` and `name-text` around it, in the
    colors of the theme, without what a single image does not need."""
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(document)
    _thin(root, name)
    background = root[0]
    background.attrib["fill"] = "var(--paper)"
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title", "aria-describedby": f"{name}-text"}
    return ElementTree.tostring(root, encoding="unicode")


def _thin(element: ElementTree.Element, name: str) -> None:
    """Names of clips and gradients are the figure's own; numbers have one decimal; empty shapes are gone."""
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
