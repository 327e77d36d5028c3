"""What a checkpoint becomes: its settings, from what was asked for, what its folders say and the defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from .bidirectional import refuse_encoders
from .checkpoints import SETTINGS_FILE, Checkpoint
from .errors import InvalidCheckpointError, InvalidInputError, UnsupportedArchitectureError
from .host_folders import HostFolder, read_host_folder
from .settings import DEFAULT_MAX_SEQ_LENGTH, PUBLISHED_DOCUMENT_MAX_LENGTH, EncoderSettings
from .templates import CHAT, Template, choose_template, own_template, require_tokens, with_eos


@dataclass(frozen=True)
class Plan:
    """What a checkpoint becomes: its settings, but for what only the decoder can tell, and its host's files."""

    settings: EncoderSettings
    host: HostFolder | None
    proves: bool
    """Whether it has to be shown that our modules read what the host's do."""


def plan_encoder(checkpoint: Checkpoint, asked: EncoderSettings, config: Any) -> Plan:
    """What was asked for, else what the folders say, the last adapter first, else the defaults; all checked."""
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if asked.max_seq_length and positions and asked.max_seq_length > positions:
        raise InvalidInputError(
            f"max_seq_length must be from 1 to {positions}, the positions of {checkpoint.decoder.name!r}, got "
            f"{asked.max_seq_length!r}."
        )
    host = next((host for folder in checkpoint.folders if (host := read_host_folder(folder))), None)
    as_saved = host is not None and host.folder == checkpoint.folders[0]
    said = EncoderSettings.from_file(checkpoint.settings, checkpoint.folders[0] / SETTINGS_FILE)
    if host is not None:  # where both speak, the host's files are those that SentenceTransformer reads
        said = host.settings if as_saved else said.over(replace(host.settings, attention=None))
    elif checkpoint.adapters and "format" not in checkpoint.settings:
        said = said.over(EncoderSettings(document_max_length=PUBLISHED_DOCUMENT_MAX_LENGTH))
    settings = asked.over(said)
    if host is None:
        length = min(DEFAULT_MAX_SEQ_LENGTH, positions or DEFAULT_MAX_SEQ_LENGTH)
        settings = settings.over(EncoderSettings(max_seq_length=length))
    if not as_saved:
        settings = settings.over(EncoderSettings(attention="bidirectional"))
    chosen = (asked.pooling_mode, asked.include_prompt, asked.template)
    return Plan(
        settings.over(EncoderSettings(pooling_mode="mean", include_prompt=False)),
        host,
        proves=host is not None and as_saved and not host.is_ours and chosen == (None, None, None),
    )


def template_of(settings: EncoderSettings, checkpoint: Checkpoint, config: Any, tokenizer: Any) -> Template:
    """What stands around a text: as asked, saved or known of the checkpoint, in tokens of this tokenizer."""
    if settings.template == CHAT:
        template = own_template(tokenizer)
    else:
        names = [checkpoint.original_name, *(source["name"] for source in checkpoint.sources)]
        template = choose_template(settings.template, *names)
        if not isinstance(settings.template, Template):  # a name; what was saved or written out is taken at its word
            require_tokens(template, tokenizer)
    if settings.pooling_mode != "eos_token":
        return template
    as_evaluated = checkpoint.is_original
    return with_eos(
        template,
        checkpoint.original_name,
        config.model_type,
        tokenizer.eos_token,
        tokenizer=None if as_evaluated else tokenizer,
    )


def read_config(folder: Path) -> Any:
    """Read the config of a decoder that can become an encoder.

    Raises:
        InvalidCheckpointError, UnsupportedArchitectureError.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidCheckpointError(
            f"{folder} has no config.json that transformers can read without running the checkpoint's own code: {error}"
        ) from error
    refuse_encoders(config)
    if not getattr(config.get_text_config(decoder=True), "num_hidden_layers", None):
        raise UnsupportedArchitectureError(f"model_type {config.model_type!r} has no layers of attention.")
    return config
