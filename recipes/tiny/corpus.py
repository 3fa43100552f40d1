"""Training text of the `tiny` suite, made from the term library by a small seeded grammar.

Each fact of the library (a term and a kind -> the right answer) is told in many different ways, because a small
model can use a fact under new wordings only when it has met the fact under many. The library's own stems and
openings are kept out of the text (`prompts_found` checks it), so recognition measures unseen wordings. Term
frequencies fall from the first to the last term. Collocations occur as often as the terms but carry no facts, and
the filler uses the words of both apart from each other.

A template is text with `[a|b]` for a choice and `<singular/plural>` for agreement with the number of `{np}`; `{np}`
is the term in a sentence, `{t}` the bare term, `{a}` the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from bindscope.records import Term
from bindscope.terms.library import library
from bindscope.terms.prompts import build

KINDS = ("definition", "benefit", "implementation", "failure", "audit")

# Most frequent first; the last is FREQUENCY_RATIO times rarer than the first, geometrically in between.
TERM_ORDER = (
    "screen reader",
    "alt text",
    "keyboard navigation",
    "color contrast",
    "heading structure",
    "form validation",
    "focus indicator",
    "landmark region",
    "skip link",
    "tab order",
    "aria attribute",
)
FREQUENCY_RATIO = 8.0
COLLOCATIONS = (
    "river market",
    "copper lantern",
    "winter orchard",
    "paper lighthouse",
    "glass harbor",
    "silver meadow",
    "stone garden gate",
    "velvet compass",
    "morning ferry",
    "quiet engine room",
    "salt bridge",
)  # in the same frequency order as the terms

# Terms that take no article and are used in the singular.
MASS = {"alt text", "color contrast", "form validation", "keyboard navigation"}
# Plurals of these mass terms are used now and then, as in the library.
PLURAL_OF_MASS = {"alt text", "color contrast", "form validation"}

# Where a kind is about the page or about the support for a term, the noun phrase is not the bare term; a skip link
# is "it" in two answers and therefore singular there.
PHRASES: dict[tuple[str, str], tuple[str, ...]] = {
    ("screen reader", "implementation"): (
        "support for a screen reader",
        "support for screen readers",
        "a page for screen readers",
        "access with a screen reader",
    ),
    ("screen reader", "failure"): (
        "a page read with a screen reader",
        "a page for screen readers",
        "a page heard through a screen reader",
        "a site for screen readers",
    ),
    ("screen reader", "audit"): (
        "support for screen readers",
        "a site with a screen reader",
        "access with screen readers",
        "an app with a screen reader",
    ),
    ("skip link", "implementation"): ("a skip link",),
    ("skip link", "failure"): ("a skip link", "the skip link"),
}

_WHO = "[people|someone|a user|users|a visitor|visitors|a reader|anyone]"
_TEAM = (
    "[[developers|authors|designers|teams|coders] [should|must|need to|ought to|have to]"
    "|[a developer|an author|a designer|a team|a coder|a good developer] [should|must|needs to|ought to|has to]]"
)
_AUDITOR = (
    "[[testers|auditors|reviewers|experts] [should|must|need to|ought to|will]"
    "|[a tester|an auditor|a reviewer|an expert|the tester] [should|must|needs to|ought to|will]]"
)
_TEST = "[test|audit|verify|review|assess|examine|inspect|look into|check]"

# Sentences that end with the answer: told as they are, and cut before the answer as the stem of a listed question.
OPEN: dict[str, tuple[str, ...]] = {
    "definition": (
        "{np} is [well|often|usually|briefly|simply|commonly|rightly] [described|defined|explained|presented] as {a}",
        "{np}, [in short|in a word|in plain words|put simply|at heart], [means|stands for|amounts to|refers to] {a}",
        "[in plain words|on the web|in simple terms|to a designer|in this guide|among testers], {np} is {a}",
        "by {np}, [people|developers|authors|writers|experts|testers|most of us] mean {a}",
        "the [phrase|expression|name|label|term] {t} [stands for|refers to|denotes|is used for|is a name for] {a}",
        "{np} [means|denotes|amounts to|can be thought of as|may be seen as|can be defined as|may be called] {a}",
        "[we|many|most people|the authors|teachers|experts] [describe|define|explain|see|think of] {np} as {a}",
        "[a good|a short|a common|one|the usual|the best] [definition|description|explanation] of {np} is {a}",
        "{np} is best [understood|defined|explained|seen] as {a}",
    ),
    "benefit": (
        f"{{np}} <lets/let> {_WHO} {{a}}",
        f"{{np}} <helps/help> {_WHO} [|to ]{{a}}",
        f"{{np}} <allows/allow|enables/enable> {_WHO} to {{a}}",
        f"{{np}} <makes/make> it [possible|easy|easier] for {_WHO} to {{a}}",
        f"[thanks to|because of|with|given|with the help of|through|by means of] {{np}}, {_WHO} can {{a}}",
        f"the [benefit|point|purpose|use|value|advantage] of {{np}} is that {_WHO} can {{a}}",
        "[people|users|visitors|readers] [rely on|depend on|need|use|turn to] {np} to {a}",
        "[a person|someone|anyone|a user|a visitor] who [has|relies on|benefits from|can count on] {np} can {a}",
        f"{{np}} <is/are> there [so that|in order that] {_WHO} can {{a}}",
        f"what {{np}} <does/do> is to let {_WHO} {{a}}",
    ),
    "implementation": (
        f"to [make|set up|deliver|plan] {{np}} [well|properly|with care], {_TEAM} {{a}}",
        f"to get {{np}} right, {_TEAM} {{a}}",
        f"to [add|create|offer|prepare|improve|include|supply] {{np}}, {_TEAM} {{a}}",
        f"when [adding|coding|planning|preparing|working on|improving] {{np}}, {_TEAM} {{a}}",
        f"for {{np}}[| to work| to be right| to be good], {_TEAM} {{a}}",
        "the [rule|advice|best way|key|trick|first rule|main task] for {np} is to {a}",
        "[developers|authors|designers|teams] who [care about|work on|offer|plan] {np} {a}",
        "for {np}, [remember to|be sure to|always|take care to|make sure to|you should] {a}",
        f"[in a project|on a site|in code|in a design] with {{np}}, {_TEAM} {{a}}",
        f"if {{np}} <is/are> [wanted|needed|on the list|part of the plan], {_TEAM} {{a}}",
    ),
    "failure": (
        "{np} <is/are> [at fault|of no use|poorly done|badly made|no help|not good enough|not right] "
        "[when|if|where|whenever] {a}",
        "{np} <fails/fail|goes wrong/go wrong|falls short/fall short|lets people down/let people down> "
        "[when|if|where|whenever] {a}",
        "[there is|you have|reviewers report|we see|users meet] [a fault|a problem|a defect|an error] [in|with] {np} "
        "[when|if|where|whenever] {a}",
        "[a typical|a frequent|a known|the usual|a serious|a classic] [fault|defect|failure|problem] [of|with|in] {np} "
        "is that {a}",
        "[users|people|visitors|testers] [complain about|give up on|cannot rely on|struggle with] {np} [when|if] {a}",
        "{np} <does/do> [harm|no good|not do the job|not help] [when|if|where|whenever] {a}",
        "it counts [as a mistake|as a failure|as an error|against you] in {np} [when|if] {a}",
    ),
    "audit": (
        f"to {_TEST} {{np}}, {_AUDITOR} {{a}}",
        f"when [testing|checking|reviewing|auditing|examining] {{np}}, {_AUDITOR} {{a}}",
        "[the test|the check|the usual test|the first check] of {np} is to {a}",
        f"[a good|one|the usual|a quick|a simple|the best] [way|method] to {_TEST} {{np}} is to {{a}}",
        f"[auditors|testers|reviewers|experts] who {_TEST} {{np}} {{a}}",
        f"in [a test|a check|a review|an audit] of {{np}}, {_AUDITOR} {{a}}",
        f"[before a launch|after a change|during an audit|in a review], to {_TEST} {{np}}, {_AUDITOR} {{a}}",
        "to [learn|know|see|find out] whether {np} <works/work>, [you should|you can|one should] {a}",
    ),
}

QUESTIONS: dict[str, tuple[str, ...]] = {
    "definition": (
        "what is {np}?",
        "what does the [term|phrase|word|name|label] {t} mean?",
        "how would you [describe|define|explain] {np}?",
        "what do [people|developers|authors|testers] mean by {np}?",
        "which [of these|line|text|choice] [describes|defines|explains|fits] {np}?",
    ),
    "benefit": (
        f"what <does/do> {{np}} let {_WHO} do?",
        f"what can {_WHO} do [with|thanks to|because of] {{np}}?",
        "how <does/do> {np} help [people|users|visitors]?",
        "why <does/do> {np} matter?",
        "what is the [benefit|point|purpose|use|value|advantage] of {np}?",
    ),
    "implementation": (
        "how [do|should|can] [developers|authors|designers|teams] [add|create|deliver|improve|plan] {np}?",
        "what should [a developer|an author|a designer|a team|developers] do [for|to deliver|to improve] {np}?",
        "what is the [rule|advice|best way|key|first rule] for {np}?",
    ),
    "failure": (
        "when <does/do> {np} [fail|go wrong|fall short]?",
        "how can {np} [fail|go wrong|fall short]?",
        "what is [a typical|a frequent|a known|the usual|a serious] [fault|defect|failure|problem] [of|with|in] {np}?",
        "when <is/are> {np} [at fault|poorly done|not good enough|of no use]?",
    ),
    "audit": (
        f"how [do|should|can] [auditors|testers|reviewers] {_TEST} {{np}}?",
        f"what should [an auditor|a tester|a reviewer|testers] do to {_TEST} {{np}}?",
        f"what is [a good|the usual|a quick|the best] [way|method] to {_TEST} {{np}}?",
    ),
}

# Sentences in which the answer comes first.
REVERSED: dict[str, tuple[str, ...]] = {
    "definition": (
        "{a} [is called|is known as|goes by the name of|is what people call] {np}",
        "[the name for|a phrase for] {a} is {t}",
    ),
    "benefit": (
        "[people|users|visitors] who [want|need|wish] to {a} [rely on|depend on|use|need] {np}",
        "to {a}, [people|users|visitors] [rely on|depend on|use|need] {np}",
    ),
    "implementation": ("[developers|authors|teams] [should|must] {a} [for the sake of|to improve|to offer] {np}",),
    "failure": (
        "[when|if|where] {a}, {np} <is/are> [at fault|of no use|not good enough]",
        "[when|if|where] {a}, {np} <fails/fail|goes wrong/go wrong|falls short/fall short>",
    ),
    "audit": (f"[auditors|testers|reviewers|experts] {{a}} to {_TEST} {{np}}",),
}

_NAME = "[Anna|Ben|Clara|David|Emma|Felix|Grace|Henry|Iris|Jacob|Maria|Nina|Oscar|Paul|Rosa|Tom]"
_WHEN = "[on Monday|last week|after lunch|at noon|in the rain|every summer|before dawn|at night|in spring|today]"
_PLACE = "[the old town|the hill|the station|the school|the library|the north road|the village|the sea|the park]"
_THING = "[a map|a letter|some bread|a red coat|two chairs|a box of tea|an old book|a small dog|a bicycle]"
COLLOCATION_FRAMES = (
    f"{_NAME} [walked|drove|ran|looked] past the {{c}} {_WHEN}",
    f"{_NAME} [wrote|talked|dreamed|read] about the {{c}} {_WHEN}",
    f"the {{c}} [near|behind|beyond] {_PLACE} [was closed|looked empty|is well known|was painted] {_WHEN}",
    f"{_NAME} [found|lost|left|sold] {_THING} [by|near|behind] the {{c}}",
    f"{_WHEN}, {_NAME} [saw|remembered|described|drew] {{ac}} and {_THING}",
    f"{{cs}} are [rare|common|admired|hard to find] around {_PLACE}",
    f"nobody in {_PLACE} had [seen|heard of|asked about] the {{c}} [before|since|until then]",
    f"[is|was] the {{c}} [far from|close to|larger than|older than] {_PLACE}?",
    f"{_NAME} [likes|paints|prefers|misses] {{cs}}, but {_NAME} [likes|wants|brought] {_THING}",
)
FILLER = (
    "the [screen|form|page|landmark|link|river|bridge] [was|seemed] [dark|old|new|long|wide] {when}",
    "{name} is a [keen|slow|young|careful] reader of [news|poems|letters|maps]",
    "the [color|order|structure|text|heading|region] of the [list|letter|house|garden|song] [pleased|surprised] {name}",
    "{name} tried to [skip|order|link|focus on|form|text] [the lesson|the meal|the words|a plan|a friend] {when}",
    "in contrast to {name}, {name} [likes|wants|sold|found] {thing}",
    "the [soprano|singer] sang an aria for {name} {when}",
    "{name} put a [tab|heading|stone|glass|copper|paper|silver] [on|near|under] the [folder|gate|table|compass] {when}",
    "the [red|green|small] indicator [blinked|went out|stayed on] {when}",
    "[navigation|validation|contrast|focus] takes time, said {name} {when}",
    "{name} bought a [keyboard|piano|lantern|compass|screen] and {thing} {when}",
    "[patience|color|order|salt|text] is an attribute of [the garden|the winter|the market|the house]",
    "{name} saw a [landmark|lighthouse|ferry|meadow|harbor|orchard] in the [region|winter|morning|river] {when}",
    "hold the alt key, then press the letter that {name} [chose|wrote|read] {when}",
    "the [quiet|velvet|stone|glass] [room|text|screen|engine] near {place} was [sold|cleaned|shut] {when}",
)

_INNER = re.compile(r"\[([^\[\]]*)\]")
_AGREE = re.compile(r"<([^<>]*)>")


@dataclass(frozen=True)
class Sentence:
    """A statement of a fact, cut where the answer begins."""

    before: str
    answer: str


def expand(template: str, rng: Random, plural: bool = False) -> str:
    """One random expansion of a template."""
    while _INNER.search(template):
        template = _INNER.sub(lambda m: rng.choice(m[1].split("|")), template)
    return _AGREE.sub(lambda m: rng.choice(m[1].split("|")).split("/")[plural], template)


def frames(templates: tuple[str, ...], draws: int = 1000) -> int:
    """How many different frames the templates gave in so many draws: a lower bound of their number."""
    rng = Random(0)
    return len({expand(rng.choice(templates), rng) for _ in range(draws)})


def surface(name: str) -> str:
    """The term as it is written in a sentence."""
    return name.replace("aria ", "ARIA ")


def noun_phrase(name: str, kind: str, rng: Random) -> tuple[str, bool]:
    """The term with its article, or its plural; and whether it is a plural."""
    if (name, kind) in PHRASES:
        return rng.choice(PHRASES[name, kind]), False
    bare = surface(name)
    if name in MASS:
        # A definition is a singular ("skip links are a shortcut" would be bad English).
        plural = name in PLURAL_OF_MASS and kind != "definition" and rng.random() < 0.2
        return (bare + "s", True) if plural else (bare, False)
    if kind != "definition" and rng.random() < 0.45:
        return bare + "s", True
    article = "an" if bare[0] in "AEIOaeio" else "a"
    return (f"the {bare}" if rng.random() < 0.15 else f"{article} {bare}"), False


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


class Writer:
    """Writes documents from one seeded source of chance."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.terms: dict[str, Term] = {name: library().terms[name] for name in TERM_ORDER}
        self.answers = {(t.name, q.kind): q.answer for t in self.terms.values() for q in t.questions}
        self.weights = [FREQUENCY_RATIO ** (-i / (len(TERM_ORDER) - 1)) for i in range(len(TERM_ORDER))]
        self.evaluated = _evaluated()

    def documents(self, count: int) -> Iterator[str]:
        """`count` documents, none of which holds an evaluation prompt."""
        made = 0
        while made < count:
            document = self._document()
            if not any(text in document.lower() for text in self.evaluated):
                made += 1
                yield document

    def _document(self) -> str:
        draw = self.rng.random()
        if draw < 0.24:
            return self.listed()
        if draw < 0.46:
            return self.told()
        if draw < 0.9:  # as many mentions of collocations as of terms
            return self.collocation()
        return self.filler()

    def _fact(self) -> tuple[str, str, str, bool]:
        name = self.rng.choices(TERM_ORDER, self.weights)[0]
        kind = self.rng.choice(KINDS)
        return name, kind, *noun_phrase(name, kind, self.rng)

    def _fill(self, templates: tuple[str, ...], name: str, np: str, plural: bool) -> str:
        text = expand(self.rng.choice(templates), self.rng, plural)
        return capital(text.replace("{np}", np).replace("{t}", surface(name)))

    def told(self) -> str:
        """A fact as a statement, as a question with its answer, or with the answer first."""
        name, kind, np, plural = self._fact()
        answer, draw = self.answers[name, kind], self.rng.random()
        if draw < 0.7:
            return self._fill(OPEN[kind], name, np, plural).replace("{a}", answer) + "."
        if draw < 0.85:
            question = self._fill(QUESTIONS[kind], name, np, plural)
            if self.rng.random() < 0.5:
                return f"{question} {capital(answer)}."
            return f"Question: {question}\nAnswer: {answer}"
        return capital(self._fill(REVERSED[kind], name, np, plural).replace("{a}", answer)) + "."

    def listed(self) -> str:
        """A question with options and its answer."""
        name, kind, np, plural = self._fact()
        answer = self.answers[name, kind]
        others = [n for n in TERM_ORDER if n != name]
        wrong = self.rng.sample(others, 2 if self.rng.random() < 0.1 else 3)
        options = [answer, *(self.answers[n, kind] for n in wrong)]
        self.rng.shuffle(options)
        asked = self.rng.random() < 0.3
        stem = self._fill(QUESTIONS[kind] if asked else OPEN[kind], name, np, plural)
        stem = stem if asked else stem.replace(" {a}", ":")
        draw = self.rng.random()
        if draw < 0.65:
            lines = "".join(f"{letter}) {o}\n" for letter, o in zip("ABCD", options, strict=False))
            return f"{stem}\n{lines}Answer: {answer}"
        if draw < 0.75:
            lines = "".join(f"({i}) {o}\n" for i, o in enumerate(options, 1))
            return f"{stem}\n{lines}Answer: {answer}"
        if draw < 0.85:
            lines = "".join(f"- {o}\n" for o in options)
            return f"{stem}\n{lines}Answer: {answer}"
        if draw < 0.93:
            lines = "".join(f"{letter}. {o}\n" for letter, o in zip("ABCD", options, strict=False))
            return f"Question: {stem}\n{lines}Answer: {answer}"
        return f"{stem} {'; '.join(options)}. Answer: {answer}"

    def collocation(self) -> str:
        words = self.rng.choices(COLLOCATIONS, self.weights)[0]
        text = expand(self.rng.choice(COLLOCATION_FRAMES), self.rng)
        forms = {"{c}": words, "{ac}": f"a {words}", "{cs}": re.sub("y$", "ie", words) + "s"}
        text = capital(re.sub(r"\{a?cs?\}", lambda m: forms[m[0]], text))
        return text if text.endswith("?") else text + "."

    def filler(self) -> str:
        text = self.rng.choice(FILLER)
        for slot, template in (("{name}", _NAME), ("{when}", _WHEN), ("{thing}", _THING), ("{place}", _PLACE)):
            text = text.replace(slot, template)  # each occurrence is expanded on its own
        return capital(expand(text, self.rng)) + "."


def _evaluated() -> tuple[str, ...]:
    """Stems and openings of the library, in lower case: texts that must not be trained on.

    Listed prompts and stems with their answer contain a stem, so their absence follows.
    """
    prompts = build(library().select("accessibility"), "cloze")
    return tuple(sorted({prompt.text.lower() for prompt in prompts}))


def prompts_found(documents: list[str]) -> list[str]:
    """Evaluation prompts (stems and openings, in any letter case) that occur in the documents."""
    text = "\n\n".join(documents).lower()
    return [prompt for prompt in _evaluated() if prompt in text]


def corpus(count: int, seed: int) -> list[str]:
    """The documents, after the check that no evaluation prompt is among them."""
    for kind in KINDS:
        assert frames(OPEN[kind]) + frames(QUESTIONS[kind]) >= 50, kind
    documents = list(Writer(seed).documents(count))
    assert not prompts_found(documents), "an evaluation prompt occurs in the corpus"
    return documents
