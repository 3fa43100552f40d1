"""Run facts: what was measured and how, what failed, what is left out, and how to do it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from bindscope.charts.text import line
from bindscope.store import RunFile, Store, Unit

_ORDERS = {"rotated": "rotated", "spread": "once each, gold in changing places", "given": "once each, gold as given"}
#: Of an experiment on terms; a prompt file has its own.
_OF_TERMS = ("format", "order", "protocol", "controls", "frames")


def facts(store: Store, run: RunFile) -> dict[str, Any]:
    """facts: pairs of name and value; checkpoints: name, commit, fingerprints, flags and self-check of each that is
    measured; flagged: whether any has flags."""
    done = [u for u in run.units if u.status == "done"]
    shards = [store.provenance(u.checkpoint, *next(iter(u.keys.items()))) for u in done if u.keys]
    pairs = [("Units", f"{len(done)} of {len(run.units)} measured"), *_how(run, shards)]
    pairs.append(("Seconds of measuring", f"{sum(p['seconds'] for p in shards):.0f}"))
    pairs += [("Note", note) for note in dict.fromkeys(note for p in shards for note in p["notes"][1:])]
    pairs += [("Left out", line(note)) for note in run.notes]
    pairs += [("Left out", line(f"{_name(u)}: {reason}")) for u in done for reason in u.lacking.values()]
    if others := store.unused():
        pairs.append(("Not shown", f"{others} shards in the folder belong to another experiment or protocol"))
    rows = [
        {
            "name": _name(unit),
            "commit": p["identity"]["commit"] or "local",
            "fingerprint": p["identity"]["fingerprint"][:16],
            "check": p["notes"][0].removeprefix("self-check: ") if p["notes"] else "not recorded",
        }
        | {"weights": (unit.weights or "not known")[:16], "flags": "; ".join(unit.flags)}
        for unit, p in zip(done, shards, strict=True)
    ]
    return {"facts": pairs, "checkpoints": rows, "flagged": any(unit.flags for unit in done)}


def _name(unit: Unit) -> str:
    return f"{unit.checkpoint.suite}, {unit.checkpoint.label}"


def missing(run: RunFile) -> list[str]:
    """Checkpoints that are not measured yet or failed."""
    return [_name(unit) for unit in run.units if unit.status != "done"]


def failed(run: RunFile) -> list[dict[str, str]]:
    """Checkpoints that failed, with their reasons."""
    return [{"name": _name(unit), "reason": unit.reason or ""} for unit in run.units if unit.status == "failed"]


def experiment_file(run: RunFile) -> str:
    """The experiment as a file that runs again: what is not set is left out, paths are made absolute."""
    asked = {name: value for name, value in run.experiment.items() if value not in (None, [], "", {})}
    if "prompts" in asked:
        asked = {name: value for name, value in asked.items() if name not in _OF_TERMS}
        asked["prompts"] = _placed(str(asked["prompts"]))
    for name in ("suites", "terms", "controls"):
        if name in asked:
            asked[name] = [_placed(str(value)) for value in asked[name]]
    if isinstance(asked.get("ablation"), dict):
        asked["ablation"] = {k: v for k, v in asked["ablation"].items() if v not in (None, [])}
    return yaml.safe_dump(asked, sort_keys=False, allow_unicode=True)


def _placed(name: str) -> str:
    path = Path(name)
    return str(path.resolve()) if "/" in name and path.exists() else name


def _format(protocol: dict[str, Any]) -> str:
    if protocol["format"] is None:
        return "as in the prompt file"
    if protocol["format"] == "cloze":
        return "cloze: no options are shown"
    return f"listed, options {_ORDERS[protocol['order']]}"


def how(provenance: dict[str, Any]) -> dict[str, str]:
    """How one shard was made, in words: what two checkpoints or runs can differ in."""
    source = f"commit {provenance['git_commit']}" if provenance["git_commit"] else "an installed release"
    return {
        "Format": _format(provenance["protocol"]),
        "BOS token": provenance["bos"],
        "Computed": f"{provenance['dtype']} on {provenance['device']}, {provenance['attention']}",
        "Versions": ", ".join(f"{k} {v}" for k, v in provenance["versions"].items()),
        "bindscope source": source + (", changed since" if provenance["git_dirty"] else ""),
    }


def _how(run: RunFile, shards: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """How the numbers were made. Where checkpoints were made in different ways, each way is listed with its suites."""
    per: dict[str, dict[str, list[str]]] = {}
    for p in shards:
        for name, value in how(p).items():
            per.setdefault(name, {}).setdefault(value, []).append(p["checkpoint"]["suite"])
    shown = [("Terms and prompts", ", ".join(run.experiment.get("terms") or []) or str(run.experiment.get("prompts")))]
    shown.append(("Measures", ", ".join(run.experiment.get("measures") or [])))
    if run.experiment.get("controls"):
        shown.append(("Control groups", ", ".join(run.experiment["controls"])))
    for name, values in per.items():
        if len(values) == 1:
            shown += [(name, value) for value in values]
        else:
            shown += [
                (f"{name}: differs", f"{value} ({len(who)} checkpoints of {', '.join(dict.fromkeys(who))})")
                for value, who in values.items()
            ]
    return [(name, line(value)) for name, value in shown]
