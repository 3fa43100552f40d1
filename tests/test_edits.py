"""Head edits against independent routes: output projections, masks, transplanted outputs, a hand-written forward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import models
from bindscope.engine import conditions
from bindscope.engine.attention import during, hooked
from bindscope.engine.capture import TextInput
from bindscope.engine.conditions import EditValues, decoding, neutral_means, outputs_of, run
from bindscope.engine.edits import Spans, bins, knocking_out, mask, value_biases
from bindscope.engine.generate import complete
from bindscope.engine.trunk import layers
from bindscope.errors import RequestError
from bindscope.records import Mode, Sampling

TOLERANCE = 1e-5
ROWS = [
    TextInput((3, 4, 5, 6, 7), ((8, 9), (10,), (11, 12, 13))),
    TextInput((20, 21, 22), ((23, 24),)),
    TextInput(tuple(range(30, 42))),
]
SCORED = ROWS[:2]
CONDITIONS = [(), ((1, 2),), ((0, 0), (2, 5)), ((2, 1), (2, 3)), ((1, 0), (1, 1))]
DONORS = [tuple(range(40, 52)), tuple(range(50, 60))]
SPANS = [(1, 2, 3), (0, 1)]
#: The architectures of the study and of the issue's list.
NAMES = ("gpt2", "gpt2-inverse-layer", "gpt_neox", "olmo", "smollm3", "qwen2", "llama", "mixtral", "gemma2-softcap")


def _material(model: PreTrainedModel) -> EditValues:
    with hooked(model):
        means, last = neutral_means(model, [tuple(range(3, 60)), tuple(range(60, 5, -1))])
        return EditValues(means, last, DONORS, SPANS, value_biases(model))


def _projection(model: PreTrainedModel, layer: int) -> torch.nn.Module:
    attention = next(m for m in layers(model)[layer].modules() if getattr(m, "layer_idx", None) == layer)
    for name in ("o_proj", "dense", "c_proj", "out_proj"):
        if hasattr(attention, name):
            return getattr(attention, name)  # type: ignore[no-any-return]
    raise AssertionError(f"no output projection in {attention}")


def _without_columns(model: PreTrainedModel, heads: Any) -> Any:
    """log P with the heads' columns of the output projection set to zero, and the weights put back."""
    saved = {}
    for layer, head in heads:
        module = _projection(model, layer)
        weight = module.weight
        saved.setdefault(layer, weight.detach().clone())
        d = (weight.shape[0] if type(module).__name__ == "Conv1D" else weight.shape[1]) // 6
        with torch.no_grad():
            if type(module).__name__ == "Conv1D":  # weight is (in, out)
                weight[head * d : (head + 1) * d] = 0
            else:
                weight[:, head * d : (head + 1) * d] = 0
    try:
        return [[_plain(model, row.ids, c) for c in row.continuations] for row in SCORED]
    finally:
        with torch.no_grad():
            for layer, weight in saved.items():
                _projection(model, layer).weight.copy_(weight)


@torch.inference_mode()
def _plain(model: PreTrainedModel, ids: tuple[int, ...], tokens: tuple[int, ...], **more: Any) -> np.ndarray:
    """log P of one continuation from one unpacked forward pass of the model as it is."""
    logits = model(torch.tensor([[*ids, *tokens]]), use_cache=False, **more).logits[0].double().log_softmax(-1)
    return np.array([float(logits[len(ids) - 1 + i, token]) for i, token in enumerate(tokens)])


def _close(found: Any, expected: Any) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_zeroed_heads_are_zeroed_columns_of_the_output_projection(name: str) -> None:
    model = models.build(*models.ARCHITECTURES[name])
    with hooked(model):
        found = run(model, SCORED, CONDITIONS, "zero", EditValues())
    for heads, logs in zip(CONDITIONS, found, strict=True):
        _close(logs, _without_columns(model, heads))
    for logs in found[1:]:
        assert max(abs(a - b).max() for x, y in zip(logs, found[0], strict=True) for a, b in zip(x, y, strict=True)) > 0


@pytest.mark.parametrize("mode", ["zero", "mean", "resample", "published", "knockout"])
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_sharing_the_layers_below_changes_nothing(name: str, mode: Mode) -> None:
    model = models.build(*models.ARCHITECTURES[name])
    material = _material(model)
    with hooked(model):
        shared = run(model, SCORED, CONDITIONS, mode, material)
        whole = run(model, SCORED, CONDITIONS, mode, material, share=False)
        alone = [run(model, SCORED, [c], mode, material, share=False)[0] for c in CONDITIONS]
    for a, b, c in zip(shared, whole, alone, strict=True):
        _close(a, b)
        _close(a, c)


@pytest.mark.parametrize("name", NAMES)
def test_replaced_outputs_are_what_was_asked_for(name: str) -> None:
    """mean, resample and published against a plain forward pass whose projection input is overwritten by hand."""
    model = models.build(*models.ARCHITECTURES[name])
    material = _material(model)
    layer, head = 1, 2
    with hooked(model):
        donors = [outputs_of(model, [donor], {layer})[layer][0, :, head] for donor in DONORS]
        found = {m: run(model, SCORED, [((layer, head),)], m, material)[0] for m in ("mean", "resample", "published")}
    assert material.means is not None
    assert material.biases is not None
    d = material.biases[layer].shape[1]

    def overwritten(row: TextInput, tokens: tuple[int, ...], values: torch.Tensor) -> np.ndarray:
        def hook(_module: Any, args: Any) -> Any:
            z = args[0].clone()
            z[:, :, head * d : (head + 1) * d] = values
            return (z, *args[1:])

        handle = _projection(model, layer).register_forward_pre_hook(hook)
        try:
            return _plain(model, row.ids, tokens)
        finally:
            handle.remove()

    for i, row in enumerate(SCORED):
        for c, tokens in enumerate(row.continuations):
            n = len(row.ids) + len(tokens)
            places = bins(torch.arange(n), material.last)
            for mode, values in (
                ("mean", material.means[layer][places, head]),
                ("resample", donors[i][:n]),
                ("published", material.biases[layer][head].expand(n, d)),
            ):
                np.testing.assert_allclose(found[mode][i][c], overwritten(row, tokens, values), atol=TOLERANCE)


def test_value_biases_are_those_of_the_weights() -> None:
    neox = models.build(*models.ARCHITECTURES["gpt_neox"])
    gpt2 = models.build(*models.ARCHITECTURES["gpt2"])
    qwen = models.build(*models.ARCHITECTURES["qwen2"])
    llama = models.build(*models.ARCHITECTURES["llama"])
    with torch.no_grad():
        for model in (neox, gpt2, qwen):
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    for model in (neox, gpt2, qwen, llama):
        with hooked(model):
            found = value_biases(model)
        for i, layer in enumerate(layers(model)):
            if model is neox:
                expected = layer.attention.query_key_value.bias.view(6, 3, 8)[:, 2]
            elif model is gpt2:
                expected = layer.attn.c_attn.bias.view(3, 6, 8)[2]
            elif model is qwen:
                expected = layer.self_attn.v_proj.bias.view(2, 8).repeat_interleave(3, 0)
            else:
                expected = torch.zeros(6, 8)
            torch.testing.assert_close(found[i], expected.detach(), atol=1e-6, rtol=0)


def test_knockout_is_a_mask_inside_the_term() -> None:
    """In a model of one layer, cutting edges is a mask of minus infinity for those heads under eager attention."""
    kind, config = models.ARCHITECTURES["llama"]
    model = models.build(kind, config | {"num_hidden_layers": 1})
    heads = ((0, 1), (0, 4))
    with hooked(model):
        (found,) = run(model, SCORED, [heads], "knockout", EditValues(spans=SPANS))
    model.set_attn_implementation("eager")
    for row, span, logs in zip(SCORED, SPANS, found, strict=True):
        for tokens, mine in zip(row.continuations, logs, strict=True):
            n = len(row.ids) + len(tokens)
            mask = torch.full((n, n), -torch.inf).triu(1).repeat(1, 6, 1, 1)
            for _, head in heads:
                for i in range(1, len(span)):
                    for j in range(i):
                        mask[0, head, span[i], span[j]] = -torch.inf
            np.testing.assert_allclose(mine, _plain(model, row.ids, tokens, attention_mask=mask), atol=TOLERANCE)


TEXTS = [(3, 4, 5, 6, 7), (20, 21, 22, 23, 24), (9, 8, 7)]  # the first two are decoded in one batch
WRITTEN = 4
FAR = [tuple(range(40, 40 + n)) for n in (8, 12, 6)]
TERMS = [(1, 2, 3), (0, 1), ()]


@torch.inference_mode()
def _step_by_step(model: PreTrainedModel, text: int, heads: Any, mode: Mode, material: EditValues) -> tuple[int, ...]:
    """Greedy tokens from a full forward pass for each, without cache, with what replaces the heads laid out by hand."""
    ids = list(TEXTS[text])
    for _ in range(WRITTEN):
        T = len(ids)
        if mode == "knockout":
            tokens = torch.tensor([TERMS[text]], dtype=torch.long)
            edit, rewire = None, knocking_out(mask([heads], 1, 6, model.device), Spans(tokens))
        else:
            donor = outputs_of(model, [FAR[text]], {0, 1, 2})
            places = bins(torch.arange(T), material.last)

            def edit(layer: int, z: torch.Tensor, T: int = T, donor: Any = donor, places: Any = places) -> torch.Tensor:
                z = z.clone()
                for at, head in heads:
                    if at == layer:
                        z[:, :, head] = {
                            "zero": torch.zeros(()),
                            "published": material.biases[layer][head],
                            "mean": material.means[layer][places, head],
                            "resample": donor[layer][0, :T, head],
                        }[mode]
                return z

            rewire = None
        with during(edit=edit, rewire=rewire):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(TEXTS[text]) :])


@pytest.mark.parametrize("name", [*NAMES, "gpt_oss-sinks"])
def test_texts_are_continued_under_every_edit(name: str) -> None:
    model = models.build(*models.ARCHITECTURES[name])
    heads, found = ((0, 1), (0, 3), (1, 2), (2, 5)), {}
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    material = replace(_material(model), donors=FAR, spans=TERMS)
    with hooked(model):
        for mode in ("zero", "mean", "resample", "published", "knockout"):

            def under(batch: Any, mode: Any = mode) -> Any:
                edit, rewire = decoding(model, heads, mode, material, batch)
                return during(edit=edit, rewire=rewire)

            found[mode] = [w.ids for w in complete(model, TEXTS, [WRITTEN] * 3, [Sampling()] * 3, batch_context=under)]
            assert found[mode] == [_step_by_step(model, i, heads, mode, material) for i in range(3)]
        plain = [w.ids for w in complete(model, TEXTS, [WRITTEN] * 3, [Sampling()] * 3)]
    assert found["knockout"][2] == plain[2]  # it has no term
    assert all(texts != plain for mode, texts in found.items() if mode != "knockout")


@pytest.mark.parametrize("head", [(3, 0), (0, 6), (-1, 0), (0, -1)])
def test_a_head_that_is_not_there(head: tuple[int, int]) -> None:
    model = models.build(*models.ARCHITECTURES["llama"])
    with hooked(model), pytest.raises(RequestError, match=r"no head .*: layers go from 0 to 2, heads from 0 to 5"):
        run(model, SCORED, [((1, 1),), (head,)], "zero", EditValues())


@pytest.mark.parametrize("room", [0, 4000, 1 << 30])
def test_what_is_kept_between_calls_changes_nothing(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.build(*models.ARCHITECTURES["llama"])
    material = _material(model)
    monkeypatch.setattr(conditions, "CACHE_BYTES", room)
    passes: list[int] = []
    with hooked(model):
        expected = run(model, SCORED, CONDITIONS, "resample", material)
        shared = conditions.LayerCache()
        for _ in range(2):
            handle = model.register_forward_pre_hook(lambda *_: passes.append(1))
            for heads, logs in zip(CONDITIONS, expected, strict=True):
                _close(run(model, SCORED, [heads], "resample", material, cache=shared)[0], logs)
            handle.remove()
            passes.append(0)
    first, second = passes[: passes.index(0)], passes[passes.index(0) + 1 : -1]
    assert len(first) > len(second) if room else len(first) == len(second)
    if room == 1 << 30:
        assert len(second) == len(CONDITIONS)
    assert shared._bytes <= room


def test_the_mean_is_that_of_the_texts() -> None:
    model = models.build(*models.ARCHITECTURES["gpt_neox"])
    texts = [tuple(range(3, 13)), tuple(range(20, 26))]
    with hooked(model):
        means, last = neutral_means(model, texts)
        outputs = [outputs_of(model, [text], {0, 1, 2}) for text in texts]
    assert last == 9
    for layer in range(3):
        for place, positions in enumerate(([0], [1], [2, 3], [4, 5, 6, 7], [8, 9])):
            rows = [z[layer][0, p] for z, text in zip(outputs, texts, strict=True) for p in positions if p < len(text)]
            torch.testing.assert_close(means[layer][place], torch.stack(rows).mean(0), atol=1e-6, rtol=0)


def test_the_model_is_left_as_it_was() -> None:
    model = models.build(*models.ARCHITECTURES["llama"])
    before = _plain(model, ROWS[0].ids, (8, 9))
    material = _material(model)
    with hooked(model):
        run(model, SCORED, CONDITIONS, "mean", material)
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    np.testing.assert_array_equal(_plain(model, ROWS[0].ids, (8, 9)), before)
    seen: list[int] = []
    with during(lambda layer, _: seen.append(layer)):
        model(torch.tensor([[1, 2]]))
    assert seen == []
