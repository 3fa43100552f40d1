"""What to measure: a few lines of YAML, by built-in name or by path."""

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

#: module:name, with the module's folder in front where it lies beside the experiment's file.
_OBJECT = re.compile(r"(?:.*/)?[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_TRUST = re.compile(r"I have read the code of (\S+) and trust it\.?")
#: The study's own ablation: 4 heads, 5 random sets of the whole model, ranked on the prompts that are evaluated.
_PUBLISHED: dict[str, Any] = {
    "modes": ("published",),
    "random": 5,
    "scope": "model",
    "held_out": False,
    "generation": True,
}


class Heads(BaseModel):
    """The section `ablation` of a study file; see `records.Ablation`."""

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
        """Text, since YAML takes 4.10 for the number 4.1; or pairs of numbers, as a stored study has them."""
        heads = []
        for head in value if isinstance(value, list | tuple) else [value]:
            if isinstance(head, str) and re.fullmatch(r"\d+\.\d+", head):
                heads.append(tuple(map(int, head.split("."))))
            elif isinstance(head, list | tuple) and len(head) == 2 and all(type(n) is int and n >= 0 for n in head):
                heads.append(tuple(head))
            else:
                raise ValueError(f'heads are a list of layer.head in quotes, such as ["4.2", "16.0"], got {head!r}')
        if len(set(heads)) < len(heads):
            raise ValueError(f"a head is named twice in {value}")
        return heads

    @model_validator(mode="after")
    def _named(self) -> Heads:
        if self.rankings is not None and ("named" in self.rankings) != bool(self.heads):
            raise ValueError("the ranking named and the list `heads` go together")
        return self

    @field_validator("sweep")
    @classmethod
    def _sizes(cls, value: tuple[int | str, ...]) -> tuple[int | str, ...]:
        for size in value:
            if isinstance(size, str) and not re.fullmatch(r"\d+(\.\d+)?%", size):
                raise ValueError(f"a size is a number or a share such as 2.8%, got {size!r}")
        return value

    def resolved(self, protocol: str) -> Ablation:
        """With the protocol's own choices where the file makes none. Raises RequestError where p cannot reach alpha."""
        asked: dict[str, Any] = {name: value for name, value in self.model_dump().items() if value is not None}
        if self.heads and self.rankings is None:
            asked["rankings"] = ("named",)
        spec = replace(Ablation(), **((_PUBLISHED if protocol == "published" else {}) | asked))
        if protocol == "controlled" and spec.random < spec.least_random:
            raise RequestError(
                f"ablation: {spec.random} random sets cannot give p below {1 / (spec.random + 1):.3f}, and alpha is "
                f"{spec.alpha}; random: {spec.least_random} at least"
            )
        return spec


class Experiment(BaseModel):
    """A study file, checked.

    suites: catalogue names, local folders, hub ids or YAML files of suites; `name@15000,143000` takes some checkpoints
    of one. terms: sets or single terms of the library, or YAML files of
    terms; or prompts: a JSONL file in the published format. measures: binding and recognition always; generation,
    few_shot, variability and ablation on request. controls: control groups (sets of expressions, files of them; "all"
    for the ten that ship), measured in the same carrier sentences as the terms. frames: the list of carrier sentences.
    remote_code: repositories whose Python code may be run, in words: `I have read the code of ORG/NAME and trust it`.
    protocol: "controlled" rotates the options of a question; "published" asks each question once, with the answer in
    the place that the file gives it. format, order: override the protocol's. ablation: which heads are taken out, how,
    and against how many random sets. claims: claims of one's own, as module:name; the module may lie beside the study
    file. bos: None takes each suite's own. dtype: "auto", "float32", "bfloat16", "float16".
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
            raise ValueError(f"a claim is named module:name, such as mine:CLAIM, got {odd!r}")
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
            raise ValueError(f"a prompt file has its own {', '.join(sorted(asked))}; leave it out beside `prompts`")
        return self

    def _libraries(self) -> list[Library]:
        """The shipped library, then the term files that the study names. A set belongs to one of them."""
        found = [library()]
        for name in dict.fromkeys((*self.terms, *self.controls)):
            if _is_file(name):
                new = read(Path(name))
                if taken := [s for s in new.sets if any(s in other.sets for other in found)]:
                    raise RequestError(f"{name}: there is a set called {taken[0]!r} already; rename it")
                found.append(new)
        return found

    def selected(self) -> tuple[Term, ...]:
        """The terms that the study names. Raises RequestError where two different terms have one name."""
        return _select(self.terms, self._libraries())

    def groups(self) -> dict[str, tuple[Term, ...]]:
        """The control groups. A file is one group by its own name, or, where it has sets, a group for each."""
        libraries, out = self._libraries(), dict[str, tuple[Term, ...]]()
        for name in self.controls:
            if _is_file(name):
                whole, *sets = read(Path(name)).sets
                out |= {group: _select((group,), libraries) for group in sets or [whole]}
            else:
                out[name] = _select((name,), libraries)
        return out

    def build_prompts(self) -> tuple[Prompt, ...]:
        """Its prompts, from terms or from its file.

        Raises RequestError where there are none, or none for a measure that is asked for, and where generation is asked
        for and a term has no rubric.
        """
        prompts = tuple(self._prompts())
        check_unique(prompts)
        if not prompts:
            raise RequestError("the study has no prompts; name terms that have questions, openings or a name to carry")
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
        """The choices that change numbers, for a suite whose own BOS choice is `bos`."""
        if self.prompts is not None:
            return Protocol(format=None, order=None, bos=self.bos or bos, ablation=self._ablation())
        return Protocol(format=self.format, order=self._order(), bos=self.bos or bos, ablation=self._ablation())

    def _ablation(self) -> Ablation | None:
        return self.ablation.resolved(self.protocol) if "ablation" in self.measures else None


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _select(names: Iterable[str], libraries: Sequence[Library]) -> tuple[Term, ...]:
    """Terms by set, term or file name, in the order given."""
    found: dict[str, Term] = {}
    for name in names:
        if _is_file(name):
            part: Iterable[Term] = read(Path(name)).terms.values()
        else:
            home = next((lib for lib in reversed(libraries) if name in lib.sets or name in lib.terms), None)
            if home is None:
                raise UnknownName("term set", name, [n for lib in libraries for n in (*lib.sets, *lib.terms)])
            part = home.select(name)
        for term in part:
            if found.setdefault(term.name, term) != term:
                raise RequestError(f"two different terms are called {term.name!r}; rename one or select one only")
    return tuple(found.values())


def _check_shots(prompts: Iterable[Prompt], openings: set[str]) -> None:
    """Every kind of exemplar that occurs stands before every opening, and the term's own occurs."""
    behind: dict[str, set[str]] = {}
    for p in prompts:
        if p.shot != "zero":
            behind.setdefault(p.shot, set()).add(p.shared)
    if "exemplar" not in behind:
        raise RequestError("few_shot is asked for, but no prompt has shot 'exemplar'; add them, or leave few_shot out")
    for shot, questions in behind.items():
        if odd := sorted(questions ^ openings):
            raise RequestError(f"few_shot: the opening {odd[0]!r} and its {shot!r} prompt do not come in a pair")


def names() -> list[str]:
    """Built-in studies."""
    folder = resources.files("bindscope").joinpath("data/experiments")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load(name: str) -> Experiment:
    """A built-in study by name, or a YAML file by path. Raises UnknownName, or RequestError naming file and line."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return _beside(YamlFile(path).parse(Experiment), path.parent)
    if name not in names():
        remedy = "(`bindscope run --help` says what each is; the path of a .yaml file will do too)"
        raise UnknownName("experiment", name, names(), remedy)
    with resources.as_file(resources.files("bindscope").joinpath(f"data/experiments/{name}.yaml")) as shipped:
        return YamlFile(shipped).parse(Experiment)


def changed(experiment: Experiment, protocol: str | None = None, suites: Sequence[str] = ()) -> Experiment:
    """The study in another protocol or on other suites. Raises RequestError where that does not fit it."""
    asked = {"protocol": protocol, "suites": tuple(suites)}
    try:
        return Experiment.model_validate(
            experiment.model_dump(exclude_unset=True) | {k: v for k, v in asked.items() if v}
        )
    except ValidationError as error:
        raise RequestError(f"{experiment.name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def _beside(experiment: Experiment, base: Path) -> Experiment:
    """Paths are the study file's: suites, term files and prompt files are looked for beside it."""
    suites = tuple(
        str(base / name)
        if _is_file(name) or any((base / n).exists() for n in (name, name.rpartition("@")[0]) if n)
        else name
        for name in experiment.suites
    )
    terms, controls = (
        tuple(str(base / name) if _is_file(name) else name for name in found)
        for found in (experiment.terms, experiment.controls)
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
    """module:name, with the folder in front where the module is a file or package in it."""
    if ":" not in spec or "/" in spec:
        return spec
    first = spec.partition(":")[0].partition(".")[0]
    here = any((base / name).exists() for name in (f"{first}.py", f"{first}/__init__.py"))
    return f"{base.resolve()}/{spec}" if here else spec
