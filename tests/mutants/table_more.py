"""More rows of table.py's kind: the speed paths, files, stores, the server and the adapters.

Each row names the one test file that should notice, so that it takes seconds.
"""

from __future__ import annotations

from table import Mutant


def _rows(file: str, *changes: tuple[str, ...]) -> list[Mutant]:
    """Rows of a file: (line, replacement, tests), and why no test can notice where none can."""
    return [Mutant(file, *change) for change in changes]


_EQUIVALENCE = "tests/test_equivalence.py"
_INT8 = "tests/test_int8.py"
_PREPACKED = "tests/test_prepacked.py"
_PACKING = "tests/test_packing.py --deselect tests/test_packing.py::test_architecture"
_SAVING = "tests/test_saving.py"
_GGUF = "tests/test_gguf_files.py"
_HOST = "tests/test_host_folders.py"
_SETTINGS = "tests/test_settings.py"
_TRAINING = "tests/test_training_tables.py"
_SERVER = "tests/serving/test_server.py"
_STORE = "tests/faiss_llm2vec/test_store.py"
_STRANGERS = "tests/faiss_llm2vec/test_strangers.py"
_DURABILITY = "tests/faiss_llm2vec/test_durability.py"
_SHARING = "tests/faiss_llm2vec/test_sharing.py"
_KINDS = "tests/faiss_llm2vec/test_kinds.py"

MUTANTS: list[Mutant] = [
    *_rows(
        "st_llm2vec/backend/equivalence.py",
        (
            "return min(max(self.floor, SLACK * noise), self.ceiling)",
            "return max(self.floor, SLACK * noise)",
            f"{_EQUIVALENCE} -k rule",
        ),
        (
            "if not moved <= bound.allows(own):  # NaN is refused",
            "if moved > bound.allows(own):",
            f"{_EQUIVALENCE} -k rule",
        ),
        (
            'return "int8" if getattr(model, "is_quantized", False) else str(model.dtype).removeprefix("torch.")',
            'return str(model.dtype).removeprefix("torch.")',
            _EQUIVALENCE,
        ),
        (
            "texts.append((page * (window // len(page) + 2))[: window + 3])",
            "texts.append((page * (window // len(page) + 2))[: window - 3])",
            _EQUIVALENCE,
        ),
        (
            'key = (precision(model), attn_implementation_of(model), getattr(text_config(model), "is_causal", True))',
            "key = (precision(model), attn_implementation_of(model))",
            _EQUIVALENCE,
        ),
        (
            "found: Tensor = (a - b).norm(dim=-1) / a.norm(dim=-1).clamp_min(1e-30)",
            "found: Tensor = (a - b).norm(dim=-1)",
            _EQUIVALENCE,
        ),
    ),
    *_rows(
        "st_llm2vec/backend/packing.py",
        (
            "if not calls or calls % depth:  # diffllama asks twice in each layer",
            "if not calls:",
            "tests/test_packing.py -k asks",
        ),
        ("model.train(was_training)", "pass", f"{_PACKING} -k mode"),
    ),
    *_rows(
        "st_llm2vec/backend/int8.py",
        (
            "return cls((rest / scale).round_().to(torch.int8), scale, smooth, outliers, weight[:, outliers])",
            "return cls((rest / scale).to(torch.int8), scale, smooth, outliers, weight[:, outliers])",
            f"{_INT8} -k int8_product",
        ),
        (
            "quantized = (flat * scale.float().reciprocal_()).round_().to(torch.int8).view(torch.uint8)",
            "quantized = (flat * scale.float().reciprocal_()).to(torch.int8).view(torch.uint8)",
            f"{_INT8} -k int8_product",
        ),
        (
            "return product if self.bias is None else product.add_(self.bias.to(x.dtype))",
            "return product",
            f"{_INT8} -k int8",
        ),
    ),
    *_rows(
        "st_llm2vec/backend/prepacked.py",
        ("if last is None or last[0] is not x:", "if last is None:", f"{_PREPACKED} -k turns"),
        (
            'if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):',
            "if torch.is_grad_enabled():",
            f"{_PREPACKED} -k needs",
        ),
        ("if has_twin(model):  # whose layers would find no weights", "if False:", f"{_PREPACKED} -k twin"),
        ("if times[id(layer)] > 1 or (", "if (", f"{_PREPACKED} -k ordinary"),
        (
            "and (owners[id(weight)] > 1 or (weight.dtype != x.dtype and type(layer) is not MixedLinear))",
            "and (weight.dtype != x.dtype and type(layer) is not MixedLinear)",
            f"{_PREPACKED} -k ordinary",
        ),
        ("if not is_twin:", "if False:", f"{_PREPACKED} -k edited"),
    ),
    *_rows(
        "st_llm2vec/encoding.py",
        (
            "budget = min(batch_size * TOKENS_PER_TEXT, token_budget(model, place))",
            "budget = token_budget(model, place)",
            f"{_PACKING} -k bounds",
        ),
        ("transformer.tokens_encoded += sum(packed_batch.lengths)", "pass", f"{_PREPACKED} -k prepack"),
        ("if not _running.get(transformer):", "if True:", f"{_PREPACKED} -k threads"),
    ),
    Mutant(
        "st_llm2vec/saving.py",
        "return _FLOATS.get(kinds.pop()) if len(kinds) == 1 else None",
        "return _FLOATS.get(kinds.pop())",
        f"{_SAVING} -k weights",
        "of several dtypes, one is taken only where it holds every weight exactly: another file, the same vectors",
    ),
    *_rows(
        "st_llm2vec/saving.py",
        (
            "if not rounded and not torch.equal(cast[name].to(tensor.dtype), tensor):",
            "if False:",
            f"{_SAVING} -k changed",
        ),
        (
            "if not rounded and (dtype is None or dtype.itemsize >= own.itemsize):",
            "if not rounded and dtype is None:",
            f"{_SAVING} -k prepacked",
        ),
        ("if not cast[name].isfinite().all():", "if False:", f"{_SAVING} -k cannot"),
        (
            'content = _without(read_json(path), {"auto_map", "unpad_inputs"})',
            'content = _without(read_json(path), {"auto_map"})',
            f"{_SAVING} -k padding",
        ),
        (
            'for prompt in {"", "Find what answers:", *filter(None, model.prompts.values())}:',
            'for prompt in {"", "Find what answers:"}:',
            f"{_SAVING} -k blank",
        ),
        (
            "if own_save or KEPT.keys() & transformer.get_config_dict().keys():",
            "if own_save:",
            f"{_SAVING} -k comes_back",
        ),
        ("self.config.dtype = dtype or model.dtype", "self.config.dtype = model.dtype", f"{_SAVING} -k asked_for"),
    ),
    *_rows(
        "st_llm2vec/model.py",
        (
            "self.train(was_training)  # what is encoded on the way (probes, the model card's example) ends that",
            "pass",
            f"{_SAVING} -k training",
        ),
    ),
    *_rows(
        "st_llm2vec/gguf_files.py",
        ("if held != read:", "if False:", f"{_GGUF} -k place"),
        ("if missing:", "if False:", "tests/test_gguf_headers.py -k another_name"),
        ("and all(torch.equal(w.to(own).float(), w) for w in weights.values())", "and True", f"{_GGUF} -k cannot_hold"),
        ('if (value_of(reader, "split.count") or 0) > 1:', "if False:", f"{_GGUF} -k silence"),
        (
            "if any(start < end for (_, end), (start, _) in pairwise(places)):",
            "if False:",
            "tests/test_gguf_headers.py -k places",
        ),
    ),
    *_rows(
        "st_llm2vec/gguf_configs.py",
        (
            "if key not in known | _OTHER_KEYS and (key not in _MUST_BE or value != _MUST_BE[key])",
            "if key not in known | _OTHER_KEYS and key not in _MUST_BE",
            f"{_GGUF} -k silence",
        ),
        (
            'rope: dict[str, Any] = {"rope_type": "default", "rope_theta": stated.get("rope.freq_base", 10000.0)}',
            'rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}',
            f"{_GGUF} -k rotary",
        ),
        (
            'rope |= {"rope_type": "linear", "factor": stated.get("rope.scaling.factor", 1.0)}',
            'rope |= {"rope_type": "linear", "factor": 1.0}',
            f"{_GGUF} -k rotary",
        ),
        (
            "if (name := _KEYS.get(key)) and config.setdefault(name, value) != value:",
            "if (name := _KEYS.get(key)) and config.setdefault(name, value) is None:",
            f"{_GGUF} -k silence",
        ),
    ),
    *_rows(
        "st_llm2vec/gguf_tokenizers.py",
        ('"smollm": _Split(digits=True),', '"smollm": _Split(),', f"{_GGUF} -k digits"),
        ('"qwen2": _Split(_QWEN_2, normalizer="NFC"),', '"qwen2": _Split(_QWEN_2),', f"{_GGUF} -k row"),
        (
            "if (default if asked is None else asked) and ids[name] is not None:",
            "if asked and ids[name] is not None:",
            f"{_GGUF} -k bos",
        ),
        ("backend.model.ignore_merges = split.ignore_merges", "pass", f"{_GGUF} -k whole_words"),
        ("if ids != [i]:", "if False:", f"{_GGUF} -k no_text_gives"),
        (
            'prefix = value_of(reader, "tokenizer.ggml.add_space_prefix") is not False',
            "prefix = True",
            f"{_GGUF} -k row",
        ),
    ),
    *_rows(
        "st_llm2vec/host_folders.py",
        (
            "known = name in (*_PASSED_ON, *_READ) or value in _NEUTRAL.get(name, (None, {}))",
            "known = True",
            f"{_HOST} -k refused",
        ),
        (
            '"include_prompt": pooling.get("include_prompt", not issubclass(second[0], LLM2VecPooling)),',
            '"include_prompt": pooling.get("include_prompt", False),',
            f"{_HOST} -k does_not_say",
        ),
        (
            'read = {"attention": "bidirectional", **read}',
            "pass",
            f"{_HOST} -k config_leaves_out",
        ),
        ("same = torch.allclose(a[left], b[left], atol=1e-5)", "pass", f"{_HOST} -k pooling"),
        ("for prompt in {*_PROBE_PROMPTS, *prompts.values()}:", "for prompt in _PROBE_PROMPTS:", f"{_HOST} -k tried"),
        (
            "transformer={name: read[name] for name in _PASSED_ON if name in read},",
            "transformer={},",
            f"{_HOST} -k lengths",
        ),
    ),
    *_rows(
        "st_llm2vec/planning.py",
        (
            "said = host.settings if as_saved else said.over(replace(host.settings, attention=None))",
            "said = host.settings",
            f"{_HOST} -k adapter",
        ),
        (
            'elif checkpoint.adapters and "format" not in checkpoint.settings:',
            "elif checkpoint.adapters:",
            f"{_SETTINGS} -k original",
        ),
        (
            "length = min(DEFAULT_MAX_SEQ_LENGTH, positions or DEFAULT_MAX_SEQ_LENGTH)",
            "length = DEFAULT_MAX_SEQ_LENGTH",
            f"{_SETTINGS} -k few_positions",
        ),
        ("as_evaluated = checkpoint.is_original", "as_evaluated = False", f"{_SETTINGS} -k original"),
        (
            'names = [checkpoint.original_name, *(source["name"] for source in checkpoint.sources)]',
            "names = [checkpoint.original_name]",
            f"{_SETTINGS} -k asked_for",
        ),
    ),
    *_rows(
        "st_llm2vec/runtime.py",
        ("return torch.float32 if self.quantize else self.dtype", "return self.dtype", f"{_SETTINGS} -k int8"),
        ('return "cpu" if self.quantize else None', "return None", f"{_SETTINGS} -k int8"),
    ),
    *_rows(
        "st_llm2vec/settings.py",
        (
            'given["prompts"] = {**(below.prompts or {}), **self.prompts}',
            'given["prompts"] = {**self.prompts, **(below.prompts or {})}',
            f"{_SETTINGS} -k lie",
        ),
        (
            'return "format" not in content and not content.keys().isdisjoint({*_ORIGINAL_NAMES, _ORIGINAL_FLAG})',
            "return not content.keys().isdisjoint({*_ORIGINAL_NAMES, _ORIGINAL_FLAG})",
            f"{_SETTINGS} -k one_table",
        ),
    ),
    *_rows(
        "st_llm2vec/encoders.py",
        ("setattr(encoder, name, value)", "pass", "tests/test_encoders.py -k attribute"),
    ),
    *_rows(
        "st_llm2vec/auditing.py",
        (
            "seen[index] = bool(moved.min() > 8 * unmoved.max())",
            "seen[index] = bool(moved.max() > 8 * unmoved.max())",
            "tests/test_bidirectional.py -k earlier_position",
        ),
        (
            "both = [seen.get(i, False) and i not in one_sided for i in range(depth)]",
            "both = [seen.get(i, False) for i in range(depth)]",
            "tests/test_bidirectional.py -k refusal",
        ),
    ),
    *_rows(
        "st_llm2vec/bidirectional.py",
        (
            'widen = sliding_window == "off" and not is_bidirectional(model)',
            'widen = sliding_window == "off"',
            "tests/test_bidirectional.py -k window",
        ),
        ("_set_module_flags(stock, is_causal=True)", "pass", "tests/test_model.py -k alone"),
    ),
    *_rows(
        "st_llm2vec/modules.py",
        (
            "self.packing = self._packing  # proven for one direction: once more for the other",
            "pass",
            f"{_PACKING} -k direction",
        ),
    ),
    *_rows(
        "st_llm2vec/words.py",
        (
            "positions = [[position - 1 for position in word] for word in positions]",
            "pass",
            "tests/test_words.py",
        ),
        ("if word is not None and word >= len(before):", "if word is not None:", "tests/test_words.py"),
        (
            "start, end = start - len(prompt), end - len(prompt)  # noqa: PLW2901 - in the text, as the words are",
            "pass",
            "tests/test_words.py",
        ),
    ),
    *_rows(
        "st_llm2vec/training/mntp.py",
        (
            "key = hashlib.blake2b(ids.numpy().tobytes() + str(self.seed).encode(), digest_size=8).digest()",
            "key = hashlib.blake2b(ids.numpy().tobytes(), digest_size=8).digest()",
            f"{_TRAINING} -k masks",
        ),
        (
            "random = selected & (kind >= 0.8) & (kind < 0.9)",
            "random = selected & (kind >= 0.8)",
            "tests/test_training.py -k rates",
        ),
    ),
    *_rows(
        "st_llm2vec/training/head.py",
        (
            "self.to(decoder.device).requires_grad_(trainable)",
            "self.to(decoder.device)",
            "tests/test_training.py -k frozen",
        ),
        (
            "tensors = {name: (p if self.trainable else p.detach()).to(hidden.dtype) for name, p in tensors.items()}",
            "tensors = {name: p.to(hidden.dtype) for name, p in tensors.items()}",
            "tests/test_training.py -k tied_head",
        ),
    ),
    *_rows(
        "st_llm2vec/training/lora.py",
        ("alpha = 2 * r if alpha is None else alpha", "alpha = r if alpha is None else alpha", f"{_TRAINING} -k card"),
        ("parameter.data = parameter.data.float()", "pass", f"{_TRAINING} -k float32"),
        ("torch.manual_seed(seed)", "pass", f"{_TRAINING} -k seed"),
        ("merged.requires_grad_(True)", "pass", f"{_TRAINING} -k merges"),
        ('if path.rpartition(".")[2] not in ROUTERS:', "if True:", f"{_TRAINING} -k adapts"),
    ),
    *_rows(
        "st_llm2vec/training/simcse.py",
        ("module.attention_dropout = probability", "pass", f"{_TRAINING} -k simcse"),
        ("module.attention_dropout = value", "pass", "tests/test_training.py -k dropout"),
    ),
    *_rows(
        "st_llm2vec/serving/app.py",
        ("vectors = found.vectors[:, : body.dimensions]", "vectors = found.vectors", _SERVER),
        (
            'found = await self.encode(questions, "query", "query")',
            'found = await self.encode(questions, "document", "query")',
            f"{_SERVER} -k encoded_as_queries",
        ),
        (
            "return model.prompts.get(default) or None, None",
            "return None, None",
            _SERVER,
        ),
        ("return model.prompts.get(found) or None, name", "return model.prompts.get(found) or None, None", _SERVER),
        ("return model.prompts[name] or None, None", "return None, None", _SERVER),
        ("expect(model.eval()[0], PREPACK_TOKENS)", "pass", f"{_SERVER} -k slow"),
    ),
    *_rows(
        "st_llm2vec/serving/middleware.py",
        ("and hmac.compare_digest(key, self.key)", "and self.key.startswith(key)", f"{_SERVER} -k key"),
        ('answer.headers["Connection"] = "close"', "pass", "tests/serving/test_parts.py -k never_ends"),
        ('body += message.get("body", b"")', 'body = bytearray(message.get("body", b""))', f"{_SERVER} -k pieces"),
        ("too_large = len(body) > self.limit", "pass", f"{_SERVER} -k pieces"),
        (
            "answering.cancel()  # done already, unless the client left or the server stops",
            "pass",
            "tests/serving/test_parts.py -k leaves",
        ),
    ),
    *_rows(
        "st_llm2vec/serving/batcher.py",
        ("request.vectors[i] = vector", "request.vectors[request.next - 1] = vector", _SERVER),
        ("self.waiting_tokens -= tokens", "pass", "tests/serving/test_parts.py -k waits"),
        ("if request.done.cancelled():  # the caller has gone", "if False:", _SERVER),
    ),
    *_rows(
        "integrations/faiss_llm2vec/access.py",
        ("if self._lock is not None and not self._lock.in_place():", "if False:", f"{_SHARING} -k place"),
        ("if not self._worked and not self._claims:", "if not self._claims:", f"{_DURABILITY} -k second"),
        ("self._lock.hold()", "pass", f"{_SHARING} -k child"),
    ),
    *_rows(
        "st_llm2vec/atomic.py",
        ("if lock.in_place():", "if True:", f"{_SHARING} -k taken_again"),
        (
            'if self._process == os.getpid() and sys.platform != "win32":',
            'if sys.platform != "win32":',
            f"{_SHARING} -k child",
        ),
    ),
    *_rows(
        "integrations/faiss_llm2vec/contents.py",
        ("scores = np.clip(scores, -1, 1)", "pass", f"{_STORE} -k beyond"),
        (
            "order = np.lexsort((found, -scores), axis=1)[:, :k]  # equal scores: the older document first",
            "order = np.lexsort((-found, -scores), axis=1)[:, :k]",
            f"{_STORE} -k oldest",
        ),
        (
            "vectors[order[here]] = segment.vectors[segment.rows_of(docids[order])]",
            "vectors[here] = segment.vectors[segment.rows_of(docids[order])]",
            f"{_STORE} -k order",
        ),
        ("if len(self.docids()) != self.manifest.count:", "if False:", f"{_STRANGERS} -k two_vectors"),
        ("if manifest.count > len(rows):", "if False:", f"{_DURABILITY} -k recover"),
        ("segment.alive &= np.isin(segment.ids, live, assume_unique=True)", "pass", f"{_DURABILITY} -k recover"),
        ("next_id=manifest.next_id + len(change.documents),", "next_id=manifest.next_id,", f"{_STORE} -k ids"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/segments.py",
        ("ids, vectors = ids[order], vectors[order]", "ids = ids[order]", f"{_STORE} -k compact"),
        ("if np.any(np.count_nonzero(candidates >= 0, axis=1) < k):", "if False:", f"{_KINDS} -k reach"),
        (
            "out[real] = chosen @ query if _is_similarity(self.flat) else np.sum((chosen - query) ** 2, axis=1)",
            "out[real] = chosen @ query",
            f"{_KINDS} -k rescored",
        ),
        (
            'bad = ~np.isfinite(squares) if metric != "cosine" else ~(np.abs(squares - 1) <= _UNIT)',
            "bad = ~np.isfinite(squares)",
            f"{_STRANGERS} -k vectors",
        ),
        (
            "right = right and index.d == (-(-dimension // 8) * 8 if binary else dimension)",
            "pass",
            f"{_STRANGERS} -k something",
        ),
        (
            "problems.append(segment.bad_vectors(folder / segment.entry.vectors.name, metric))",
            "pass",
            f"{_STRANGERS} -k vectors",
        ),
    ),
    *_rows(
        "integrations/faiss_llm2vec/database.py",
        ("generation=wanted.generation + 1,", "generation=wanted.generation,", f"{_SHARING} -k generation"),
        ("if not found[docid].sound:", "if False:", f"{_DURABILITY} -k edited"),
        ("if (found := _format(rows[0][0])) not in READABLE:", "if False:", f"{_DURABILITY} -k newer"),
        ("if manifest.count > self.most_rows:", "if False:", f"{_STRANGERS} -k small"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/connections.py",
        ("if before != _signature(path):", "if False:", f"{_SHARING} -k written"),
        ("if beside[-1] in found:", "if False:", f"{_STRANGERS} -k journal"),
        ("if sorted(map(_words, found)) != sorted(map(_words, wanted)):", "if False:", f"{_STRANGERS} -k defines"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/files.py",
        (
            'return None if digest.hexdigest() == file.sha256 else f"{path} is not what was written (its sha256 differs)."',
            "return None",
            f"{_DURABILITY} -k damaged",
        ),
        ("os.fsync(stream.fileno())", "pass", f"{_DURABILITY} -k flushed"),
        ('return b"" if block == _ELSEWHERE else block', "return block", f"{_STRANGERS} -k another"),
        (
            "return drafts + [file for file in ours if file.name not in named]",
            "return drafts + ours",
            f"{_DURABILITY} -k swept",
        ),
    ),
    *_rows(
        "integrations/faiss_llm2vec/manifest.py",
        ("if len(set(names)) < len(names):", "if False:", f"{_STRANGERS} -k twice"),
        (
            "if self.truncate_dim is not None and self.dimension not in (None, self.truncate_dim):",
            "if False:",
            f"{_STRANGERS} -k field",
        ),
        ('if not is_file_name(file["name"]):', "if False:", f"{_STRANGERS} -k name"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/making.py",
        ("return status is not None and status.st_size == 0", "return status is not None", f"{_SHARING} -k others"),
        (
            "return files.folder(path) is not None and not any(path.iterdir())",
            "return files.folder(path) is not None",
            f"{_SHARING} -k others",
        ),
        ("sync_folder(path.parent)", "pass", f"{_DURABILITY} -k has_been_made"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/rows.py",
        (
            'content = f"{docid} {len(id)} {len(text)} {id}{text}{metadata}"',
            'content = f"{docid} {id}{text}{metadata}"',
            f"{_STORE} -k elsewhere",
        ),
    ),
    *_rows(
        "integrations/faiss_llm2vec/searching.py",
        (
            "keep = np.flatnonzero(scores >= (-np.inf if self.score_threshold is None else self.score_threshold))",
            "keep = np.flatnonzero(scores > (-np.inf if self.score_threshold is None else self.score_threshold))",
            f"{_STORE} -k threshold",
        ),
        (
            "return max(self.k, self.fetch_k or max(20, 4 * self.k))",
            "return max(20, 4 * self.k)",
            f"{_STORE} -k mmr",
        ),
    ),
    *_rows(
        "integrations/langchain_llm2vec/vectorstores.py",
        (
            '"l2": lambda score: 1 / (1 - score),',
            '"l2": lambda score: 1 / (1 - 2 * score),',
            "tests/langchain_llm2vec/test_vectorstores.py -k relevance",
        ),
        (
            '"cosine": lambda score: max(0.0, score),',
            '"cosine": lambda score: (1 + score) / 2,',
            "tests/langchain_llm2vec/test_vectorstores.py -k relevance",
        ),
    ),
    *_rows(
        "integrations/langchain_llm2vec/embeddings.py",
        (
            'options = {"show_progress_bar": self.show_progress, **(self.query_encode_kwargs or self.encode_kwargs)}',
            'options = {"show_progress_bar": self.show_progress, **self.query_encode_kwargs}',
            "tests/langchain_llm2vec/test_embeddings.py",
        ),
    ),
    *_rows(
        "integrations/llama_index_llm2vec/embeddings.py",
        (
            "setting = (fingerprint, self.model_name, self.max_length, self.normalize, prompt)",
            "setting = (fingerprint, self.model_name, self.max_length, prompt)",
            "tests/llama_index_llm2vec/test_embeddings.py -k settings",
        ),
        (
            'return options if prompt is None else {**options, "prompt": prompt}',
            "return options",
            "tests/llama_index_llm2vec/test_embeddings.py",
        ),
    ),
    *_rows(
        "integrations/llama_index_llm2vec/vector_stores.py",
        ("self._store.delete(replaced)", "pass", "tests/llama_index_llm2vec/test_vector_store.py"),
        (
            'fields |= dict.fromkeys(_REF_DOC_ID, node.ref_doc_id)  # not the text "None"',
            "pass",
            "tests/llama_index_llm2vec/test_vector_store.py",
        ),
        (
            "if query.node_ids or (query.node_ids is not None and query.query_str is None):",
            "if query.node_ids:",
            "tests/llama_index_llm2vec/test_vector_store.py",
        ),
    ),
    *_rows(
        "integrations/llama_index_llm2vec/filters.py",
        ("Op.NIN: _not(_one_of),", "Op.NIN: _one_of,", "tests/llama_index_llm2vec/test_conformance.py -k operator"),
        (
            'blank = _where_read(store, {key: {"$in": [None, ""]}}, lambda record: record.metadata[key] in (None, ""))',
            'blank = _where_read(store, {key: {"$in": [None, ""]}}, lambda record: True)',
            "tests/llama_index_llm2vec/test_filters.py",
        ),
    ),
    *_rows(
        "st_llm2vec/backend/attention.py",
        (
            "seen = (ahead <= 0) & (ahead > -window) if causal else ahead.abs() <= window",
            "seen = (ahead <= 0) & (ahead > -window) if causal else ahead.abs() < window",
            f"{_PACKING} -k reaches",
        ),
        (
            "seen = (ahead <= 0) & (ahead > -window) if causal else ahead.abs() <= window",
            "seen = (ahead <= 0) & (ahead >= -window) if causal else ahead.abs() <= window",
            f"{_PACKING} -k window",
        ),
        ("longest = batch.lengths[-1]", "longest = batch.lengths[0]", f"{_PACKING} -k flash"),
        (
            "reach = (min(window - 1, longest), 0) if call.is_causal else (min(window, longest),) * 2",
            "reach = (min(window, longest), 0) if call.is_causal else (min(window, longest),) * 2",
            f"{_PACKING} -k gpus",
        ),
        (
            'return bool(getattr(module, "is_causal", True) if said is None else said)',
            'return bool(getattr(module, "is_causal", True))',
            f"{_PACKING} -k direction",
        ),
    ),
    *_rows(
        "st_llm2vec/backend/packed_batch.py",
        (
            "if batch and (len(batch) + 1) * lengths[batch[0]] > budget:",
            "if batch and len(batch) * lengths[batch[0]] > budget:",
            f"{_PACKING} -k batches",
        ),
    ),
    *_rows(
        "st_llm2vec/backend/deciding.py",
        (
            'if batch is None and not features["attention_mask"][:, 0].all():',
            "if False:",
            f"{_PACKING} -k left",
        ),
    ),
    *_rows(
        "integrations/faiss_llm2vec/manifest.py",
        (
            "if self.count > sum(entry.rows for entry in self.segments):",
            "if False:",
            _STRANGERS,
            "Database.live counts the documents, and _without_vector finds those that no segment has; this says it earlier",
        ),
    ),
    *_rows(
        "st_llm2vec/late_chunking.py",
        (
            "start = max(fitting, key=lambda start: _distance(start, start + reach, a, b, count))",
            "start = fitting[0]",
            "tests/test_late_chunking.py -k windows",
        ),
        (
            "if not has_token(tokenizer, document[start:stop]):",
            "if False:",
            "tests/test_late_chunking.py -k neighbours",
        ),
    ),
    *_rows(
        "st_llm2vec/ingestion/passages.py",
        (
            'return f"{metadata[LATE]} {text}" if metadata.get(LATE) else text',
            "return text",
            "tests/test_late_chunking.py -k corpus_is_encoded",
        ),
    ),
    *_rows(
        "st_llm2vec/ingestion/splitting.py",
        (
            "passage._replace(document=document,",
            "passage._replace(document=passage.text, start=0,",
            "tests/test_late_chunking.py -k pages",
        ),
    ),
    *_rows(
        "st_llm2vec/workers.py",
        ("_ATTEMPTS = 2", "_ATTEMPTS = 3", "tests/test_workers.py -k dies"),
        ("_AHEAD * count - len(tasks)", "100 - len(tasks)", "tests/test_workers.py -k bounded"),
    ),
    *_rows(
        "st_llm2vec/shard_files.py",
        ('and sha256_of(path) == entry["sha256"]', "", "tests/cli/test_from_vectors.py -k no_good"),
    ),
    *_rows(
        "st_llm2vec/stored_vectors.py",
        ("passage.number - 1 for", "passage.number - 2 for", "tests/cli/test_from_vectors.py -k would_have"),
    ),
    *_rows(
        "st_llm2vec/shards.py",
        ("known.get(passage.content) if known else None", "None", "tests/test_corpus.py -k hundred"),
        ("ordered=False", "ordered=True", "tests/test_workers.py -k slow_worker_has"),
    ),
    *_rows(
        "integrations/faiss_llm2vec/segments.py",
        ("if group and size + added > _MOST_BYTES:", "if False:", f"{_STORE} -k compact_holds"),
    ),
]
MUTANTS += [
    Mutant(
        "integrations/faiss_llm2vec/files.py",
        'fits = outer[0] == b"IxMp" and _FLAT.get(inner[0]) == METRICS[metric] and numbers == rows * dimension',
        'fits = outer[0] == b"IxMp" and _FLAT.get(inner[0]) == METRICS[metric]',
        f"{_STRANGERS} -k vector_file",
        equivalent="FAISS refuses such a length, too; this says it before FAISS takes memory for it",
    ),
    Mutant(
        "integrations/faiss_llm2vec/connections.py",
        'sql.execute("PRAGMA synchronous = FULL")  # COMMIT returns when the disk has it',
        "pass",
        f"{_DURABILITY} -k flushed",
        equivalent="SQLite's own default; some systems build it with another",
    ),
]
