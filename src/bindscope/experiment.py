"""An experiment: what to measure, as a few lines of YAML; built in or in a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bindscope.errors import RequestError, UnknownName
from bindscope.prompts.build import build, carriers, check_unique, few_shot
from bindscope.prompts.jsonl import read_jsonl
from bindscope.prompts.library import Library, control_groups, library, read
from bindscope.records import Ablation, Bos, Dtype, Format, Mode, Order, Prompt, Protocol, Ranking, Term
from bindscope.yamlfile import YamlFile

#: module:name, with the folder of the module in front where it is in the folder of the experiment's file.
_OBJECT = re.compile(r"(?:.*/)?[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_TRUST = re.compile(r"I have read the code of (\S+) and trust it\.?")
#: The ablation of the reference study: 5 random sets of the whole model, heads ranked on the evaluated prompts.
_PUBLISHED: dict[str, Any] = {
    "modes": ("published",),
    "random": 5,
    "scope": "model",
    "held_out": False,
    "generation": True,
}


class Heads(BaseModel):
    """The section `ablation` of an experiment file; its fields are those of `records.Ablation`.

    Fields that are None have the default of the protocol.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    modes: tuple[Mode, ...] | None = None
    rankings: tuple[Ranking, ...] | None = None
    heads: tuple[tuple[int, int], ...] = ()
    k: int = Field(default=4, ge=1)
    sweep: tuple[int | str, ...] = ()
    random: int | None = Field(default=None, ge=1)
    scope: Literal["layer", "model"] | None = None
    unit: Literal["head", "kv_group"] = "head"
    questions: int | None = Field(default=None, ge=1)
    held_out: bool | None = None
    generation: bool | None = None
    seed: int = 42
    alpha: float = Field(default=0.05, gt=0, lt=1)

    @field_validator("modes", "rankings", "sweep", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | int) else value

    @field_validator("heads", mode="before")
    @classmethod
    def _layer_and_head(cls, value: Any) -> Any:
        """Heads as text "layer.head", since YAML reads 4.10 as the number 4.1, or as stored pairs of numbers."""
        heads = []
        for head in value if isinstance(value, list | tuple) else [value]:
            if isinstance(head, str) and re.fullmatch(r"\d+\.\d+", head):
                heads.append(tuple(map(int, head.split("."))))
            elif isinstance(head, list | tuple) and len(head) == 2 and all(type(n) is int and n >= 0 for n in head):
                heads.append(tuple(head))
            else:
                raise ValueError(f'heads are a list of layer.head in quotes, such as ["4.2", "16.0"], got {head!r}')
        if len(set(heads)) < len(heads):
            raise ValueError(f"a head is named twice in {value}; name each head once")
        return heads

    @model_validator(mode="after")
    def _named(self) -> Heads:
        if self.rankings is not None and ("named" in self.rankings) != bool(self.heads):
            raise ValueError("the ranking `named` needs the list `heads`, and `heads` needs it; give both or neither")
        return self

    @field_validator("sweep")
    @classmethod
    def _sizes(cls, value: tuple[int | str, ...]) -> tuple[int | str, ...]:
        for size in value:
            if isinstance(size, str) and not re.fullmatch(r"\d+(\.\d+)?%", size):
                raise ValueError(f"a size is a number or a share such as 2.8%, got {size!r}")
        return value

    def resolved(self, protocol: str) -> Ablation:
        """The settings with the defaults of a protocol ("controlled" or "published") where the file gives none.

        Raises RequestError where so few random sets cannot give p <= alpha.
        """
        given: dict[str, Any] = {name: value for name, value in self.model_dump().items() if value is not None}
        if self.heads and self.rankings is None:
            given["rankings"] = ("named",)
        spec = replace(Ablation(), **((_PUBLISHED if protocol == "published" else {}) | given))
        if protocol == "controlled" and spec.random < spec.least_random:
            raise RequestError(
                f"ablation: {spec.random} random sets cannot give p below {1 / (spec.random + 1):.3f}, and alpha is "
                f"{spec.alpha}; set random: {spec.least_random} or more"
            )
        return spec


class Experiment(BaseModel):
    """An experiment: what to measure on which checkpoints.

    name: its name
    about: what it is for
    suites: catalogue names, local folders, hub ids or YAML files of suites; `name@15000,143000` takes some checkpoints
    terms: sets or single terms of the library, or YAML files of terms
    prompts: a JSONL file in the published format, instead of terms
    measures: names of measures or groups, or module:measure for your own
    controls: control groups: sets of expressions or files of them; "all" for those that ship. They are measured in the
        same carrier sentences as the terms
    frames: the list of carrier sentences, None for the default
    protocol: "controlled" rotates the options of a question; "published" asks each question once, with the answer in
        the position that the file gives
    ablation: settings of ablation
    format: whether the options are listed in a question
    order: order of the options, None for that of the protocol
    bos: whether a beginning-of-text token is put in front, None for the default of each suite
    dtype: "auto", "float32", "bfloat16" or "float16"
    remote_code: repositories whose Python code may be run: `I have read the code of ORG/NAME and trust it`
    claims: your own claims, as module:name; the module may be in the folder of the experiment's file
    Raises ValidationError for fields that are not allowed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    about: str = ""
    suites: tuple[str, ...] = Field(min_length=1)
    terms: tuple[str, ...] = ()
    prompts: Path | None = None
    measures: tuple[str, ...] = ("binding", "recognition")
    controls: tuple[str, ...] = ()
    frames: str | None = None
    protocol: Literal["controlled", "published"] = "controlled"
    ablation: Heads = Heads()
    format: Format = "listed"
    order: Order | None = None
    bos: Bos | None = None
    dtype: Dtype = "auto"
    remote_code: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()

    @field_validator("claims")
    @classmethod
    def _module_and_name(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if odd := next((text for text in value if not _OBJECT.fullmatch(text)), None):
            raise ValueError(f"a claim is named module:name, such as my_claims:CLAIM, got {odd!r}")
        return value

    @field_validator("remote_code")
    @classmethod
    def _in_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if odd := next((text for text in value if not _TRUST.fullmatch(text)), None):
            raise ValueError(f"write `I have read the code of ORG/NAME and trust it` for each repository, got {odd!r}")
        return value

    def trusted(self) -> set[str]:
        """Repositories whose Python code may be run."""
        return {match[1] for text in self.remote_code if (match := _TRUST.fullmatch(text))}

    @field_validator("suites", "terms", "measures", "controls", "remote_code", "claims", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("controls")
    @classmethod
    def _all(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for v in value for name in (control_groups() if v == "all" else (v,))))

    @model_validator(mode="after")
    def _one_source(self) -> Experiment:
        if bool(self.terms) == bool(self.prompts):
            raise ValueError("give either `terms` or `prompts`")
        asked = self.model_fields_set & {"format", "order", "protocol", "controls", "frames"}
        if self.prompts and asked:
            raise ValueError(f"a prompt file sets {', '.join(sorted(asked))} itself; leave this out beside `prompts`")
        return self

    def _libraries(self) -> list[Library]:
        """The built-in library, then the term files that the experiment names. A set is in one of them only."""
        libraries = [library()]
        for name in dict.fromkeys((*self.terms, *self.controls)):
            if _is_file(name):
                new = read(Path(name))
                if taken := [s for s in new.sets if any(s in other.sets for other in libraries)]:
                    raise RequestError(f"{name}: there is another set with the name {taken[0]!r}; rename it")
                libraries.append(new)
        return libraries

    def selected(self) -> tuple[Term, ...]:
        """The terms of the experiment. Raises RequestError where two different terms have the same name."""
        return _select(self.terms, self._libraries())

    def groups(self) -> dict[str, tuple[Term, ...]]:
        """Control group -> its expressions. A file is one group, or a group for each of its sets where it has sets."""
        libraries, out = self._libraries(), dict[str, tuple[Term, ...]]()
        for name in self.controls:
            if _is_file(name):
                whole, *sets = read(Path(name)).sets
                out |= {group: _select((group,), libraries) for group in sets or [whole]}
            else:
                out[name] = _select((name,), libraries)
        return out

    def build_prompts(self) -> tuple[Prompt, ...]:
        """The prompts of the experiment, from its terms or from its prompt file.

        Raises RequestError where there are none, where a measure has none, and where a completion is to be scored and
        the term has no rubric.
        """
        prompts = tuple(self._prompts())
        check_unique(prompts)
        if not prompts:
            raise RequestError("the experiment has no prompts; name terms")
        openings = {p.shared: p for p in prompts if p.task == "generation" and p.shot == "zero"}
        if {"generation", "few_shot", "variability"} & set(self.measures):
            if not openings:
                raise RequestError("generation is asked for, but no term has a generation prompt; leave it out")
            if bare := next((p for p in prompts if p.task == "generation" and p.rubric is None), None):
                raise RequestError(
                    f"generation is asked for, but the term {bare.term!r} has no rubric, so its answers cannot be "
                    "scored; add `rubric` with keywords, or leave generation out of `measures`"
                )
        if "few_shot" in self.measures:
            _check_shots(prompts, set(openings))
        if "ablation" in self.measures:
            self._check_ablation(prompts)
        return prompts

    def _check_ablation(self, prompts: tuple[Prompt, ...]) -> None:
        spec = self._ablation()
        if not any(p.task == "recognition" for p in prompts):
            raise RequestError("ablation needs recognition questions; name terms that have some")
        if spec and spec.generation and not all(p.rubric for p in prompts if p.task == "generation"):
            raise RequestError("ablation with generation needs a rubric for every term with openings")

    def _prompts(self) -> Iterator[Prompt]:
        if self.prompts is not None:
            yield from read_jsonl(self.prompts)
            return
        terms = self.selected()
        yield from build(terms, self.format, self._order())
        if "few_shot" in self.measures:
            yield from few_shot(terms)
        frames = self.frames or "carriers"
        bare = tuple(term for term in terms if not term.questions and not term.openings)
        yield from carriers(terms if self.frames or self.controls else bare, frames)
        taken = {term.name: "the terms" for term in terms}
        for group, members in self.groups().items():
            for term in members:
                if (other := taken.setdefault(term.name, group)) != group:
                    raise RequestError(f"{term.name!r} is in {other} and in the control group {group!r}")
            yield from carriers(members, frames, group)

    def _order(self) -> Order:
        return self.order or ("given" if self.protocol == "published" else "rotated")

    def protocol_of(self, bos: Bos) -> Protocol:
        """The settings that change numbers.

        bos: the default of the suite
        """
        if self.prompts is not None:
            return Protocol(format=None, order=None, bos=self.bos or bos, ablation=self._ablation())
        return Protocol(format=self.format, order=self._order(), bos=self.bos or bos, ablation=self._ablation())

    def _ablation(self) -> Ablation | None:
        return self.ablation.resolved(self.protocol) if "ablation" in self.measures else None


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _select(names: Iterable[str], libraries: Sequence[Library]) -> tuple[Term, ...]:
    """The terms of sets, single terms and files, in the order given. Raises UnknownName, RequestError."""
    selected: dict[str, Term] = {}
    for name in names:
        if _is_file(name):
            part: Iterable[Term] = read(Path(name)).terms.values()
        else:
            home = next((lib for lib in reversed(libraries) if name in lib.sets or name in lib.terms), None)
            if home is None:
                raise UnknownName("term set", name, [n for lib in libraries for n in (*lib.sets, *lib.terms)])
            part = home.select(name)
        for term in part:
            if selected.setdefault(term.name, term) != term:
                raise RequestError(f"two different terms have the name {term.name!r}; rename one or select one only")
    return tuple(selected.values())


def _check_shots(prompts: Iterable[Prompt], openings: set[str]) -> None:
    """Check that each kind of exemplar occurs with every opening, and that the term's own exemplar occurs.

    Raises RequestError where it does not.
    """
    behind: dict[str, set[str]] = {}
    for p in prompts:
        if p.shot != "zero":
            behind.setdefault(p.shot, set()).add(p.shared)
    if "exemplar" not in behind:
        raise RequestError("few_shot is asked for, but no prompt has shot 'exemplar'; add them, or leave few_shot out")
    for shot, questions in behind.items():
        if odd := sorted(questions ^ openings):
            raise RequestError(
                f"few_shot: {odd[0]!r} has either an opening without a {shot!r} prompt or such a prompt without an "
                "opening; give both"
            )


def names() -> list[str]:
    """The names of the built-in experiments."""
    folder = resources.files("bindscope").joinpath("data/experiments")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load(name: str) -> Experiment:
    """Load an experiment.

    name: name of a built-in experiment, or path of a YAML file
    Raises UnknownName for a name that is not known, RequestError with file and line for a wrong file.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return _beside(YamlFile(path).parse(Experiment), path.parent)
    if name not in names():
        remedy = "(`bindscope run --help` describes each; the path of a .yaml file works too)"
        raise UnknownName("experiment", name, names(), remedy)
    with resources.as_file(resources.files("bindscope").joinpath(f"data/experiments/{name}.yaml")) as shipped:
        return YamlFile(shipped).parse(Experiment)


def changed(experiment: Experiment, protocol: str | None = None, suites: Sequence[str] = ()) -> Experiment:
    """The experiment with another protocol or other suites.

    experiment: the experiment
    protocol: the new protocol, None to keep it
    suites: the new suites, empty to keep them
    Raises RequestError where the experiment does not allow them.
    """
    new = {"protocol": protocol, "suites": tuple(suites)}
    try:
        return Experiment.model_validate(
            experiment.model_dump(exclude_unset=True) | {k: v for k, v in new.items() if v}
        )
    except ValidationError as error:
        raise RequestError(f"{experiment.name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def _beside(experiment: Experiment, base: Path) -> Experiment:
    """The experiment with paths relative to the folder of its file."""
    suites = tuple(
        str(base / name)
        if _is_file(name) or any((base / n).exists() for n in (name, name.rpartition("@")[0]) if n)
        else name
        for name in experiment.suites
    )
    terms, controls = (
        tuple(str(base / name) if _is_file(name) else name for name in named)
        for named in (experiment.terms, experiment.controls)
    )
    prompts = None if experiment.prompts is None else base / experiment.prompts
    claims, measures = (
        tuple(beside(base, name) for name in named) for named in (experiment.claims, experiment.measures)
    )
    placed = {
        "suites": suites,
        "terms": terms,
        "controls": controls,
        "prompts": prompts,
        "claims": claims,
        "measures": measures,
    }
    return experiment.model_copy(update={name: placed[name] for name in placed if name in experiment.model_fields_set})


def beside(base: Path, spec: str) -> str:
    """The name of an object, with its folder where that holds the module.

    base: the folder
    spec: module:name
    """
    if ":" not in spec or "/" in spec:
        return spec
    first = spec.partition(":")[0].partition(".")[0]
    here = any((base / name).exists() for name in (f"{first}.py", f"{first}/__init__.py"))
    return f"{base.resolve()}/{spec}" if here else spec
