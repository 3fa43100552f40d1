"""The hook against eager attention, the model's own logits, and edits made by another route."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

import models
from bindscope.engine.attention import Attention, during, hooked
from bindscope.engine.selfcheck import self_check
from bindscope.errors import UnsupportedArchitecture

TOLERANCE = 1e-5
T = 20


@pytest.fixture(scope="module", params=list(models.ARCHITECTURES))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return models.build(*models.ARCHITECTURES[request.param])


def _ids(batch: int, length: int = T) -> torch.Tensor:
    return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(1))


class Rows:
    """Looks at every layer: whole rows of all queries, and a band."""

    def __init__(self, width: int = 3) -> None:
        self.width = width
        self.rows: dict[int, torch.Tensor] = {}
        self.bands: dict[int, torch.Tensor] = {}

    def __call__(self, layer: int, attention: Attention) -> None:
        B, _, T, _ = attention.query.shape
        self.rows[layer] = attention.probabilities(torch.arange(T).expand(B, T))
        self.bands[layer] = attention.band(self.width)


@torch.inference_mode()
def _eager(model: PreTrainedModel, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    out = model(**inputs, output_attentions=True, use_cache=False)
    model.set_attn_implementation(before)
    return torch.stack(out.attentions), out.logits


@torch.inference_mode()
def _read(model: PreTrainedModel, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with hooked(model), during(seen := Rows()):
        logits = model(**inputs, use_cache=False).logits
    return torch.stack([seen.rows[i] for i in sorted(seen.rows)]), logits


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_rows_and_logits_equal_eager(model: PreTrainedModel, side: str) -> None:
    ids = _ids(3)
    mask = torch.ones_like(ids)
    for row, pad in enumerate((0, 4, 9)):
        if side == "left":
            mask[row, :pad] = 0
        elif side == "right" and pad:
            mask[row, -pad:] = 0
    inputs = {"input_ids": ids} if side == "none" else {"input_ids": ids, "attention_mask": mask}
    expected, expected_logits = _eager(model, **inputs)
    rows, logits = _read(model, **inputs)
    real = mask.bool()
    for b in range(3):
        torch.testing.assert_close(
            rows[:, b][:, :, real[b]], expected[:, b][:, :, real[b]].float(), atol=TOLERANCE, rtol=0
        )
    torch.testing.assert_close(logits[real], expected_logits[real], atol=TOLERANCE, rtol=TOLERANCE)


def test_a_row_does_not_depend_on_its_batch(model: PreTrainedModel) -> None:
    ids = _ids(4)
    together, _ = _read(model, input_ids=ids)
    for b in range(4):
        alone, _ = _read(model, input_ids=ids[b : b + 1])
        torch.testing.assert_close(together[:, b], alone[:, 0], atol=TOLERANCE, rtol=0)


def test_row_sums(model: PreTrainedModel) -> None:
    rows, _ = _read(model, input_ids=_ids(1))
    sums = rows.sum(-1)
    if model.config.model_type == "gpt_oss":  # a learned sink outside the sequence takes the rest
        assert (sums < 1).all()
        assert (sums > 0).all()
    else:
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=TOLERANCE, rtol=0)


def test_implementation_is_put_back(model: PreTrainedModel) -> None:
    before = model.config._attn_implementation

    def fail_inside() -> None:
        with hooked(model):
            assert model.config._attn_implementation != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert model.config._attn_implementation == before


def test_self_check_passes(model: PreTrainedModel) -> None:
    check = self_check(model)
    assert check.rows < TOLERANCE
    assert check.logits < TOLERANCE
    assert check.edit > 1e-3
    assert check.packed


@pytest.mark.parametrize("way", ["kernel", "norms", "softmax"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_band_is_what_whole_rows_have(model: PreTrainedModel, masked: bool, way: str) -> None:
    """From the norms that the kernel leaves, from norms of our own, and from the plain softmax of short texts; NaN
    where a key would be before the start."""
    ids, mask = _ids(2), torch.ones(2, T, dtype=torch.long)
    mask[1, -5:] = 0
    looked: list[str] = []

    def look(layer: int, attention: Attention) -> None:
        looked.append("softmax" if attention.weights is not None else "norms" if attention.norms is None else "kernel")
        band = attention.band(T + 2)  # wider than the text
        attention.weights = None
        whole = attention.probabilities(torch.arange(T).expand(2, T))
        if way == "norms":
            attention.norms = None
            band = attention.band(T + 2)
        real = mask.bool()
        torch.testing.assert_close(band[..., 0].mT[real], whole[..., 0].mT[real], atol=TOLERANCE, rtol=0)
        for d in range(1, T + 3):
            assert band[:, :, :d, d].isnan().all()
            if d < T:
                found, expected = band[:, :, d:, d].mT[real[:, d:]], whole.diagonal(-d, 2, 3).mT[real[:, d:]]
                torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)

    with torch.inference_mode(), hooked(model), during(look, explicit_tokens=T if way == "softmax" else 0):
        model(ids, **({"attention_mask": mask} if masked else {}), use_cache=False)
    special = getattr(model.config, "attn_logit_softcapping", None) or model.config.model_type == "gpt_oss"
    expected = "softmax" if special or way == "softmax" else "kernel"
    assert looked == [expected] * model.config.num_hidden_layers


def test_short_texts_give_the_same_logits(model: PreTrainedModel) -> None:
    """Of the kernel and of the plain softmax, also with padding on the left, whose rows see nothing."""
    ids, mask = _ids(2), torch.ones(2, T, dtype=torch.long)
    mask[1, :3] = 0
    found = []
    with torch.inference_mode(), hooked(model):
        for tokens in (0, T):
            with during(lambda layer, attention: None, explicit_tokens=tokens):
                found.append(model(ids, attention_mask=mask, use_cache=False).logits[mask.bool()])
    assert found[0].isfinite().all()
    torch.testing.assert_close(*found, atol=TOLERANCE, rtol=0)


def test_few_rows_are_the_same_rows(model: PreTrainedModel) -> None:
    """Reading some queries, and only the keys that they may see, gives the numbers of reading all."""
    ids = _ids(2)
    full, _ = _read(model, input_ids=ids)
    queries = torch.tensor([[5, 9, 9], [3, 0, 8]])
    looked: list[int] = []

    def look(layer: int, attention: Attention) -> None:
        looked.append(layer)
        rows = attention.probabilities(queries, 10)
        for b in range(2):
            torch.testing.assert_close(rows[b], full[layer, b][:, queries[b], :10], atol=1e-6, rtol=0)

    with torch.inference_mode(), hooked(model), during(look):
        model(ids, use_cache=False)
    assert looked == list(range(model.config.num_hidden_layers))


def test_an_overflow_is_not_a_number(model: PreTrainedModel) -> None:
    """Scores beyond what floats hold leave NaN, never zero."""
    looked: list[int] = []

    def look(layer: int, attention: Attention) -> None:
        looked.append(layer)
        attention.weights, attention.norms = None, torch.full(attention.query.shape[:3], torch.inf)
        assert attention.band(1)[..., 0].isnan().all()

    with torch.inference_mode(), hooked(model), during(look):
        model(_ids(1), use_cache=False)
    assert looked == list(range(model.config.num_hidden_layers))


@pytest.mark.parametrize("name", list(models.REFUSED))
def test_refused_by_name(name: str) -> None:
    kind, config, reason = models.REFUSED[name]
    model = models.build(kind, config)
    with pytest.raises(UnsupportedArchitecture) as caught:
        self_check(model)
    assert type(model).__name__ in str(caught.value)
    assert reason in str(caught.value)


def _silence(layer: int, head: int):
    def edit(at: int, z: torch.Tensor) -> torch.Tensor:
        if at == layer:
            z = z.clone()
            z[:, :, head] = 0
        return z

    return edit


@pytest.mark.parametrize(
    ("name", "projection"),
    [
        ("gpt_neox", "gpt_neox.layers.1.attention.dense"),
        ("llama", "model.layers.1.self_attn.o_proj"),
        ("qwen2", "model.layers.1.self_attn.o_proj"),
        ("olmo", "model.layers.1.self_attn.o_proj"),
        ("smollm3", "model.layers.1.self_attn.o_proj"),
        ("mixtral", "model.layers.1.self_attn.o_proj"),
        ("gemma2-softcap", "model.layers.1.self_attn.o_proj"),
        ("gpt2", "transformer.h.1.attn.c_proj"),
    ],
)
def test_silencing_a_head_equals_zeroing_its_columns(name: str, projection: str) -> None:
    """An edit at the hook is an edit of a head: the independent route zeroes the output projection's input columns."""
    model = models.build(*models.ARCHITECTURES[name])
    ids, head = _ids(2), 4
    with torch.inference_mode(), hooked(model), during(edit=_silence(1, head)):
        edited = model(ids, use_cache=False).logits
    plain = model(ids, use_cache=False).logits.detach()
    weight = model.get_submodule(projection).weight
    inputs = weight.shape[0] if name == "gpt2" else weight.shape[1]  # GPT-2's Conv1D is transposed
    d = inputs // model.config.num_attention_heads
    with torch.no_grad():
        if name == "gpt2":
            weight[head * d : (head + 1) * d] = 0
        else:
            weight[:, head * d : (head + 1) * d] = 0
        expected = model(ids, use_cache=False).logits
    torch.testing.assert_close(edited, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert (plain - expected).abs().max() > 1e-3


def test_inverse_layer_scaling_is_honoured() -> None:
    """The same weights with and without the flag must differ: a loader that drops it reads another model."""
    kind, config = models.ARCHITECTURES["gpt2-inverse-layer"]
    scaled, plain = models.build(kind, config), models.build("gpt2", models.ARCHITECTURES["gpt2"][1])
    plain.load_state_dict(scaled.state_dict())
    rows, _ = _read(scaled, input_ids=_ids(1))
    other, _ = _read(plain, input_ids=_ids(1))
    assert (rows[0] - other[0]).abs().max() < TOLERANCE  # layer 0 is divided by 1
    assert (rows[1:] - other[1:]).abs().max() > 1e-2
