"""The language-model head that MNTP predicts with: the causal LM's own, whatever stands between states and logits.

Heads differ: a bias (phi), a transform before the matrix (modernbert-decoder), a soft cap after it (gemma 2), scales
(cohere, granite, minicpm3), other names on disk (`embed_out`). None of it is written again here: what transformers'
causal LM of the decoder is without its decoder is the head.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.utils import ModelOutput

from ..errors import InvalidCheckpointError, InvalidInputError, UnsupportedArchitectureError
from ..hosts import no_load_report
from ..model import LLM2Vec


@dataclass
class _States(ModelOutput):  # type: ignore[misc]
    """What a causal LM may ask its decoder's output for."""

    last_hidden_state: Tensor | None = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None
    cross_attentions: Any = None
    router_logits: Any = None
    shared_kv_states: Any = None
    image_hidden_states: Any = None


class _GivenStates(nn.Module):
    """Stands where a causal LM has its decoder: returns the states that it is given."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _States:
        return _States(last_hidden_state=inputs_embeds)


class LanguageModelHead(nn.Module):
    """Scores of every token, as the decoder's causal LM gives them.

    Args:
        model: The encoder. A matrix that is tied to its input embeddings is read from there at every call.
        weight: Output embeddings (vocabulary, hidden); default: those of the folder that the decoder was loaded from.
        trainable: Let gradients reach the head, and the input embeddings if it is tied to them.

    Raises:
        InvalidCheckpointError: The folder has no head, for example because it was saved as an encoder.
        UnsupportedArchitectureError: transformers has no causal LM for the decoder.
    """

    def __init__(self, model: LLM2Vec, weight: Tensor | None = None, trainable: bool = False) -> None:
        super().__init__()
        decoder = model[0].model
        self.trainable = trainable
        # In a list, so that it does not count as a second copy of the model's parameters.
        self._embeddings = [decoder.get_input_embeddings()]
        self.causal_lm, self.tied = _read_head(decoder, weight)
        self.to(decoder.device).requires_grad_(trainable)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states after the final norm (positions, hidden) -> logits (positions, vocabulary)."""
        tensors = dict(self.causal_lm.named_parameters())
        tensors |= dict.fromkeys(self.tied, self._embeddings[0].weight)
        tensors = {name: (p if self.trainable else p.detach()).to(hidden.dtype) for name, p in tensors.items()}
        states = {"inputs_embeds": hidden[None], "use_cache": False}
        logits: Tensor = functional_call(self.causal_lm, tensors, kwargs=states).logits[0]
        return logits

    @property
    def weight(self) -> Tensor | None:
        """The output embeddings (vocabulary, hidden); None where they are tied to the input embeddings."""
        shape = self._embeddings[0].weight.shape
        return None if self.tied else [p for p in self.causal_lm.parameters() if p.shape == shape][-1]


def language_model_head(model: LLM2Vec) -> Tensor | None:
    """Return the decoder's output embeddings (vocabulary, hidden); None where they are tied to the input embeddings.

    Raises:
        As `LanguageModelHead`.

    Example:
        >>> language_model_head(model) is None
        True
    """
    return LanguageModelHead(model).weight


def _read_head(decoder: PreTrainedModel, weight: Tensor | None) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The decoder's causal LM without the decoder, and the names of its tensors that are the input embeddings."""
    # Of a multimodal decoder, the text decoder's.
    configs = (decoder.config.get_text_config(decoder=True), decoder.config)
    config = next((config for config in configs if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING), None)
    if config is None:
        raise UnsupportedArchitectureError(
            f"model_type {decoder.config.model_type!r} has no causal LM in transformers, so MNTP has no head to "
            "predict with. Train with pairs instead (supervised)."
        )
    config = copy.deepcopy(config)
    config.__dict__.pop("quantization_config", None)  # the head is read as float, whatever the layers became
    head, source = _without_decoder(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]), decoder.name_or_path
    try:
        # Nothing but input embeddings and head is read; whether they are one tensor is transformers' own rule.
        with no_load_report(), torch.random.fork_rng(devices=[]):  # what is missing is drawn, and refused below
            causal_lm, info = head.from_pretrained(
                source,
                config=config,
                dtype=decoder.dtype,
                use_safetensors=True,
                output_loading_info=True,
            )
        missing = set(info["missing_keys"])
    except OSError:  # stages merged in memory lie in no folder
        causal_lm = head(config)
        causal_lm.tie_weights()
        missing = {name for name, _ in causal_lm.named_parameters()}
    path = f"{causal_lm.embeddings_path}.weight"
    embeddings = causal_lm.get_parameter(path)
    names = [name for name, _ in causal_lm.named_parameters(remove_duplicate=False) if name != path]
    tied = tuple(name for name in names if causal_lm.get_parameter(name) is embeddings)
    if weight is not None:
        if weight.shape != embeddings.shape:
            raise InvalidInputError(
                f"head must be a matrix of shape (vocabulary, hidden) = {tuple(embeddings.shape)}, got "
                f"{tuple(weight.shape)}."
            )
        output = [name for name in names if causal_lm.get_parameter(name).shape == embeddings.shape][-1]
        _set(causal_lm, output, nn.Parameter(weight.detach().to(decoder.dtype)))
        missing, tied = missing - {output}, ()
    if lacking := sorted(missing.intersection(names) - set(tied)):
        raise InvalidCheckpointError(
            f"{source!r} has no {lacking[0]}, which MNTP predicts with. Start from the decoder that it was made from, "
            "or give the output embeddings: MNTPLoss(model, head=weight)."
        )
    for name in (path, *tied):  # the encoder has them
        _set(causal_lm, name, None)
    return causal_lm, tied


def _set(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
    path, _, attribute = name.rpartition(".")
    module.get_submodule(path).register_parameter(attribute, value)


def _without_decoder(whole: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class of a causal LM whose decoder is reduced to its input embeddings, which the head may be tied to."""

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        whole.__init__(self, *args, **kwargs)  # on the meta device where transformers loads it
        embeddings = self.get_input_embeddings()
        path = next(name for name, module in self.named_modules() if module is embeddings)
        parent = self
        for part in path.split(".")[:-1]:
            parent.add_module(part, _GivenStates())
            parent = getattr(parent, part)
        parent.add_module(path.rpartition(".")[2], embeddings)
        self.embeddings_path = path

    # transformers finds by class and module what it renames while it reads (gpt_neox: `embed_out`).
    return type(whole.__name__, (whole,), {"__init__": init, "__module__": whole.__module__})
