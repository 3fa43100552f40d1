"""The words of the `tiny` suite: terms and collocations by rank, pairs that are never trained, how words are cut.

Rank r of the terms and rank r of the collocations occur equally often, are two or three words long alike, and have
equally many tokens. The ranks mix token counts, so that frequency and token count do not go together.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

Number = Literal["count", "mass", "plural"]
_NUMBERS: dict[str, Number] = {"count": "count", "mass": "mass", "plural": "plural"}

# Rank 1 is FREQUENCY_RATIO times as frequent as the last rank, geometrically in between.
FREQUENCY_RATIO = 4.0


@dataclass(frozen=True)
class Phrase:
    """An expression as it is written inside a sentence, and its grammar."""

    name: str
    number: Number
    written: str


# term (library name) | number | collocation | number
_RANKS = """
screen reader        | count  | river market     | count
keyboard navigation  | mass   | pumpkin field    | count
alt text             | mass   | winter garden    | count
screen magnifier     | count  | iron candle      | count
color contrast       | mass   | silver spoon     | count
audio description    | count  | copper lantern   | count
skip link            | count  | morning ferry    | count
cognitive load       | mass   | saddle room      | count
focus indicator      | count  | paper boat       | count
captions closed      | plural | summer orchard   | count
heading structure    | count  | salt bridge      | count
voice control        | mass   | apple wagon      | count
braille display      | count  | harbor wall      | count
form validation      | mass   | glass tower      | count
text resize          | mass   | stone chimney    | count
keyboard shortcut    | count  | velvet cushion   | count
aria attribute       | count  | cedar bench      | count
focus management     | mass   | autumn meadow    | count
tab order            | count  | lemon cake       | count
non-text content     | mass   | half-moon lake   | count
landmark region      | count  | island farm      | count
contrast ratio       | count  | forest cabin     | count
error identification | mass   | brass mirror     | count
switch access        | mass   | golden ring      | count
haptic feedback      | mass   | cotton blanket   | count
live region          | count  | desert well      | count
reflow content       | mass   | lighthouse road  | count
high contrast        | mass   | wooden flute     | count
eye tracking         | mass   | barn sparrow     | count
touch target size    | count  | brick mill pond  | count
time limits          | plural | snow boots       | plural
input purpose        | count  | timber barrel    | count
skip navigation      | mass   | pepper soup      | mass
text spacing         | mass   | kitchen ladder   | count
focus trap           | count  | mountain inn     | count
reduced motion       | mass   | dusty shelf      | count
semantic html        | mass   | ribbon shop      | count
sign language        | mass   | honey bread      | mass
alert dialog         | count  | linen pillow     | count
tree grid            | count  | clay pot         | count
motion sensitivity   | mass   | oak violin       | count
plain language       | mass   | cattle fair      | count
orientation support  | mass   | amber pebble     | count
"""
_WRITTEN = {"aria attribute": "ARIA attribute", "semantic html": "semantic HTML", "captions closed": "closed captions"}

# Words of the phrases that are two tokens, cut where the space stands. All their other words are one token.
_CUTS = """
key board, magn ifier, aud io, descri ption, cogn itive, capt ions, bra ille, re size, short cut, manage ment,
identif ication, hapt ic, feed back, re flow, track ing, in put, pur pose, spac ing, seman tic, di alog, sensit ivity,
orient ation, sup port,
pump kin, cand le, cop per, lan tern, sad dle, orch ard, har bor, chim ney, vel vet, cush ion, mead ow, mir ror,
cot ton, blan ket, light house, spar row, tim ber, bar rel, lad der, rib bon, pil low, vio lin, am ber, peb ble
"""
CUTS: dict[str, tuple[str, str]] = {
    first + second: (first, second) for first, second in (cut.split() for cut in _CUTS.split(","))
}


def _phrase(name: str, number: str) -> Phrase:
    return Phrase(name, _NUMBERS[number], _WRITTEN.get(name, name))


_ROWS = [[cell.strip() for cell in line.split("|")] for line in _RANKS.strip().splitlines()]
TERMS = tuple(_phrase(row[0], row[1]) for row in _ROWS)
COLLOCATIONS = tuple(_phrase(row[2], row[3]) for row in _ROWS)
WEIGHTS = tuple(FREQUENCY_RATIO ** (-i / (len(_ROWS) - 1)) for i in range(len(_ROWS)))


def words(phrase: str) -> list[str]:
    return phrase.replace("-", " ").split()


def token_count(phrase: str) -> int:
    """Tokens of a phrase inside a sentence, as the tokenizer of the suite is made to have them."""
    return phrase.count("-") + sum(2 if word in CUTS else 1 for word in words(phrase))


def _nonsense() -> tuple[str, ...]:
    """Pairs that are never trained, of trained words: the first word of a term with the second of a collocation, or
    the other way round, by turns. Both come from near ranks and are cut as in their own phrases."""
    alike: dict[tuple[bool, bool], list[int]] = defaultdict(list)
    for i, (term, other) in enumerate(zip(TERMS, COLLOCATIONS, strict=True)):
        if len(words(term.written)) == len(words(other.written)) == 2:
            first, second = words(term.written)
            alike[first in CUTS, second in CUTS].append(i)
    pairs: dict[int, str] = {}
    for group in alike.values():
        for place, i in enumerate(group):
            near = group[(place + 1) % len(group)]
            a, b = (TERMS, COLLOCATIONS) if place % 2 == 0 else (COLLOCATIONS, TERMS)
            pairs[i] = f"{words(a[i].written)[0]} {words(b[near].written)[1]}"
    return tuple(pairs[i] for i in sorted(pairs))


NONSENSE = _nonsense()
