"""Draws the pictures of docs/concepts.md from its worked example: `python docs/pictures.py`.

Every number comes from the functions of `bindscope.measures`. The pictures have a light background of their own, so
they look the same on light and on dark pages.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from bindscope.engine.data import TextData
from bindscope.measures.eb_star import eb_star
from bindscope.measures.mass import mass
from bindscope.measures.nulls import compare_with_null, window_starts
from bindscope.measures.view import SpanView

WORDS = ["⟨s⟩", "A", "touch", "target", "size", "of", "44", "pixels", "helps", "people", "who", "tremble"]
START, K = 2, 3
#: Layer and head -> A[3, 2], A[4, 2], A[4, 3]: the attention inside the term.
ATTENTION = [[(0.6, 0.3, 0.6), (0.9, 0.0, 0.9), (0.1, 0.1, 0.1), (0.0, 0.0, 0.0)], [(0.2, 0.2, 0.2)] * 4]
ROW = [0.05, 0.05, 0.30, 0.60, 0.00]  # of "size" in the first head, over positions 0 to 4
WINDOWS = [0.10, 0.15, 0.20, 0.30, 0.35]  # EB* of the five windows
INK, SOFT, BLUE, ORANGE, PALE, GRID = "#1b1b1b", "#494949", "#0067a5", "#b34700", "#dbe8f4", "#8a8a8a"


def band() -> np.ndarray:
    """The attention of the example, (layers, heads, positions, 1 + 2); see `TextData.band`."""
    P = np.zeros((2, 4, len(WORDS), K), np.float32)
    for layer, heads in enumerate(ATTENTION):
        for head, (second_first, third_first, third_second) in enumerate(heads):
            P[layer, head, START + 1, 1] = second_first
            P[layer, head, START + 2, 2] = third_first
            P[layer, head, START + 2, 1] = third_second
    return P


def view(P: np.ndarray, start: int, k: int) -> SpanView:
    """The term at positions start ... start + k - 1."""
    return SpanView(TextData(ids=tuple(range(P.shape[2])), band=P), [start], k)


def text(
    x: float, y: float, words: str, size: int = 14, fill: str = INK, anchor: str = "middle", bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    place = f'x="{x:g}" y="{y:g}" font-size="{size}"'
    return f'<text {place} fill="{fill}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'


def box(x: float, y: float, w: float, h: float, fill: str = "none", line: str = "none", width: float = 1) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="3" fill="{fill}" stroke="{line}" '
        f'stroke-width="{width:g}"/>'
    )


def line(x1: float, y1: float, x2: float, y2: float, color: str = GRID, width: float = 1, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{color}" stroke-width="{width:g}"{dashes}/>'


def picture(width: int, height: int, title: str, parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, sans-serif"><title>{escape(title)}</title>'
        f"{box(0.5, 0.5, width - 1, height - 1, '#fefefe', '#d5d5d5')}{''.join(parts)}</svg>\n"
    )


def row() -> str:
    """One row of attention: how much the third token of the term attends to the tokens before it."""
    parts, wide = [], 110
    for i, (word, weight) in enumerate(zip(WORDS, ROW, strict=False)):
        x, of_term = 35 + i * wide, START <= i < START + K
        parts += [
            box(x + 25, 170 - 130 * weight, 50, 130 * weight, ORANGE if of_term else BLUE),
            text(x + 50, 162 - 130 * weight, f"{weight:.2f}"),
            box(x, 182, wide - 10, 32, PALE if of_term else "none", ORANGE if of_term else GRID, 2 if of_term else 1),
            text(x + 50, 203, word, bold=of_term),
            text(x + 50, 232, f"position {i}", 12, SOFT),
        ]
    parts += [
        line(35, 170, 575, 170),
        text(40, 30, "What “size” (position 4) reads from, in one head", 15, anchor="start", bold=True),
        text(575, 30, "the bars sum to 1", 13, SOFT, "end"),
        text(310, 258, "the term: k = 3 tokens", 13, ORANGE),
    ]
    return picture(610, 274, "One row of attention over the tokens of a sentence", parts)


def heads() -> str:
    """From BSI of every head to EB of a layer to EB*."""
    shown = view(band(), START, K)
    bsi, of_layer, parts = shown.bsi[0], eb_star(shown)["eb_per_layer"][0], []
    for layer in range(2):
        x0, mean = 50 + layer * 290, bsi[layer].mean()
        parts.append(text(x0 + 5, 34, f"layer {layer}", 15, anchor="start", bold=True))
        for head, value in enumerate(bsi[layer]):
            x = x0 + head * 48
            parts += [
                box(x + 4, 220 - 250 * value, 34, max(250 * value, 1), BLUE),
                text(x + 21, 212 - 250 * value, f"{value:.1f}", 13),
                text(x + 21, 240, f"head {head}", 12, SOFT),
            ]
        top, level = 220 - 250 * bsi[layer].max(), 220 - 250 * mean
        parts += [
            line(x0, level, x0 + 205, level, ORANGE, 2, "6 4"),
            line(x0, 220, x0 + 195, 220),
            text(x0 + 212, level + 16, f"mean {mean:.1f}", 12, ORANGE),
        ]
        if level - top > 1:
            parts += [
                line(x0 + 205, top, x0 + 205, level - 3, ORANGE, 3),
                text(x0 + 213, (top + level) / 2, "EB", 13, ORANGE, "start"),
            ]
        parts.append(text(x0 + 97, 268, f"EB = {bsi[layer].max():.1f} − {mean:.1f} = {of_layer[layer]:.1f}", 14))
    parts.append(text(310, 300, f"EB* = the largest EB of all layers = {of_layer.max():.1f}", 15, bold=True))
    return picture(620, 318, "BSI of each head in two layers, and what EB takes from them", parts)


def length() -> str:
    """A head that always reads the token before, on terms of two, three and four tokens."""
    parts, x0, cell = [], 40, 34
    for k in (2, 3, 4):
        P = np.zeros((1, 12, k + 1, k), np.float32)
        P[0, 0, 2:, 1] = 1
        shown = view(P, 1, k)
        parts.append(text(x0, 34, f"k = {k}", 15, anchor="start", bold=True))
        for i in range(1, k):
            for j in range(i):
                on = i - j == 1
                x, y = x0 + j * cell, 46 + (i - 1) * cell
                parts += [
                    box(x, y, cell - 3, cell - 3, BLUE if on else PALE),
                    text(x + 15, y + 21, "1" if on else "0", 14, "#fefefe" if on else INK),
                ]
        parts += [
            text(x0, 172, f"BSI = {k - 1}/{k * (k - 1) // 2} = {shown.bsi[0, 0, 0]:.3f}", 14, anchor="start"),
            text(x0, 194, f"EB* (H = 12) = {eb_star(shown)['eb_star'][0]:.4f}", 14, anchor="start"),
            text(x0, 216, f"EB*_mass = {mass(shown)['eb_star_mass'][0]:.4f}", 14, anchor="start"),
        ]
        x0 += 195
    parts.append(
        text(
            40,
            240,
            "Rows: second, third, fourth token of the term. Columns: the tokens it can read from.",
            13,
            SOFT,
            "start",
        )
    )
    return picture(620, 258, "A previous-token head scores 2/k whatever the term is", parts)


def null() -> str:
    """The null windows of one sentence, and the term's value compared with theirs."""
    observed = float(eb_star(view(band(), START, K))["eb_star"][0])
    null_values = compare_with_null(observed, np.array(WINDOWS), len(WINDOWS))
    parts = [text(20, 30, "Windows of three tokens that are not the term", 15, anchor="start", bold=True)]
    for i, word in enumerate(WORDS):
        of_term = START <= i < START + K
        parts += [
            box(20 + i * 62, 42, 58, 30, PALE if of_term else "none", ORANGE if of_term else GRID, 2 if of_term else 1),
            text(49 + i * 62, 62, word, 13, SOFT if i == 0 else INK, bold=of_term),
        ]
    for n, start in enumerate(window_starts(len(WORDS), K, range(START, START + K))):
        y = 84 + n * 9
        parts.append(line(22 + start * 62, y, 22 + (start + K) * 62 - 8, y, BLUE, 4))
    parts += [text(20, 104, "never: the term itself, position 0", 13, SOFT, "start"), line(60, 200, 720, 200, INK)]

    def at(value: float) -> float:
        return 60 + 1650 * value

    for tick in (0, 0.1, 0.2, 0.3, 0.4):
        parts += [line(at(tick), 200, at(tick), 206, INK), text(at(tick), 222, f"{tick:.1f}", 12, SOFT)]
    parts += [f'<circle cx="{at(v):g}" cy="188" r="7" fill="{BLUE}"/>' for v in WINDOWS]
    mean, value = at(null_values["null_mean"] or 0), at(observed)
    parts += [
        line(mean, 166, mean, 200, BLUE, 2, "4 3"),
        text(mean, 160, f"their mean {null_values['null_mean']:.2f}", 13, BLUE, "end"),
        f'<path d="M{value:g} 174l9 -16h-18z" fill="{ORANGE}"/>',
        text(value, 150, f"the term {observed:.2f}", 13, ORANGE, "start", True),
        line(mean + 2, 240, value, 240, ORANGE, 3),
        text(value + 8, 245, f"excess {null_values['excess']:.2f}", 13, ORANGE, "start"),
    ]
    return picture(780, 262, "Null windows of a sentence, and the excess of the term over their mean", parts)


PICTURES = {"concept-row": row, "concept-heads": heads, "concept-length": length, "concept-null": null}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (Path(__file__).parent / "images" / f"{name}.svg").write_text(draw(), encoding="utf-8")
