"""The result of `bs.measure`: a table of terms, a table of heads, a figure."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bindscope.errors import PromptError
from bindscope.records import Bos, CheckpointRef

if TYPE_CHECKING:
    from bindscope.charts.figure import Figure
    from bindscope.quick import TermResult

_COLUMNS = (
    "term",
    "tokens",
    "k",
    "prompts",
    "eb_star",
    "eb_star_mass",
    "null_mean",
    "null_n",
    "excess",
    "percentile",
    "best_layer",
    "reason",
)
_REAL = ("eb_star", "eb_star_mass", "null_mean", "excess", "percentile")
#: Columns that the short form shows -> their names there.
_SHOWN = {
    "term": "term",
    "k": "k",
    "eb_star": "EB*",
    "eb_star_mass": "EB*_mass",
    "null_mean": "null",
    "excess": "excess",
    "percentile": "percentile",
    "prompts": "prompts",
    "reason": "reason",
}


@dataclass(frozen=True)
class Measured:
    """The result of `measure`. A notebook shows it as a table; `frame` and `heads` are data frames, `figure` a map.

    checkpoint: what was measured; a model that was not loaded from a checkpoint has the name of its class
    dtype, device: of the weights
    bos: whether a beginning-of-text token was put in front of the prompts
    terms: the numbers of each term
    """

    checkpoint: CheckpointRef
    dtype: str
    device: str
    bos: Bos
    terms: tuple[TermResult, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """A row per term: means over its prompts. A further measure has a column of its name and one for its excess.

        term: the term
        tokens: its tokens
        k: number of tokens
        prompts: number of prompts with a value
        eb_star: EB* = max over layers of (largest - mean BSI over heads), in [0, 1]; BSI is the mean of A[s_i, s_j],
            i > j, inside the term (Tran 2026)
        eb_star_mass: EB* from summed attention, which does not fall with k
        null_mean: mean EB* of windows of k tokens without the term
        null_n: number of these windows
        excess: eb_star less null_mean
        percentile: rank of eb_star among the windows, in (0, 1]
        best_layer: layer with the largest difference, from 0
        reason: why a value is missing (NaN), None where no value is
        """
        rows = [[getattr(term, column) for column in _COLUMNS] for term in self.terms]
        frame = pd.DataFrame(rows, columns=list(_COLUMNS))
        kinds: dict[Any, Any] = dict.fromkeys(("k", "best_layer"), "Int64")
        frame = frame.astype(kinds | dict.fromkeys(_REAL, "float64"))
        for name in dict.fromkeys(name for term in self.terms for name in term.further):
            values = [term.further.get(name) for term in self.terms]
            frame[name] = [np.nan if v is None or v.value is None else v.value for v in values]
            frame[f"{name}_excess"] = [np.nan if v is None or v.excess is None else v.excess for v in values]
        return frame

    @property
    def heads(self) -> pd.DataFrame:
        """A row per term and head; terms without a value have no rows.

        term: the term
        layer, head: from 0
        bsi: BSI, mean over the term's prompts, in [0, 1]
        null_bsi: mean BSI of the same head over windows of k tokens without the term
        excess: bsi less null_bsi, NaN where there is no null
        previous_token_score: mean attention to the previous token on neutral text
        rank, previous_token_rank: rank of bsi and of that score, 1 for the highest of the model
        """
        parts = []
        for term in (term for term in self.terms if term.k is not None):
            part = pd.DataFrame([vars(head) for head in term.heads])
            part["term"], part["rank"] = term.term, range(1, len(part) + 1)
            null = np.array(term.null_bsi) if term.null_bsi else np.full(np.shape(term.bsi), np.nan)
            part["null_bsi"] = null[part["layer"], part["head"]]
            part["excess"] = part["bsi"] - part["null_bsi"]
            parts.append(part.sort_values(["layer", "head"]))
        columns = ["term", "layer", "head", "bsi", "null_bsi", "excess", "previous_token_score", "rank"]
        columns.append("previous_token_rank")
        return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)

    @property
    def figure(self) -> Figure:
        """A map of all heads: BSI, excess over windows, previous-token score; means over the terms with a value.

        A notebook shows it; `.chart` is the Altair chart and `.text` describes it. Raises PromptError where no term has
        a value.
        """
        from bindscope.charts.head_map import head_map

        table = self.heads
        if table.empty:
            raise PromptError(f"there is nothing to draw, since no term has a value (first: {self.terms[0].reason})")
        mean = table.drop(columns=["term", "rank"]).groupby(["layer", "head"], as_index=False).mean()
        mean["rank"] = mean["bsi"].rank(ascending=False, method="first").astype(int)
        return head_map(mean.assign(**self.checkpoint.columns))

    def __repr__(self) -> str:
        return f"{self._about()}\n{self._short().to_string(index=False, na_rep='-', float_format='{:.3f}'.format)}"

    def _repr_html_(self) -> str:
        table = self._short().to_html(index=False, na_rep="-", float_format="{:.3f}".format, border=0)
        return f"<p>{escape(self._about())}</p>{table}"

    def _about(self) -> str:
        ref = self.checkpoint
        return f"{ref.suite}, {ref.label}: {self.dtype} on {self.device}, BOS {self.bos}"

    def _short(self) -> pd.DataFrame:
        table = self.frame[list(_SHOWN)].rename(columns=_SHOWN)
        return table.drop(columns="reason") if table["reason"].isna().all() else table
