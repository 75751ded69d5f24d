"""Generation with a cache really runs the rewritten graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import mhc_compile as mhc
from tests.nets.library import GROUPED, VOCABULARY
from tests.nets.small import compiled, perturb, relative

NEW = 5


def llama() -> Any:
    """Weights so large that the next token depends on everything before."""
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, initializer_range=0.3)).eval()


def prompt() -> Tensor:
    return torch.randint(0, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(1))


def generated(model: Any, given: Tensor | None = None, **kwargs: Any) -> Tensor:
    settings = {
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    tokens: Tensor = model.generate(prompt() if given is None else given, **{**settings, **kwargs})
    return tokens


@torch.no_grad()
def without_cache(model: nn.Module) -> Tensor:
    """Greedy search that runs the whole text through one graph for every token."""
    run, tokens = compiled(model), prompt()
    for _ in range(NEW):
        tokens = torch.cat([tokens, run(tokens, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return tokens


def upgraded_llama(moved: bool, compiler: str = "aot_eager") -> Any:
    model = llama()
    mhc.upgrade(model, (prompt(),), {"use_cache": False}, verify=False)
    perturb(model, 2.0 if moved else 0.0)
    model.compile(backend="mhc", options={"compiler": compiler})
    return model


@pytest.mark.core(1)
def test_with_a_cache(moved: bool) -> None:
    model = upgraded_llama(moved)
    tokens, original = generated(model), generated(llama())
    assert tokens.shape == (2, 6 + NEW)
    assert torch.equal(tokens, original) is not moved
    assert torch.equal(tokens, without_cache(model))


@pytest.mark.slow
def test_upgraded_with_the_cache_or_without_is_the_same() -> None:
    first, second = llama(), llama()
    reports = [
        mhc.upgrade(first, (prompt(),), {"use_cache": False}),
        mhc.upgrade(second, kwargs={"input_ids": prompt(), "use_cache": True}),
    ]
    assert [site.identity() for site in reports[0].sites] == [site.identity() for site in reports[1].sites]


@pytest.mark.slow
def test_every_step_of_the_cache_equals_the_whole(moved: bool) -> None:
    """Logits, not only the tokens that they lead to."""
    model = upgraded_llama(moved, "eager")
    tokens = without_cache(model)
    with torch.no_grad():
        whole = compiled(model)(tokens, use_cache=False).logits
        cache, start, parts = hf.DynamicCache(config=model.config), 0, []
        for end in (6, 7, 8, 9, tokens.shape[1]):
            out = model(tokens[:, start:end], past_key_values=cache, use_cache=True)
            parts.append(out.logits)
            start = end
    assert relative(torch.cat(parts, 1), whole) < 1e-5
    assert cache.get_seq_length() == tokens.shape[1]


@pytest.mark.slow
def test_upgrade_and_explain_leave_a_cache_alone() -> None:
    model = llama()
    cache = hf.DynamicCache(config=model.config)
    with torch.no_grad():
        model(prompt(), past_key_values=cache)
    call = {"input_ids": prompt()[:, :1], "past_key_values": cache}
    mhc.explain(model, kwargs=call)
    report = mhc.upgrade(model, kwargs=call)
    assert len(report.sites) == 4
    assert cache.get_seq_length() == 6


@pytest.mark.slow
def test_generate_of_the_compiled_object(moved: bool) -> None:
    """torch.compile(model).generate runs the forward that was not compiled, which compiles itself."""
    model = llama()
    mhc.upgrade(model, (prompt(),))
    perturb(model, 2.0 if moved else 0.0)
    assert torch.equal(generated(compiled(model)), without_cache(model))


@pytest.mark.slow
def test_generate_compiles_no_more_than_it_must(graphs: list[object]) -> None:
    """Text of any length, alone or several, with an empty cache or not; beams bring one more input to the first."""
    model = llama()
    mhc.upgrade(model, (prompt(),))
    perturb(model, 2.0)
    graphs.clear()
    for size in (1, 3):
        for length in (3, 7):
            tokens = torch.randint(1, VOCABULARY, (size, length))
            for how in ({}, {"num_beams": 2}, {"do_sample": True}):
                generated(model, tokens, **how)
    assert len(graphs) == 5
    generated(model, cache_implementation="static")
    assert len(graphs) == 7
    assert torch.equal(generated(model), without_cache(model))


@pytest.mark.slow
def test_compiled_forward(moved: bool) -> None:
    """The other way: compile forward, and hand the model to generate."""
    model = llama()
    mhc.upgrade(model, (prompt(),))
    perturb(model, 2.0 if moved else 0.0)
    expected = without_cache(model)
    model.forward = compiled(model.forward)
    assert torch.equal(generated(model), expected)


@pytest.mark.slow
def test_modes(moved: bool) -> None:
    """The same function with gradients, without, in inference mode, in training and in evaluation."""
    model = upgraded_llama(moved, "eager")
    expected = model(prompt()).logits
    assert expected.requires_grad
    with torch.no_grad():
        assert torch.equal(model(prompt()).logits, expected)
    with torch.inference_mode():
        assert torch.equal(model(prompt()).logits, expected)
    model.train()
    assert torch.equal(model(prompt()).logits, expected)
    with torch.no_grad():
        assert torch.equal(model(prompt()).logits, expected)
    model.eval()
    model(prompt()).logits.sum().backward()
    assert all(parameter.grad is not None for _, parameter in mhc.named_parameters(model))
