"""Sentence frames of the `tiny` corpus, the same for every term: nothing here names one.

A template is text with `[a|b]` for a choice and `<singular/plural>` for agreement with the number of `{np}`; `{np}`
is the phrase in a sentence with its article, `{t}` the bare phrase, `{a}` the answer. The answers of one kind have one
grammar (a noun phrase, a bare infinitive, or a clause), so each fits each frame of its kind.
"""

from __future__ import annotations

import re
from random import Random

KINDS = ("definition", "benefit", "implementation", "failure", "audit")

_WHO = "[people|someone|a user|users|a visitor|visitors|a reader|anyone|everyone]"
_TEAM = (
    "[[developers|authors|designers|teams|coders] [should|must|need to|ought to|have to]"
    "|[a developer|an author|a designer|a team|a coder|a good developer] [should|must|needs to|ought to|has to]]"
)
_AUDITOR = (
    "[[testers|auditors|reviewers|experts] [should|must|need to|ought to|will]"
    "|[a tester|an auditor|a reviewer|an expert|the tester] [should|must|needs to|ought to|will]]"
)
_TEST = "[test|audit|verify|review|assess|examine|inspect|look into|check]"
_WORK = "[attention to|good work on|care for|good support for|well made work on]"
_IF = "[when|if|where|whenever]"
_LETS = "[lets|helps|allows|enables]"

# Sentences that end with the answer. They are used whole as statements, and cut before the answer as the stem of a
# question with options.
OPEN: dict[str, tuple[str, ...]] = {
    "definition": (
        "{np} <is/are> [well|often|usually|briefly|simply|commonly|rightly] "
        "[described|defined|explained|presented] as {a}",
        "{np}, [in short|in a word|in plain words|put simply|at heart], "
        "<means/mean|stands for/stand for|amounts to/amount to|refers to/refer to> {a}",
        "[in plain words|on the web|in simple terms|to a designer|in this guide|among testers], {np} <is/are> {a}",
        "by {np}, [people|developers|authors|writers|experts|testers|most of us] mean {a}",
        "the [phrase|expression|name|label|term] {t} [stands for|denotes|is a name for|is used for] {a}",
        "{np} <means/mean|refers to/refer to|amounts to/amount to|can be thought of as|may be seen as"
        "|is defined as/are defined as> {a}",
        "[we|many|most people|the authors|teachers|experts] [describe|define|explain|see|think of] {np} as {a}",
        "[a good|a short|a common|one|the usual|the best] [definition|description|explanation] of {np} is {a}",
        "{np} <is/are> best [understood|defined|explained|seen] as {a}",
    ),
    "benefit": (
        f"{{np}} <lets/let> {_WHO} {{a}}",
        f"{{np}} <helps/help> {_WHO} [|to ]{{a}}",
        f"{{np}} <allows/allow|enables/enable> {_WHO} to {{a}}",
        f"{{np}} <makes/make> it [possible|easy|easier] for {_WHO} to {{a}}",
        f"{_WORK} {{np}} [lets|helps] {_WHO} {{a}}",
        f"[good|proper|the right|well planned|better] {{t}} [lets|helps] {_WHO} {{a}}",
        f"[thanks to|because of|with|given|with the help of|through|by means of] {{np}}, {_WHO} can {{a}}",
        f"the [benefit|point|purpose|use|value|advantage] of {{np}} is that {_WHO} can {{a}}",
        "[people|users|visitors|readers] [rely on|depend on|need|use|turn to] {np} to {a}",
        "[a person|someone|anyone|a user|a visitor] who [has|relies on|benefits from|can count on] {np} can {a}",
        f"{{np}} <is/are> there [so that|in order that] {_WHO} can {{a}}",
        f"what {{np}} <does/do> is to let {_WHO} {{a}}",
    ),
    "implementation": (
        f"to [make|set up|deliver|plan|provide|build|support] {{np}} [well|properly|with care], {_TEAM} {{a}}",
        f"to get {{np}} right, {_TEAM} {{a}}",
        f"to [add|create|offer|prepare|improve|include|supply|provide|support|respect] {{np}}, {_TEAM} {{a}}",
        f"when [adding|coding|planning|preparing|working on|improving|providing] {{np}}, {_TEAM} {{a}}",
        f"for {{np}}[| to work| to be right| to be good], {_TEAM} {{a}}",
        "the [rule|advice|best way|key|trick|first rule|main task] for {np} is to {a}",
        "[developers|authors|designers|teams] who [care about|work on|offer|plan] {np} {a}",
        "for {np}, [remember to|be sure to|always|take care to|make sure to|you should] {a}",
        f"[in a project|on a site|in code|in a design] with {{np}}, {_TEAM} {{a}}",
        f"[with {{np}} in mind|for the sake of {{np}}|to do right by {{np}}], {_TEAM} {{a}}",
    ),
    "failure": (
        f"{{np}} <is/are> [at fault|of no use|poorly done|badly made|no help|not good enough|not right] {_IF} {{a}}",
        "{np} <fails/fail|goes wrong/go wrong|falls short/fall short|breaks/break|lets people down/let people down> "
        f"{_IF} {{a}}",
        f"[there is|you have|reviewers report|we see|users meet] [a fault|a problem|a defect|an error] [in|with] {{np}}"
        f" {_IF} {{a}}",
        "[a typical|a frequent|a known|the usual|a serious|a classic] [fault|defect|failure|problem] [of|with|in] {np} "
        "is that {a}",
        "[users|people|visitors|testers] [complain about|give up on|cannot rely on|struggle with] {np} [when|if] {a}",
        f"{{np}} <does/do> [harm|no good|not do the job|not help] {_IF} {{a}}",
        "it counts [as a mistake|as a failure|as an error|against you] in {np} [when|if] {a}",
        f"a [page|site|form|design] [fails|lets down|ignores] people who [need|depend on] {{np}} {_IF} {{a}}",
    ),
    "audit": (
        f"to {_TEST} {{np}}, {_AUDITOR} {{a}}",
        f"to {_TEST} {{np}} of a [page|site], {_AUDITOR} {{a}}",
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
        "what <is/are> {np}?",
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
_BOOK = "[the book|the guide|a letter|the report|the glossary|the last chapter|her notes|the text|the meeting]"
_SAID = "[talked|wrote|read|heard|asked|dreamed]"

# Sentences that mention a phrase and say nothing about it, the same for terms and collocations. `{np2}` is a
# second phrase.
MENTION = (
    f"{_NAME} {_SAID} about {{np}} {_WHEN}, and {_NAME} {_SAID} about {{np2}}",
    f"{_BOOK} [mentions|names|shows|brings up] {{np}} [once|twice|several times] and then {{np2}}",
    f"{_WHEN}, {_NAME} [drew|remembered|described|wrote down] {{np}} and {{np2}}",
    f"{_NAME} has [not heard of|a drawing of|a question about|an example of] {{np}}, but {_NAME} [likes|knows] {{np2}}",
    f"the words {{t}} are [on the board|in {_BOOK}|on the last page], and {{t2}} [too|is next|comes after that]",
    f"[is|was] {{np}} in {_BOOK}, or only {{np2}}?",
    f"[somebody|nobody|the whole class|{_NAME}] [wrote|copied|read|said] {{t}} and {{t2}} {_WHEN}",
)

# Sentences with single words of the phrases, apart from each other.
APART = (
    f"{_NAME} [wrote|read|said|spelled] the word {{w}} {_WHEN}",
    f"{_NAME} [looked up|copied|explained] {{w}}, then {{w}}, then {{w}} {_WHEN}",
    f"{_BOOK} has {{w}} on the first page and {{w}} on the last page",
    f"{_NAME} likes the word {{w}} more than the word {{w}}",
    "[this line holds|the board shows] {w}, {w} and {w}",
    f"is {{w}} or {{w}} in {_BOOK}?",
)

_INNER = re.compile(r"\[([^\[\]]*)\]")
_AGREE = re.compile(r"<([^<>]*)>")


def expand(template: str, rng: Random, plural: bool = False) -> str:
    """One random expansion of a template."""
    while _INNER.search(template):
        template = _INNER.sub(lambda m: rng.choice(m[1].split("|")), template)
    return _AGREE.sub(lambda m: rng.choice(m[1].split("|")).split("/")[-1 if plural else 0], template)


def frames(templates: tuple[str, ...], draws: int = 1000) -> int:
    """How many different frames the templates gave in so many draws: a lower bound of their number."""
    rng = Random(0)
    return len({expand(rng.choice(templates), rng) for _ in range(draws)})
