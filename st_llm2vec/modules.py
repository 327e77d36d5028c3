"""The two sentence-transformers modules of an LLM2Vec encoder.

`modules.json` names them only where the stock `Transformer` and `Pooling` would give other numbers; see
`st_llm2vec.saving.portable_copy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn

from .backend.deciding import MECHANISMS, packs
from .backend.equivalence import Status, off
from .backend.memory import keep_freed_memory
from .backend.packed_batch import PackedBatch, packed, packed_checkpoints
from .backend.packing import disable_packing, is_packing
from .backend.residual import round_residual
from .bidirectional import Audit, enable_bidirectional_attention, is_bidirectional, restore_causal_attention
from .errors import InvalidCheckpointError, InvalidInputError
from .hosts import no_load_report
from .pooling import LLM2VecPooling
from .settings import DEFAULT_MAX_SEQ_LENGTH, KEPT, POOLING_MODES, as_length  # noqa: F401 - two of them lived here
from .templates import Template, special_counts
from .tokenization import TokenizedText, as_stored, keep_within, require_unicode, split_input, tokenize
from .vetting import own_attention, require_held, require_no_kernels

# An instruct tokenizer would make the stock module wrap every text in its chat template and forget the prompt's length.
TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


class LLM2VecTransformer(Transformer):
    """Runs a decoder with attention in both directions and marks the span that LLM2Vec pools.

    Args:
        model_name_or_path: A decoder's folder or hub id.
        attention: "bidirectional" (mask removed, audited) or "causal" (the ordinary model); None leaves it as the
            config says, unaudited, for `load` to set when adapters are merged.
        template: What stands before and after each text.
        document_max_length: Cut the text alone to this many tokens first; None leaves that to `max_seq_length`.
        tokenizer_folder: Where the tokenizer lies, if not beside the weights.
        **kwargs: As for the stock `Transformer`.

    Raises:
        StillCausalError: A layer cannot be made bidirectional.
    """

    if TYPE_CHECKING:  # a decoder has them, where the host's class may have none
        tokenizer: Any
        max_seq_length: int
    config_keys = [*Transformer.config_keys, *KEPT]  # noqa: RUF012
    # Set by the pooling module: whether it reads a span whose end is the template's suffix.
    keep_suffix = True
    audit: Audit | None = None
    tokens_encoded = 0
    """Tokens so far, which tell whether prepacked weights repay their price."""
    compiles = False
    """Whether the layers are compiled for packed sequences, at the first one (compilation.py)."""
    scores_span = False
    """Whether later modules see the pooled span as the attention mask: late interaction scores each token of it."""

    def __init__(
        self,
        model_name_or_path: str,
        *,
        attention: str | None = "bidirectional",
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
        self.status = dict.fromkeys(MECHANISMS, Status())
        self.text_template = template if isinstance(template, Template) else Template(**(template or {}))
        self.document_max_length = document_max_length
        stored = tokenizer_folder or model_name_or_path
        self.processor = as_stored(self.tokenizer, stored, kwargs.get("processor_kwargs") or {})
        tokenizer = self.tokenizer
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise InvalidInputError(
                    f"The tokenizer of {model_name_or_path!r} has neither a pad token nor an EOS token to pad with. "
                    "Set one: processor_kwargs={'pad_token': '...'}."
                )
            tokenizer.pad_token = tokenizer.eos_token
        keep_within(tokenizer, self.model.get_input_embeddings().weight.shape[0], model_name_or_path)
        if attention is not None:
            self.attention = attention

    @property
    def packing(self) -> bool:
        """Whether texts run as one packed sequence, without padding, wherever that gives the same vectors."""
        return self._packing

    @packing.setter
    def packing(self, value: bool) -> None:
        self._packing = bool(value)
        self.status["packed"] = Status() if value else off("packing=False")
        if is_packing(self.model):
            disable_packing(self.model)

    def __getstate__(self) -> dict[str, Any]:
        # A copy is not compiled, nor is what a worker process gets; it will be, on its first packed batch.
        state = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "status": self.status | {"compiled": Status()}}

    @property
    def attention(self) -> str:
        """The direction of attention; assigning it removes (and audits) or restores the causal mask."""
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
            raise InvalidInputError(f"attention must be 'bidirectional' or 'causal', got {value!r}.")

    @property
    def template(self) -> dict[str, str]:
        """`text_template` as it is saved."""
        return self.text_template.to_dict()

    def train(self, mode: bool = True) -> LLM2VecTransformer:
        """As in torch; what makes encoding fast or exact and does not train is taken back."""
        super().train(mode)
        if mode:
            round_residual(self.model)
            keep_freed_memory()
        return self

    def get_config_dict(self) -> dict[str, Any]:
        """As in `Transformer`, without settings at their defaults: then the stock class reads the folder, too."""
        config: dict[str, Any] = super().get_config_dict()
        return {key: value for key, value in config.items() if key not in KEPT or value != KEPT[key]}

    def on_model_ready(self, model: Any) -> None:
        """Called by the model that this module has become a part of."""
        super().on_model_ready(model)
        if getattr(model, "model_type", None) == "MultiVectorEncoder":
            self.scores_span = True

    def _load_model(self, model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        config, folder = args[1], Path(model_name_or_path)
        own_attention(config)  # what the caller asks for is in kwargs
        if not kwargs.get("quantization_config"):
            require_no_kernels(folder, config)
        # transformers fills weights that a file lacks with random numbers and warns; here that is an error.
        try:
            if folder.is_dir():
                require_held(folder, config)
            with no_load_report():
                model, info = super()._load_model(model_name_or_path, *args, output_loading_info=True, **kwargs)
        except (SafetensorError, RuntimeError) as error:
            raise InvalidCheckpointError(f"The weights in {model_name_or_path!r} cannot be read: {error}") from error
        if wrong := sorted(info["missing_keys"]) + sorted(map(str, info.get("mismatched_keys") or ())):
            raise InvalidCheckpointError(
                f"The weights in {model_name_or_path!r} lack {len(wrong)} tensors of a {model.config.model_type} "
                f"model, {wrong[0]!r} first, which would be random numbers. Download or save them again."
            )
        return model

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        processing_kwargs: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Token ids, attention mask and pooled span of a batch.

        Args:
            inputs: n texts, or `[instruction, text]` pairs.
            prompt: Put before every text as it is.

        Returns:
            `input_ids`, `attention_mask` and `pooling_mask`, int64 (n, length), padded on the right; with a prompt
            `prompt_length`, its tokens with everything before it, as the stock class counts them.

        Raises:
            InvalidInputError: An input that is no text, or an option that the template or document cut cannot follow.
        """
        if not inputs:
            return {}
        try:
            modality = self.input_formatter.parse_inputs(inputs)[0]
        except (TypeError, ValueError):
            modality = "text"  # or nothing that anybody reads; then it is said below
        if modality != "text" or not self.reads_as_text(processing_kwargs, **kwargs):
            return self._preprocess_as_stock(inputs, prompt, processing_kwargs, **kwargs)
        return self.collate(
            self.tokenized(inputs, prompt, processing_kwargs, **kwargs), self._get_prompt_length(prompt, **kwargs)
        )

    def reads_as_text(self, processing_kwargs: Any = None, **kwargs: Any) -> bool:
        """Whether `tokenized` follows these options; the stock `preprocess` knows more (query expansion, messages)."""
        options = self._merge_processing_kwargs(processing_kwargs)
        beyond = {key for key, value in options.items() if value} - {"text"} or set(options.get("text", {}))
        return (
            beyond <= {"max_length"}
            and (kwargs.get("task") != "query" or self.query_expansion is None)
            and self.transformer_task == "feature-extraction"
            and set(self.modality_config) == {"text"}
        )

    def _preprocess_as_stock(
        self, inputs: Sequence[Any], prompt: str | None, processing_kwargs: Any, **kwargs: Any
    ) -> dict[str, Any]:
        if self.text_template or self.document_max_length is not None:
            raise InvalidInputError(
                "processing_kwargs (but text.max_length), query_expansion and inputs that are no text are read by "
                "sentence-transformers' own Transformer, which knows neither the template nor document_max_length of "
                "this encoder. Leave them out, or load the decoder without template and document_max_length."
            )
        try:
            features: dict[str, Any] = super().preprocess(inputs, prompt, processing_kwargs, **kwargs)
        except ValueError as error:
            raise InvalidInputError(str(error)) from error
        if isinstance(features.get("attention_mask"), Tensor):
            features["pooling_mask"] = self._span(features)
        return features

    def _get_prompt_length(self, prompt: str | None, **kwargs: Any) -> int | None:
        if not prompt:
            return None
        require_unicode(prompt)
        if not self.text_template:
            found: int | None = super()._get_prompt_length(prompt, **kwargs)
            return found
        after = special_counts(self.tokenizer)[1]
        ids = self.tokenizer(self.text_template.prefix + prompt.lstrip(), verbose=False)["input_ids"]
        return len(ids) - after

    def _span(self, features: dict[str, Any]) -> Tensor:
        """The pooled span of texts that were tokenized elsewhere: what follows BOS and prompt; int64 (n, length)."""
        mask: Tensor = features["attention_mask"]
        length = features.get("prompt_length")
        skipped = special_counts(self.tokenizer)[0] if length is None else int(torch.as_tensor(length).flatten()[0])
        span = mask.bool() & (mask.cumsum(1) > skipped)
        return torch.where(span.any(1, keepdim=True), span, mask.bool()).long()

    def tokenized(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        processing_kwargs: Any = None,
        first: int = 0,
        **kwargs: Any,
    ) -> list[TokenizedText]:
        """Token ids and pooled span of each input; as for `preprocess`. Errors count inputs from `first`."""
        task_length = {"query": self.query_length, "document": self.document_length}.get(kwargs.get("task") or "")
        asked = self._merge_processing_kwargs(processing_kwargs).get("text", {}).get("max_length")
        lengths = (asked, kwargs.get("max_length"), task_length, self.max_seq_length)
        return tokenize(
            self.tokenizer,
            [split_input(item, i, prompt or "") for i, item in enumerate(inputs, first)],
            self.text_template,
            max_length=as_length("max_seq_length", next((n for n in lengths if n is not None), None)),
            document_max_length=self.document_max_length,
            keep_suffix=self.keep_suffix,
        )

    def collate(self, texts: Sequence[TokenizedText], prompt_length: int | None = None) -> dict[str, Any]:
        """What `preprocess` returns, for inputs that are tokenized already."""
        lengths = torch.tensor([len(text.input_ids) for text in texts])
        pooled = torch.tensor([text.n_pooled for text in texts])
        position = torch.arange(int(lengths.max()))
        attention_mask = position < lengths[:, None]  # (n, length)
        ids = torch.full(attention_mask.shape, self.tokenizer.pad_token_id)
        ids[attention_mask] = torch.tensor(list(chain.from_iterable(text.input_ids for text in texts)))
        if (highest := int(ids.max())) >= (known := self.model.get_input_embeddings().weight.shape[0]):
            raise InvalidInputError(
                f"A text has token {highest} ({self.tokenizer.convert_ids_to_tokens(highest)!r}), and the decoder has "
                f"{known} embeddings. Leave the token out, or load the tokenizer that belongs to the decoder."
            )
        # An empty span (an empty text after a prompt) falls back to all tokens; the original pools the padding (Q3).
        start = torch.where(pooled > 0, lengths - pooled, 0)
        pooling_mask = attention_mask & (position >= start[:, None])
        masks = {"attention_mask": attention_mask.long(), "pooling_mask": pooling_mask.long()}
        features = {"input_ids": ids, **masks, "modality": "text"}
        return features if prompt_length is None else {**features, "prompt_length": prompt_length}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `token_embeddings`, the last hidden states after the final norm: (n, length, hidden).

        Everything else that the stock class adds (`all_layer_embeddings`) has the same layout, packed or not.

        Raises:
            InvalidInputError: Texts that were tokenized elsewhere, without the template of this encoder.
        """
        # The decoder would be handed every feature that it does not refuse.
        pooling_mask = features.pop("pooling_mask", None)
        batch = features.pop("packed_batch", None)
        if pooling_mask is None and features.get("attention_mask") is not None:
            if self.text_template and self.keep_suffix:
                raise InvalidInputError(
                    "These features have no pooling_mask, so they were not made by this encoder's preprocess, and "
                    "lack its template. Tokenize with model.preprocess(texts)."
                )
            pooling_mask = self._span(features)
        if packs(self, features, batch):
            self._forward_packed(features, batch, **kwargs)
        else:
            features = super().forward(features, **kwargs)
        if pooling_mask is not None:
            features["pooling_mask"] = pooling_mask
            if self.scores_span:
                features["token_mask"] = features["attention_mask"]
                features["attention_mask"] = pooling_mask
        return features

    def _forward_packed(self, features: dict[str, Any], batch: PackedBatch | None, **kwargs: Any) -> None:
        ids = features["input_ids"]
        batch = batch or PackedBatch.of(features["attention_mask"])
        # No attention mask: every token of the packed sequence is one.
        inputs = {"input_ids": batch.gather(ids), "position_ids": batch.position_ids, "attention_mask": None}
        with packed(batch), packed_checkpoints(self.model, batch) if self.training else nullcontext():
            found = super().forward({**inputs, "modality": "text"}, **kwargs)
        for name in found.keys() - inputs.keys() - {"modality"}:
            value = found[name]  # (1, total, hidden), or one for every layer
            layers = [batch.scatter(x, ids.shape) for x in (value if isinstance(value, tuple) else (value,))]
            features[name] = tuple(layers) if isinstance(value, tuple) else layers[0]


# A saved folder may name the stock classes; opened by us it gets ours, which give the same numbers there.
MODULE_CLASSES: dict[str, type[nn.Module]] = {
    f"{LLM2VecTransformer.__module__}.LLM2VecTransformer": LLM2VecTransformer,
    f"{LLM2VecPooling.__module__}.LLM2VecPooling": LLM2VecPooling,
}
STOCK_CLASSES: dict[str, type[nn.Module]] = {
    f"{Transformer.__module__}.Transformer": LLM2VecTransformer,
    f"{Pooling.__module__}.Pooling": LLM2VecPooling,
}
