"""The architecture matrix on tiny decoders, and its page.

python tests/architectures.py > docs/architectures.md
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch.nn.attention.flex_attention as torch_flex
import transformers.integrations.flex_attention as flex
from tiny_models import tiny_decoder
from transformers import PreTrainedModel, masking_utils

from st_llm2vec.bidirectional import ARCHITECTURES, REFUSED, audit, enable_bidirectional_attention
from st_llm2vec.errors import StillCausalError, UnsupportedArchitectureError
from st_llm2vec.training.lora import lora_targets

IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention")
INTRO = """\
<!-- python tests/architectures.py > docs/architectures.md -->
# Architectures

Any decoder can be loaded: the causal mask is removed, every layer is audited, and what fails is refused. The decoders
below are audited in the tests as well, on tiny models: in every layer, without padding and with padding on either side,
every earlier token must see the last one, by a perturbation and by the gradient (flex_attention has none on a CPU). The
table holds for the newest transformers that is tested (constraints.txt); with an older one the audit refuses some.

`yes`: every layer is bidirectional. `-`: transformers has no such implementation for this architecture (gpt_oss: none
on a CPU; modernbert-decoder: eager cannot run without a mask). flex_attention runs uncompiled here.

| model_type | sdpa | eager | flex_attention |
| --- | --- | --- | --- |"""
REFUSALS = """
## Refused

The layers named are those of a tiny model with one layer of each kind. `attention="causal"` loads such a decoder as it
is.

| model_type | layers that stay causal | reason |
| --- | --- | --- |"""


@contextmanager
def uncompiled_flex() -> Iterator[None]:
    """flex_attention without minutes of compilation."""

    def attention(query: Any, key: Any, value: Any, training: bool = False, **kwargs: Any) -> Any:
        return torch_flex.flex_attention(query, key, value, **kwargs)

    create = masking_utils.create_block_mask

    def block_mask(*args: Any, _compile: bool | None = None, **kwargs: Any) -> Any:
        return create(*args, **kwargs)

    with (
        mock.patch.object(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True),
        mock.patch.object(flex, "compile_friendly_flex_attention", attention),
        mock.patch.object(masking_utils, "create_block_mask", block_mask),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "flex_attention called without")
        yield


def becomes_bidirectional(model: PreTrainedModel, implementation: str) -> bool:
    """Opens every layer of a decoder; whether both audits find it so."""
    enable_bidirectional_attention(model)
    return bool(audit(model)) and (implementation == "flex_attention" or bool(audit(model, gradients=True)))


def causal_layers(model_type: str) -> str:
    """The layers that a refusal names, or "all" where there is no causal mask to remove, or nothing to audit."""
    try:
        model = tiny_decoder(model_type, "eager")
    except ValueError:
        model = tiny_decoder(model_type, None)
    try:
        enable_bidirectional_attention(model)
    except StillCausalError as error:
        named, _, depth = str(error).partition("layers ")[2].partition(" still")[0].partition(" of ")
        return "all" if named == str(list(range(int(depth)))) else f"layer {named[1:-1]} of {depth}"
    except UnsupportedArchitectureError:
        return "all"
    raise AssertionError(f"{model_type} opens, so it should not be in REFUSED")


def lora_row(model_type: str) -> str:
    """What `add_lora` adapts: linear layers, and experts that are one parameter."""
    targets = lora_targets(tiny_decoder(model_type, None))
    return f"| {model_type} | {' '.join(targets.modules)} | {' '.join(targets.parameters) or '-'} |"


def rows() -> Iterator[str]:
    """The rows of the table; `table_row` has the cells that the table of the package claims."""
    for model_type, row in ARCHITECTURES.items():
        models = ((name, tiny_decoder(model_type, name)) for name in row.implementations)
        wrong = [name for name, model in models if not becomes_bidirectional(model, name)]
        assert not wrong, f"{model_type} stays causal with {wrong}"
        yield table_row(model_type)


def table_row(model_type: str) -> str:
    cells = ("yes" if name in ARCHITECTURES[model_type].implementations else "-" for name in IMPLEMENTATIONS)
    return f"| {model_type} | {' | '.join(cells)} |"


LORA = """
## What LoRA adapts

`add_lora(model, stage)` adapts the seven projections of a Llama-like layer where all seven are there, as the original
package does, else every linear layer but routers; and experts, which are one parameter a layer (`dropout` is 0 there).
`target_modules=[...]` chooses others.

| model_type | linear layers | parameters |
| --- | --- | --- |"""

if __name__ == "__main__":
    with uncompiled_flex():
        print(INTRO, *rows(), sep="\n")
        print(REFUSALS)
        for name, reason in REFUSED.items():
            print(f"| {name} | {causal_layers(name)} | {reason} |")
        print(LORA, *map(lora_row, ARCHITECTURES), sep="\n")
