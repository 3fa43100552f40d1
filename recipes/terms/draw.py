"""Draws the control group random-pairs: two common nouns at random that form no collocation.

    python recipes/terms/draw.py

ONE: nouns of one token under all five real tokenizers, TWO: of two tokens, so that the pairs have two, three and four
tokens. No noun is used twice. PUT_ASIDE are draws that read as a phrase somebody could use.
"""

from __future__ import annotations

from random import Random

SEED = 20260
ONE = """river window apple bottle mirror garden bridge pencil blanket hammer ladder pillow bucket candle carpet basket
kitchen ticket engine jacket button island forest pocket camera circle corner dinner doctor farmer finger guitar helmet
horse lemon letter machine mountain museum needle novel ocean oven paper pepper piano picture pilot planet plate potato
rabbit radio rain ring roof rope sand shirt shoe snow soap sofa soup spoon stone storm sugar summer sweater table tooth
tower train truck tunnel umbrella uncle valley village wall weather wheel wind wood yard balcony bicycle bread brick
butter castle chair cheese clock cloud coffee dust fence flower glove""".split()  # noqa: SIM905
TWO = """biscuit penguin sparrow lemonade toothbrush watermelon pancake muffin typewriter armchair orchard vineyard
octopus giraffe bonfire thistle slippers postcard bandage jellyfish toothpaste parrot hedgehog roundabout seaweed puddle
squirrels sunflower""".split()  # noqa: SIM905
PUT_ASIDE = {
    "snow shoe", "forest island", "garden valley", "pocket novel", "sunflower bread", "mirror letter", "pepper biscuit",
}  # fmt: skip
#: How many pairs, and the tokens of their two nouns; None draws (1, 2) or (2, 1).
SHAPES = ((12, (1, 1)), (6, None), (5, (2, 2)))


def draw() -> list[str]:
    """The pairs in the order of the file."""
    rng = Random(SEED)
    one, two = ONE[:], TWO[:]
    rng.shuffle(one)
    rng.shuffle(two)
    out: list[str] = []
    for count, shape in SHAPES:
        end = len(out) + count
        while len(out) < end:
            form = shape or rng.choice(((1, 2), (2, 1)))
            pair = " ".join((one if n == 1 else two).pop() for n in form)
            if pair not in PUT_ASIDE:
                out.append(pair)
    return out


if __name__ == "__main__":
    print("\n".join(draw()))
