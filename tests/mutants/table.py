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


MUTANTS: list[Mutant] = [
    *_rows(
        "st_llm2vec/merging.py",
        "tests/test_merging.py -k scale",
        ('return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank', "return alpha / rank"),
    ),
    *_rows(
        "st_llm2vec/merging.py",
        "tests/test_merging.py",
        ("total = total + delta.to(total.device)", "total = (total + delta.to(total.device)).to(weight.dtype)"),
        ("total = total + delta.to(total.device)", "total = total - delta.to(total.device)"),
        ("adapter.changes_anything |= bool(delta.any())", "adapter.changes_anything = True"),
        ("if not total.isfinite().all():", "if False:"),
        ("weight.copy_(_merged(weight, name, adapters))", "_merged(weight, name, adapters)"),
        ("if not difference <= 2 * coarsest * float(expected.abs().max()):", "if False:"),
    ),
    *_rows(
        "st_llm2vec/merging.py",
        "tests/test_saving.py tests/test_merging.py -k 'dtype or convert'",
        ('raw["dtype"] = raw["torch_dtype"] = str(dtype).removeprefix("torch.")', "pass"),
        ("tensors[name] = _cast(weight, dtype).contiguous()", "tensors[name] = weight.contiguous()"),
    ),
    *_rows(
        "st_llm2vec/merging.py",
        "tests/test_merging.py -k not_named",
        ('raw.pop("auto_map", None)', "pass"),
    ),
    Mutant(
        "st_llm2vec/merging.py",
        "total = weight.float()",
        "total = weight",
        "tests/test_merging.py -k rounded_once",
        "the deltas are float32, and torch adds half precision and float32 in float32",
    ),
    *_rows(
        "st_llm2vec/merging.py",
        "tests/test_checkpoints.py",
        ("if odd or not pairs:", "if not pairs:"),
        ("if shape != tuple(shapes[target]) or a[0] != b[1]:", "if False:"),
    ),
    *_rows(
        "st_llm2vec/merging.py",
        "tests/test_strangers.py -k not_taken_from",
        ("own_attention(config)", "pass"),
    ),
    *_rows(
        "st_llm2vec/merging.py",
        "tests/test_strangers.py -k comes_later",
        (
            "require_files(checkpoint.tokenizer)  # once more: what a link leads to would be copied, and published",
            "pass",
        ),
    ),
    *_rows(
        "st_llm2vec/modules.py",
        "tests/test_model.py -k 'vectors_do_not or odd_inputs or stock_row'",
        ("start = torch.where(pooled > 0, lengths - pooled, 0)", "start = lengths - pooled"),
        (
            "attention_mask = position < lengths[:, None]  # (n, length)",
            "attention_mask = position <= lengths[:, None]",
        ),
    ),
    *_rows(
        "st_llm2vec/modules.py",
        "tests/test_saving.py -k pads_left",
        ('tokenizer.padding_side = "right"', "pass"),
    ),
    *_rows(
        "st_llm2vec/tokenization.py",
        "tests/test_tokenization.py",
        ("n_pooled = [len(ids) - before for ids in full]", "n_pooled = [len(ids) for ids in full]"),
        ("n_pooled[i] = min(len(ids), max_length) + after", "n_pooled[i] = min(len(ids), max_length)"),
        ("n_pooled[i] -= prefixes.get(pairs[i][0], 0)", "pass"),
        ("if document_max_length is not None and document_max_length < max_length:", "if False:"),
        (
            'kept = " ".join(words[: int(len(words) * (limit / n))])',
            'kept = " ".join(words[: int(len(words) * (limit / n)) - 1])',
        ),
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
        "tests/test_tokenization.py",
        ("return Template(prefix, suffix.rstrip())", "return Template(prefix, suffix)"),
    ),
    *_rows(
        "st_llm2vec/templates.py",
        "tests/parity/test_parity.py",
        ("return Template(template.prefix, template.suffix + suffix)", "return Template(template.prefix, suffix)"),
    ),
    *_rows(
        "st_llm2vec/templates.py",
        "tests/test_tokenization.py",
        ("return before, len(ids) - len(plain) - before", "return before, 0"),
        ('prefix = prefix.removeprefix(tokenizer.bos_token or "")  # the tokenizer adds it by itself', "pass"),
    ),
    *_rows(
        "st_llm2vec/templates.py",
        "tests/test_strangers.py -k megabytes",
        ("if not isinstance(value, str) or len(value) > MAX_LENGTH:", "if False:"),
    ),
    *_rows(
        "st_llm2vec/training/mntp.py",
        "tests/test_training.py -k 'mntp or mask'",
        (
            'hidden = self.model(features)["token_embeddings"][:, :-1]  # (n, length - 1, hidden)',
            'hidden = self.model(features)["token_embeddings"][:, 1:]',
        ),
        ("labels = ids.masked_fill(~selected, IGNORED)", "labels = ids"),
        ("ids[masked] = self.mask_token_id", "ids[masked] = 0"),
    ),
    *_rows(
        "st_llm2vec/training/mntp.py",
        "tests/test_training_tables.py -k never_predicts",
        ("special = (position < before) | (position >= lengths - after)", "special = position < before"),
    ),
    *_rows(
        "st_llm2vec/training/head.py",
        "tests/test_training.py -k 'mntp or mask'",
        (
            "tensors |= dict.fromkeys(self.tied, self._embeddings[0].weight)",
            "tensors |= dict.fromkeys(self.tied, self._embeddings[0].weight * 2)",
        ),
    ),
    *_rows(
        "st_llm2vec/training/mntp.py",
        "tests/test_training.py -k 'mntp or mask'",
        ("masked = selected & (kind < 0.8)", "masked = selected & (kind < 0.6)"),
        ("return total / mean_of_all(selected.sum()).clamp_min(1)", "return total / selected.numel()"),
    ),
    *_rows(
        "st_llm2vec/model.py",
        "tests/test_fingerprint.py",
        ("digest.update(json.dumps(settings, sort_keys=True, default=str).encode())", "pass"),
    ),
    *_rows(
        "st_llm2vec/model.py",
        "tests/test_model.py -k changed_later",
        ("module.on_model_ready(self)", "pass"),
    ),
    *_rows(
        "st_llm2vec/model.py",
        "tests/test_strangers.py -k hub_is",
        ("require_safe(folder)\n            require_saved_base(folder)", "require_saved_base(folder)"),
    ),
    *_rows(
        "st_llm2vec/encoding.py",
        "tests/test_packing.py -k 'form_of_the_result or chunks'",
        (
            "found[torch.tensor(batch, device=found.device) + first] = vectors.to(found.device)",
            "found[torch.arange(len(batch)) + first] = vectors.to(found.device)",
        ),
        ("vectors = nn.functional.normalize(vectors, p=2, dim=1)", "pass"),
        ("vectors = truncate_embeddings(vectors, truncate_dim)", "pass"),
    ),
    *_rows(
        "st_llm2vec/settings.py",
        "tests/test_settings.py",
        (
            'values["include_prompt"] = not as_flag(_ORIGINAL_FLAG, skips)',
            'values["include_prompt"] = as_flag(_ORIGINAL_FLAG, skips)',
        ),
    ),
    *_rows(
        "st_llm2vec/checkpoints.py",
        "tests/test_aliases.py -k one_call",
        ("adapters = (*below.adapters, top, *second)", "adapters = (*below.adapters, *second, top)"),
    ),
    *_rows(
        "st_llm2vec/checkpoints.py",
        "tests/test_checkpoints.py",
        ('tokenizer = top if (top / "tokenizer_config.json").is_file() else tokenizer', "pass"),
    ),
    *_rows(
        "st_llm2vec/vetting/files.py",
        "tests/test_strangers.py -k own_folder_only",
        ('or ".." in re.split(r"[\\\\/]", path)', ""),
    ),
    *_rows(
        "st_llm2vec/vetting/files.py",
        "tests/test_strangers.py -k regular_file",
        ("if not is_folder:", "if False:"),
    ),
    *_rows(
        "st_llm2vec/vetting/files.py",
        "tests/test_strangers.py -k blobs_elsewhere",
        (
            'if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):',
            'if snapshots.name == "snapshots":',
        ),
    ),
    *_rows(
        "st_llm2vec/vetting/files.py",
        "tests/test_strangers.py -k json_",
        ("if depth > MAX_DEPTH:", "if False:"),
    ),
    *_rows(
        "st_llm2vec/vetting/files.py",
        "tests/test_untrusted_files.py -k 'link or without_end or cannot_be or can_have'",
        ("if os.path.lexists(path := file.parent / name):", "if False:"),
        ("if _READ_WHOLE.fullmatch(path.name):", "if False:"),
        ("or not can_be_path(path)", ""),
    ),
    *_rows(
        "st_llm2vec/vetting/provenance.py",
        "tests/test_untrusted_files.py -k 'card or provenance or stranger_chose'",
        ('and all(map(_is_stage, value.get("lora") or []))', ""),
        ('and all(map(_is_training, value.get("training") or []))', ""),
        ('and all(map(_is_source, value.get("checkpoints") or []))', ""),
    ),
    *_rows(
        "st_llm2vec/cards.py",
        "tests/test_untrusted_files.py -k stranger_chose",
        ('"Made from": _MARKUP.sub("_", made_of),', '"Made from": made_of,'),
    ),
    *_rows(
        "st_llm2vec/model.py",
        "tests/test_several_adapters.py",
        ('"adapters": self._adapters_in_use(),', ""),
        (
            "for adapter in ([] if layer.disable_adapters else layer.active_adapters)",
            "for adapter in layer.active_adapters",
        ),
    ),
    *_rows(
        "st_llm2vec/training/static.py",
        "tests/test_static_and_soup.py tests/test_tiny_recipe.py",
        ("(smoothing / (smoothing + _frequencies(size, bags)))[ids, None]", "1"),
        (
            "return {id: text for id, text in zip(ids, texts, strict=True) if text.strip() and UNKNOWN not in text}",
            "return dict(zip(ids, texts, strict=True))",
        ),
        ("backend.no_padding()", "pass"),
        ("size = 1 + max(tokens.get_vocab().values())", "size = len(tokens.get_vocab())"),
        ("if different <= dimensions:", "if False:"),
        ("seen = known if known is not None else", "seen ="),
        (', rcond=1e-5, driver="gelsd"', ""),
    ),
    *_rows(
        "st_llm2vec/training/teacher.py",
        "tests/test_distill.py",
        ("if known != self.fingerprint:", "if False:"),
        ("if done and not _holds(file, shape):", "if False:"),
        ("progress.unlink()", "pass"),
        ("if not np.isfinite(vector).all()", "if False"),
        ("(QUERY, *[DOCUMENT] *", "(DOCUMENT, *[DOCUMENT] *"),
        ('"texts": start + len(block)', '"texts": len(asked)'),
    ),
    *_rows(
        "st_llm2vec/training/distill.py",
        "tests/test_distill.py",
        ("(_unit(each) - mean) @ axes", "_unit(each) @ axes"),
        ("source.vectors[source.index]", "source.vectors[source.index * 0]"),
        ("labels = labels.to(self.turn) @ self.turn", "pass"),
        ("self.projection.weight.copy_(turn)", "pass"),
        ('"rotation" if teacher < student', '"projection" if teacher < student'),
        ("theirs.append(source.vectors[place])", "theirs.append(source.vectors[chosen])"),
        (", prompt=prompt, **how", ", **how"),
        ("    model.train()\n    return torch", "    return torch"),
        ("if student is not None:", "if False:"),
    ),
    *_rows(
        "st_llm2vec/training/principal.py",
        "tests/test_distill.py",
        ("each.mean(0, dtype=np.float64) for each", "0 for each"),
    ),
    *_rows(
        "st_llm2vec/training/run.py",
        "tests/test_guided.py",
        ("run.take_guide(guide_fingerprint(trainer.loss))  # type: ignore[arg-type]", "pass"),
    ),
    *_rows(
        "st_llm2vec/vetting/provenance.py",
        "tests/test_streams.py",
        ('each.get("rows", 0)', 'each.get("rows")'),
    ),
    *_rows(
        "st_llm2vec/training/distill.py",
        "tests/test_processes.py",
        ("gather_across_devices=PartialState().num_processes > 1,", "gather_across_devices=False,"),
    ),
    *_rows(
        "st_llm2vec/training/processes.py",
        "tests/test_processes.py",
        ("parameter.register_hook(mean_of_all)", "pass"),
    ),
    *_rows(
        "st_llm2vec/training/soup.py",
        "tests/test_static_and_soup.py -k soup",
        (
            "total[key] += share * weight.detach().float().to(total[key].device)",
            "total[key] += weight.detach().float().to(total[key].device)",
        ),
    ),
    *_rows(
        "st_llm2vec/vetting/fields.py",
        "tests/test_untrusted_files.py -k 'activation or form or length or prompt or pooling or can_have or added'",
        (
            'if "in_features" in content:  # of a Dense; sentence-transformers takes another function where it knows none',
            "if False:",
        ),
        ('"truncate_dim": COUNT,', ""),
        ('"prompts": HOST_PROMPTS,', '"prompts": PROMPTS,'),
        ("if len(files) > MAX_SHARDS:", "if False:"),
        ('"added_tokens.json": _require_few_tokens,', ""),
    ),
    *_rows(
        "st_llm2vec/vetting/weights.py",
        "tests/test_untrusted_files.py -k 'kernels or quantization or wide'",
        ("if method not in _INSTALLED.split():", "if False:"),
        ("if asked > held:", "if False:"),
    ),
    *_rows(
        "st_llm2vec/vetting/tokens.py",
        "tests/test_untrusted_files.py -k 'hides or bracket or map_of or no_length or added'",
        ('elif pattern[i] == "[" and (depth == 0 or nested):', 'elif pattern[i] == "[":'),
        ("if _LOOP.match(pattern, i):", "if False:"),
        ("if not groups:", "if groups is None:"),
        (
            "if len(blob) < 4 or size % 4 or size > len(blob) - 4:  # tokenizers would take memory for it, or end the process",
            "if False:",
        ),
    ),
    *_rows(
        "st_llm2vec/vetting/chat.py",
        "tests/test_untrusted_files.py -k runs_apart",
        ("if max(map(len, found)) > {1 << 20}:", "if False:"),
    ),
    *_rows(
        "st_llm2vec/vetting/fields.py",
        "tests/test_strangers.py -k 'hub_is or sizes'",
        ("left.append(value)", "pass"),
    ),
    *_rows(
        "st_llm2vec/vetting/fields.py",
        "tests/test_strangers.py -k safetensors_only",
        ('if not name.endswith(".safetensors") and not leaves(name):', "if False:"),
    ),
    *_rows(
        "st_llm2vec/vetting/fields.py",
        "tests/test_strangers.py -k sizes",
        ("if limit is not None and abs(value) > limit:", "if False:"),
    ),
    *_rows(
        "st_llm2vec/vetting/fields.py",
        "tests/test_strangers.py -k not_taken_from",
        ("part._attn_implementation = None", "pass"),
    ),
    *_rows(
        "st_llm2vec/vetting/tokens.py",
        "tests/test_strangers.py -k 'pattern or fills'",
        ("groups[-1].varies |= inner.varies", "pass"),
        ("growth *= max(1, len(value))", "pass"),
        ("self.most = self.total", "pass"),
        ('if model.get("dropout"):', "if False:"),
    ),
    *_rows(
        "st_llm2vec/backend/build_folder.py",
        "tests/test_strangers.py -k 'compiled or others_can'",
        ('return f"{place} belongs to another user"', "pass"),
        ('return f"{place} can be written by other users"', "pass"),
        ("os.environ[VARIABLE] = str(folder)", "pass"),
    ),
    *_rows(
        "st_llm2vec/cli/terminal.py",
        "tests/cli/test_terminal.py",
        (
            '_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (bidirectional overrides), surrogates, line separators',
            '_HIDDEN = {"Cc", "Cs", "Zl", "Zp"}',
        ),
        ("logging.setLogRecordFactory(factory)", "pass"),
        ("warnings.showwarning = show_escaped  # type: ignore[assignment]", "pass"),
        ("error.message = message(error.message)  # type: ignore[attr-defined]", "pass"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/diversity.py",
        "tests/faiss_llm2vec/test_store.py tests/langchain_llm2vec/test_vectorstores.py -k mmr",
        ("nearest = np.maximum(nearest, units @ units[best])", "nearest = units @ units[best]"),
        ("merit = likeness if not picked else relevance * likeness - (1 - relevance) * nearest", "merit = likeness"),
    ),
    *_rows(
        "integrations/langchain_llm2vec/embeddings.py",
        "tests/langchain_llm2vec/test_embeddings.py",
        (
            "return self._encoder.encode_query([text], **options)[0].tolist()  # type: ignore[no-any-return]",
            "return self._encoder.encode_document([text], **options)[0].tolist()",
        ),
    ),
    *_rows(
        "integrations/faiss_llm2vec/models.py",
        "tests/faiss_llm2vec/test_models.py tests/langchain_llm2vec/test_vectorstores.py -k fingerprint",
        ("    if inside:\n", "    if False:\n"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/models.py",
        "tests/faiss_llm2vec/test_models.py",
        ("self.encoder, self.stated)", "self.encoder)"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/models.py",
        "tests/faiss_llm2vec/test_models.py",
        ("return known + _prompt_added(model), sure", "return known, sure"),
    ),
    *_rows(
        "integrations/llama_index_llm2vec/filters.py",
        "tests/llama_index_llm2vec/test_filters.py",
        ("_of_node(record).get(key) == [])", "False)"),
        ("record.metadata[key] is not None)", "True)"),
        ("    return values + [", "    return values + [] and ["),
        ('record.metadata[key] in (None, ""))', "True)"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/diversity.py",
        "tests/faiss_llm2vec/test_inputs.py -k mmr",
        ("if not len(vectors):", "if False:"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/inputs.py",
        "tests/faiss_llm2vec/test_inputs.py -k whole",
        (
            '            return number\n    raise InvalidInputError(f"{name} must be a whole',
            '            return value\n    raise InvalidInputError(f"{name} must be a whole',
        ),
    ),
    *_rows(
        "integrations/faiss_llm2vec/filters.py",
        "tests/faiss_llm2vec/test_inputs.py -k numpy",
        ("if type(scalar := plain(value)) is not type(value):", "if False:"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/inputs.py",
        "tests/faiss_llm2vec/test_inputs.py -k numpy",
        (", default=plain)", ")"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/inputs.py",
        "tests/faiss_llm2vec/test_inputs.py -k without_metadata",
        ("[{} if label is None else label for label", "[label for label"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/searching.py",
        "tests/faiss_llm2vec/test_inputs.py -k effort",
        ("_WIDEST = 1e6", "_WIDEST = 1e308"),
    ),
    *_rows(
        "integrations/llama_index_llm2vec/filters.py",
        "tests/llama_index_llm2vec/test_filters.py",
        ("if not isinstance(leaf.value, types):", "if False:"),
    ),
    *_rows(
        "integrations/llama_index_llm2vec/vector_stores.py",
        "tests/llama_index_llm2vec/test_vector_store.py -k without_text",
        ("return self._first(query, where)", "raise InvalidInputError('no query_embedding')"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/kinds.py",
        "tests/faiss_llm2vec/test_kinds.py -k polysem",
        ("    _without_polysemous_codes(index)\n    lists", "    lists"),
    ),
    *_rows(
        "integrations/llama_index_llm2vec/vector_stores.py",
        "tests/llama_index_llm2vec/test_vector_store.py -k doubled",
        ("            self._store.delete(replaced)", "            pass"),
    ),
    *_rows(
        "integrations/llama_index_llm2vec/vector_stores.py",
        "tests/llama_index_llm2vec/test_vector_store.py -k batches",
        ("elif _part(node, record.metadata) in given:", "else:"),
    ),
    *_rows(
        "integrations/llama_index_llm2vec/vector_stores.py",
        "tests/llama_index_llm2vec/test_vector_store.py -k told",
        ("        if outdated:", "        if False:"),
    ),
    *_rows(
        "integrations/llama_index_llm2vec/vector_stores.py",
        "tests/llama_index_llm2vec/test_vector_store.py -k 'empty_lists or among'",
        ("if query.doc_ids is not None:", "if query.doc_ids:"),
        ("and query.query_str is None):", "and False):"),
        ("and query.query_str is None):", "):"),
    ),
    *_rows(
        "integrations/llama_index_llm2vec/vector_stores.py",
        "tests/llama_index_llm2vec/test_vector_store.py -k again",
        ("node.embedding = None if found.vector is None else found.vector.tolist()", "pass"),
    ),
    *_rows(
        "integrations/langchain_llm2vec/vectorstores.py",
        "tests/langchain_llm2vec/test_vectorstores.py -k async",
        ("else await self.embedding.aembed_query(query)", "else self.embedding.embed_query(query)"),
        ("vectors = await self.embedding.aembed_documents(texts) if texts else None", "vectors = None"),
        ("await run_in_executor(None, self._check_addable, texts, completed, metadatas)", "pass"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/segments.py",
        "tests/faiss_llm2vec/test_kinds.py -k rescored",
        ("np.sum((chosen - query) ** 2, axis=1)", "np.sum(np.abs(chosen - query), axis=1)"),
    ),
    *_rows(
        "integrations/langchain_llm2vec/vectorstores.py",
        "tests/langchain_llm2vec/test_vectorstores.py -k relevance",
        ('"cosine": lambda score: max(0.0, score),', '"cosine": lambda score: (1 + score) / 2,'),
        ('"cosine": lambda score: max(0.0, score),', '"cosine": lambda score: max(0.0, score) ** 2,'),
    ),
    *_rows(
        "st_llm2vec/model.py",
        "tests/test_fingerprint.py",
        ("prompts={key: prompt for key, prompt in self.prompts.items() if prompt},", "prompts={},"),
        ("pooling_mode=self.pooling_mode,", 'pooling_mode="mean",'),
        ("**{name: getattr(transformer, name) for name in KEPT},", "**KEPT,"),
        ('encode() + sample.astype("<f2").tobytes()', "encode()"),
    ),
    *_rows(
        "st_llm2vec/pooling.py",
        "tests/parity/test_parity.py",
        ('"mean": lambda mask: mask,', '"mean": lambda mask: mask.cumsum(1) * mask,'),
        ('"cls": lambda mask: (mask.cumsum(1) == 1) * mask,', '"cls": lambda mask: (mask.cumsum(1) == 2) * mask,'),
    ),
    *_rows(
        "st_llm2vec/pooling.py",
        "tests/test_model.py -k half_precision",
        (
            'tokens: Tensor = features["token_embeddings"].float()  # (n, length, hidden)',
            'tokens: Tensor = features["token_embeddings"]',
        ),
    ),
    *_rows(
        "st_llm2vec/pooling.py",
        "tests/test_host_folders.py -k 'pooling_is_read or host_keeps'",
        (
            'model[0].keep_suffix = self.reads_span and (self.pooling_mode != "lasttoken" or bool(model[0].text_template))',
            "model[0].keep_suffix = True",
        ),
    ),
    *_rows(
        "st_llm2vec/tokenization.py",
        "tests/test_model.py -k positions_end",
        ("stored.model_max_length = rebuilt.model_max_length", "pass"),
    ),
]
