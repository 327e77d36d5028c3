"""Lines where a wrong result would be silent: each broken in one way, and the tests that should notice.

A row is (file, the line without its indentation, what replaces it, tests). run.py runs them.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A line (or a part of the text, which stands once in its file) that is broken, and what pytest runs."""

    file: str
    line: str
    replacement: str
    tests: str
    equivalent: str = ""  # why no test can notice


def _rows(file: str, tests: str, *changes: tuple[str, str]) -> list[Mutant]:
    return [Mutant(file, line, replacement, tests) for line, replacement in changes]


_T = "tests"
MUTANTS: list[Mutant] = [
    *_rows(
        "st_llm2vec/merging.py",
        f"{_T}/test_merging.py {_T}/test_checkpoints.py {_T}/test_strangers.py",
        ('return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank', "return alpha / rank"),
        ("total = weight.float()", "total = weight"),
        ("total = total + delta.to(total.device)", "total = total - delta.to(total.device)"),
        ("adapter.changes_anything |= bool(delta.any())", "adapter.changes_anything = True"),
        ("if not total.isfinite().all():", "if False:"),
        ("weight.copy_(_merged(weight, name, adapters))", "_merged(weight, name, adapters)"),
        ("if not difference <= 2 * coarsest * float(expected.abs().max()):", "if False:"),
        ('raw["dtype"] = raw["torch_dtype"] = str(dtype).removeprefix("torch.")', "pass"),
        ("tensors[name] = _cast(weight, dtype).contiguous()", "tensors[name] = weight.contiguous()"),
        ('raw.pop("auto_map", None)', "pass"),
        ("if odd or not pairs:", "if not pairs:"),
        ("if shape != tuple(shapes[target]) or a[0] != b[1]:", "if False:"),
        ("own_attention(config)", "pass"),
        (
            "require_files(checkpoint.tokenizer)  # once more: what a link leads to would be copied, and published",
            "pass",
        ),
    ),
    *_rows(
        "st_llm2vec/modules.py",
        f"{_T}/test_model.py {_T}/test_tokenization.py {_T}/test_packing.py",
        ('"mean": lambda mask: mask,', '"mean": lambda mask: mask.cumsum(1) * mask,'),
        ('"cls": lambda mask: (mask.cumsum(1) == 1) * mask,', '"cls": lambda mask: (mask.cumsum(1) == 2) * mask,'),
        ("start = torch.where(pooled > 0, lengths - pooled, 0)", "start = lengths - pooled"),
        (
            "attention_mask = position < lengths[:, None]  # (n, length)",
            "attention_mask = position <= lengths[:, None]",
        ),
        ('tokenizer.padding_side = "right"', "pass"),
        (
            'tokens: Tensor = features["token_embeddings"].float()  # (n, length, hidden)',
            'tokens: Tensor = features["token_embeddings"]',
        ),
        ("model[0].keep_suffix = self.reads_span", "model[0].keep_suffix = True"),
        ("stored.model_max_length = rebuilt.model_max_length", "pass"),
    ),
    *_rows(
        "st_llm2vec/tokenization.py",
        f"{_T}/test_tokenization.py {_T}/parity/test_parity.py",
        ("n_pooled = [len(ids) - before for ids in full]", "n_pooled = [len(ids) for ids in full]"),
        ("n_pooled[i] = min(len(ids), max_length) + after", "n_pooled[i] = min(len(ids), max_length)"),
        ("n_pooled[i] -= prefixes.get(pairs[i][0], 0)", "pass"),
        ("if document_max_length is not None and document_max_length < max_length:", "if False:"),
        ('kept = " ".join(words[: int(len(words) * (limit / n))])', 'kept = " ".join(words[:limit])'),
        (
            "return TokenizedText(head + ids[prompt_end : prompt_end + n_text] + tail, n_text + len(tail))",
            "return TokenizedText(head + ids[prompt_end : prompt_end + n_text] + tail, n_text)",
        ),
        ("prompt = prompt.lstrip()", "pass"),
        (
            "n_text = min(suffix_start - prompt_end, max(room - (prompt_end - before), room // 2))",
            "n_text = min(suffix_start - prompt_end, max(room - (prompt_end - before), 0))",
        ),
        ("kept = ids[: max_length - after] + ids[len(ids) - after :]", "kept = ids[:max_length]"),
    ),
    *_rows(
        "st_llm2vec/templates.py",
        f"{_T}/test_tokenization.py {_T}/test_model.py {_T}/parity/test_parity.py",
        ("return Template(prefix, suffix.rstrip())", "return Template(prefix, suffix)"),
        ("return Template(template.prefix, template.suffix + suffix)", "return Template(template.prefix, suffix)"),
        ('return text[0], len(ids["input_ids"]) - 1 - text[-1]', "return text[0], 0"),
        ('prefix = prefix.removeprefix(tokenizer.bos_token or "")  # the tokenizer adds it by itself', "pass"),
        ("if not isinstance(value, str) or len(value) > MAX_LENGTH:", "if False:"),
    ),
    *_rows(
        "st_llm2vec/training/mntp.py",
        f"{_T}/test_training.py {_T}/parity/test_parity.py",
        (
            'hidden = self.model(features)["token_embeddings"][:, :-1]  # (n, length - 1, hidden)',
            'hidden = self.model(features)["token_embeddings"][:, 1:]',
        ),
        ("labels = ids.masked_fill(~selected, IGNORED)", "labels = ids"),
        ("ids[masked] = self.mask_token_id", "ids[masked] = 0"),
        ("special = (position < before) | (position >= lengths - after)", "special = position < before"),
        ("return logits / divisor * factor", "return logits"),
        ("logits = cap * torch.tanh(logits / cap)", "pass"),
        ("masked = selected & (kind < 0.8)", "masked = selected & (kind < 0.6)"),
        ("return total / selected.sum().clamp_min(1)", "return total / selected.numel()"),
    ),
    *_rows(
        "st_llm2vec/model.py",
        f"{_T}/test_model.py {_T}/test_plugin.py {_T}/test_strangers.py",
        ("digest.update(json.dumps(settings, sort_keys=True, default=str).encode())", "pass"),
        ("self[1].on_model_ready(self)", "pass"),
        ("require_safe(folder)", "pass"),
    ),
    *_rows(
        "st_llm2vec/encoding.py",
        f"{_T}/test_model.py {_T}/test_packing.py",
        (
            "found[torch.tensor(batch, device=found.device) + first] = vectors.to(found.device)",
            "found[torch.arange(len(batch)) + first] = vectors.to(found.device)",
        ),
        ("vectors = nn.functional.normalize(vectors, p=2, dim=1)", "pass"),
        ("vectors = truncate_embeddings(vectors, truncate_dim)", "pass"),
    ),
    *_rows(
        "st_llm2vec/checkpoints.py",
        f"{_T}/test_checkpoints.py {_T}/test_aliases.py",
        (
            'settings["include_prompt"] = not settings.pop("skip_instruction")',
            'settings["include_prompt"] = settings.pop("skip_instruction")',
        ),
        ("adapters = (*below.adapters, top, *second)", "adapters = (*below.adapters, *second, top)"),
        ('tokenizer = top if (top / "tokenizer_config.json").is_file() else tokenizer', "pass"),
    ),
    *_rows(
        "st_llm2vec/vetting/files.py",
        f"{_T}/test_strangers.py",
        ('or ".." in re.split(r"[\\\\/]", path)', ""),
        ("if not is_folder and not path.is_file():", "if False:"),
        ('return [folder, repository / "blobs"] if cached else [folder]', 'return [folder, repository / "blobs"]'),
        ("if depth > MAX_DEPTH:", "if False:"),
    ),
    *_rows(
        "st_llm2vec/vetting/fields.py",
        f"{_T}/test_strangers.py",
        ("left.append(value)", "pass"),
        ('if not name.endswith(".safetensors"):', "if False:"),
        ("if limit is not None and abs(value) > limit:", "if False:"),
        ("part._attn_implementation = None", "pass"),
    ),
    *_rows(
        "st_llm2vec/vetting/tokens.py",
        f"{_T}/test_strangers.py",
        ("groups[-1].varies |= inner.varies", "pass"),
        ("growth *= max(1, len(value))", "pass"),
        ("self.most = self.total", "pass"),
        ('if model.get("dropout"):', "if False:"),
    ),
    *_rows(
        "st_llm2vec/build_folder.py",
        f"{_T}/test_strangers.py",
        ('return f"{place} belongs to another user"', "pass"),
        ('return f"{place} can be written by other users"', "pass"),
        ("os.environ[VARIABLE] = str(folder)", "pass"),
    ),
    *_rows(
        "st_llm2vec/cli/terminal.py",
        f"{_T}/cli/test_terminal.py",
        (
            '_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (bidirectional overrides), surrogates, line separators',
            '_HIDDEN = {"Cc", "Cs", "Zl", "Zp"}',
        ),
        ("logging.setLogRecordFactory(before)", "pass"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/diversity.py",
        f"{_T}/faiss_llm2vec",
        ("nearest = np.maximum(nearest, units @ units[best])", "nearest = units @ units[best]"),
        ("merit = likeness if not picked else relevance * likeness - (1 - relevance) * nearest", "merit = likeness"),
    ),
    *_rows(
        "integrations/langchain_llm2vec/embeddings.py",
        f"{_T}/langchain_llm2vec",
        (
            "return self._encoder.encode_query([text], **options)[0].tolist()  # type: ignore[no-any-return]",
            "return self._encoder.encode_document([text], **options)[0].tolist()",
        ),
    ),
]
