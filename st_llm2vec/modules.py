"""The two sentence-transformers modules of an LLM2Vec encoder.

`modules.json` names them only where the stock `Transformer` and `Pooling` would give other numbers; see
`st_llm2vec.saving.portable_copy`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from .bidirectional import Audit, enable_bidirectional_attention, is_bidirectional, restore_causal_attention
from .errors import InvalidCheckpointError, InvalidInputError
from .packing import Row, disable_packing, enable_packing, is_packing, packed
from .templates import Template
from .tokenization import TokenizedText, split_input, tokenize
from .vetting import own_attention

DEFAULT_MAX_SEQ_LENGTH = 512

# Our names (those of the original package) to sentence-transformers' own; an EOS token is the last one after a suffix.
POOLING_MODES: dict[str, str] = {
    "mean": "mean",
    "weighted_mean": "weightedmean",
    "last_token": "lasttoken",
    "eos_token": "lasttoken",
    "bos_token": "cls",
}

# What each position counts, from a mask of the pooled ones: (n, length) -> (n, length); parity README, section 3.8.
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda mask: mask,
    "weightedmean": lambda mask: mask.cumsum(1) * mask,  # 1 ... n over the span; stock counts from the text's start
    "lasttoken": lambda mask: (mask.flip(1).cumsum(1).flip(1) == 1) * mask,
    "cls": lambda mask: (mask.cumsum(1) == 1) * mask,
}

# An instruct tokenizer would make the stock module wrap every text in its chat template and forget the prompt's length.
TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


def _is_no_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


class LLM2VecTransformer(Transformer):  # type: ignore[misc]
    """Runs a decoder with attention in both directions and marks the span that LLM2Vec pools.

    Args:
        model_name_or_path: A decoder's folder or hub id.
        attention: "bidirectional" (opened and audited) or "causal" (the ordinary model).
        template: What stands before and after each text.
        document_max_length: Cut the text alone to this many tokens first; None leaves that to `max_seq_length`.
        tokenizer_folder: Where the tokenizer lies, if not beside the weights.
        **kwargs: As for the stock `Transformer`.

    Raises:
        StillCausalError: A layer cannot be made bidirectional.
    """

    config_keys: ClassVar[list[str]] = [*Transformer.config_keys, "attention", "template", "document_max_length"]
    # Set by the pooling module: whether it reads a span whose end is the template's suffix.
    keep_suffix = True
    audit: Audit | None = None
    unpacked_because: str | None = None
    """Why batches are padded; empty if they are packed, None before the first one."""
    compiles = False
    """Whether the layers are compiled for rows without padding, on their first one (compilation.py)."""
    uncompiled_because: str | None = None
    """Why the layers are not compiled; empty if they are, None before the first row."""

    def __init__(
        self,
        model_name_or_path: str,
        *,
        attention: str = "bidirectional",
        template: dict[str, str] | Template | None = None,
        document_max_length: int | None = None,
        tokenizer_folder: str | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs["modality_config"] = TEXT_ONLY
        kwargs["module_output_name"] = "token_embeddings"
        kwargs["unpad_inputs"] = False
        super().__init__(model_name_or_path, **kwargs)
        self._packing = True
        self.text_template = template if isinstance(template, Template) else Template(**(template or {}))
        self.document_max_length = document_max_length
        self._use_stored_tokenizer(tokenizer_folder or model_name_or_path, kwargs.get("processor_kwargs") or {})
        tokenizer = self.tokenizer
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise InvalidInputError(
                    f"The tokenizer of {model_name_or_path!r} has neither a pad token nor an EOS token to pad with. "
                    "Set one: processor_kwargs={'pad_token': '...'}."
                )
            tokenizer.pad_token = tokenizer.eos_token
        self.attention = attention

    @property
    def packing(self) -> bool:
        """Whether texts run in one row without padding, wherever that gives the same vectors (packing.py)."""
        return self._packing

    @packing.setter
    def packing(self, value: bool) -> None:
        self._packing = bool(value)
        self.unpacked_because = None if value else "packing=False"
        if is_packing(self.model):
            disable_packing(self.model)

    def _packs(self, features: dict[str, Any]) -> bool:
        if not self._packing or "input_ids" not in features or "attention_mask" not in features:
            return False
        if torch.compiler.is_compiling():  # it would be compiled again for every row
            return False
        # A checkpointed layer runs again when the row is gone.
        if self.training and any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules()):
            return False
        # Padded on the left, MNTP predicts a first token from the pad before it, as the original does.
        if not features["attention_mask"][:, 0].all():
            return False
        if self.unpacked_because is None or (not self.unpacked_because and not is_packing(self.model)):
            self.unpacked_because = enable_packing(self.model)
        if self.compiles and self.uncompiled_because is None and torch.is_inference_mode_enabled():
            from .compilation import compile_layers  # the compiler takes a second to import

            self.uncompiled_because = compile_layers(self.model)
        return not self.unpacked_because

    def __getstate__(self) -> dict[str, Any]:
        # A copy is not compiled, nor is what a worker process gets; it will be, on its first row.
        return {**super().__getstate__(), "uncompiled_because": None}

    @property
    def attention(self) -> str:
        """The direction of attention; assigning it opens (and audits) or closes the model."""
        return "bidirectional" if is_bidirectional(self.model) else "causal"

    @attention.setter
    def attention(self, value: str) -> None:
        self.packing = self._packing  # proven for one direction: once more for the other
        if value == "bidirectional":
            self.audit = enable_bidirectional_attention(self.model)
        elif value == "causal":
            self.audit = None
            restore_causal_attention(self.model)
        else:
            raise InvalidInputError(f"attention={value!r} is not known. Use 'bidirectional' or 'causal'.")

    @property
    def template(self) -> dict[str, str]:
        """`text_template` as it is saved."""
        return self.text_template.to_dict()

    def _load_model(self, model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        own_attention(args[1])  # the config; what the caller asks for is in kwargs
        # transformers fills weights that a file lacks with random numbers and warns; here that is an error, and the
        # report about the unused language-model head is no news.
        log = logging.getLogger("transformers.modeling_utils")
        log.addFilter(_is_no_load_report)
        try:
            model, info = super()._load_model(model_name_or_path, *args, output_loading_info=True, **kwargs)
        except (SafetensorError, RuntimeError) as error:
            raise InvalidCheckpointError(f"The weights in {model_name_or_path!r} cannot be read: {error}") from error
        finally:
            log.removeFilter(_is_no_load_report)
        if wrong := sorted(info["missing_keys"]) + sorted(map(str, info.get("mismatched_keys") or ())):
            raise InvalidCheckpointError(
                f"The weights in {model_name_or_path!r} lack {len(wrong)} tensors of a {model.config.model_type} "
                f"model, {wrong[0]!r} first, which would be random numbers. Download or save them again."
            )
        return model

    def _use_stored_tokenizer(self, name: str, options: dict[str, Any]) -> None:
        # Tokenizer classes of transformers 5 rebuild parts of tokenizer.json from their own rules (leading blanks of
        # Llama 2); the model was trained with the file.
        rebuilt = self.tokenizer
        if type(rebuilt) is PreTrainedTokenizerFast and rebuilt.name_or_path == name:
            return
        try:
            stored = PreTrainedTokenizerFast.from_pretrained(name, **options)
        except (OSError, ValueError):
            return  # no tokenizer.json: a SentencePiece model only, which the class above has read
        stored.model_max_length = rebuilt.model_max_length
        self.processor = stored

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        processing_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Token ids, attention mask and pooled span of a batch.

        Args:
            inputs: n texts, or `[instruction, text]` pairs.
            prompt: Put before every text as it is.

        Returns:
            `input_ids`, `attention_mask` and `pooling_mask`, int64 (n, length), padded on the right.

        Raises:
            InvalidInputError: An input that is no text.
        """
        if not inputs:
            return {}
        return self.collate(self.tokenized(inputs, prompt, processing_kwargs, **kwargs))

    def tokenized(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        processing_kwargs: dict[str, Any] | None = None,
        first: int = 0,
        **kwargs: Any,
    ) -> list[TokenizedText]:
        """Token ids and pooled span of each input; as for `preprocess`. Errors count inputs from `first`."""
        task_length = {"query": self.query_length, "document": self.document_length}.get(kwargs.get("task") or "")
        asked = (processing_kwargs or {}).get("text", {}).get("max_length")
        return tokenize(
            self.tokenizer,
            [split_input(item, i, prompt or "") for i, item in enumerate(inputs, first)],
            self.text_template,
            max_length=asked or kwargs.get("max_length") or task_length or self.max_seq_length,
            document_max_length=self.document_max_length,
            keep_suffix=self.keep_suffix,
        )

    def collate(self, rows: Sequence[TokenizedText]) -> dict[str, Any]:
        """What `preprocess` returns, for inputs that are tokenized already."""
        lengths = torch.tensor([len(row.input_ids) for row in rows])
        pooled = torch.tensor([row.n_pooled for row in rows])
        position = torch.arange(int(lengths.max()))
        attention_mask = position < lengths[:, None]  # (n, length)
        ids = torch.full(attention_mask.shape, self.tokenizer.pad_token_id)
        ids[attention_mask] = torch.tensor(list(chain.from_iterable(row.input_ids for row in rows)))
        # An empty span (an empty text after a prompt) falls back to all tokens; the original pools the padding (Q3).
        start = torch.where(pooled > 0, lengths - pooled, 0)
        pooling_mask = attention_mask & (position >= start[:, None])
        masks = {"attention_mask": attention_mask.long(), "pooling_mask": pooling_mask.long()}
        return {"input_ids": ids, **masks, "modality": "text"}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `token_embeddings`, the last hidden states after the final norm: (n, length, hidden)."""
        # The decoder would be handed every feature that it does not refuse.
        pooling_mask = features.pop("pooling_mask", None)
        row = features.pop("row", None)
        if self._packs(features):
            ids = features["input_ids"]
            row = row or Row.of(features["attention_mask"])
            inputs = {"input_ids": row.gather(ids), "position_ids": row.position_ids, "modality": "text"}
            with packed(row):
                hidden = super().forward(inputs, **kwargs)["token_embeddings"]  # (1, total, hidden)
            features["token_embeddings"] = row.scatter(hidden, ids.shape)
        else:
            features = super().forward(features, **kwargs)
        if pooling_mask is not None:
            features["pooling_mask"] = pooling_mask
        return features


class LLM2VecPooling(Pooling):  # type: ignore[misc]
    """Pools text and template suffix, in float32; differs from stock `Pooling` in what counts as the prompt.

    Args:
        embedding_dimension: Width of the token embeddings.
        pooling_mode: As for the stock class ("mean", "weightedmean", "lasttoken", "cls").
        include_prompt: Pool all tokens (BOS, template and prompt too), as `skip_instruction=False` did.
    """

    def __init__(self, embedding_dimension: int, pooling_mode: str = "mean", include_prompt: bool = False) -> None:
        super().__init__(embedding_dimension, pooling_mode, include_prompt)

    @property
    def reads_span(self) -> bool:
        """Whether the value depends on where the text begins and the template's suffix ends."""
        return self.pooling_mode != "cls" and (not self.include_prompt or self.pooling_mode == "lasttoken")

    def on_model_ready(self, model: Any) -> None:
        model[0].keep_suffix = self.reads_span

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`: float32 (n, hidden)."""
        tokens: Tensor = features["token_embeddings"].float()  # (n, length, hidden)
        mask = features["pooling_mask" if self.reads_span and "pooling_mask" in features else "attention_mask"]
        weights = WEIGHTS[self.pooling_mode](mask).to(tokens.dtype)  # (n, length)
        vectors = torch.einsum("nl,nlh->nh", weights, tokens) / weights.sum(1, keepdim=True)
        features["sentence_embedding"] = vectors
        return features


# A saved folder may name the stock classes; opened by us it gets ours, which give the same numbers there.
MODULE_CLASSES: dict[str, type[nn.Module]] = {
    f"{LLM2VecTransformer.__module__}.LLM2VecTransformer": LLM2VecTransformer,
    f"{LLM2VecPooling.__module__}.LLM2VecPooling": LLM2VecPooling,
}
STOCK_CLASSES: dict[str, type[nn.Module]] = {
    f"{Transformer.__module__}.Transformer": LLM2VecTransformer,
    f"{Pooling.__module__}.Pooling": LLM2VecPooling,
}
