"""Stage 1: a tokenizer, and a decoder that starts as a table of token vectors learned from the teacher.

python recipes/tiny/start.py --data DIR --config recipes/tiny/llm2vec-tiny.toml   # resumes where it was stopped

Only data under CC BY, CC BY-SA, CC0 or MIT reaches the weights. No split of STS-B and no MRPC row is used: their
sentences are in the test.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast, set_seed

from st_llm2vec.recipes import TrainingSettings
from st_llm2vec.training import distill_static, read_recipe
from st_llm2vec.training.data import read_source
from st_llm2vec.training.distill import FOLDER
from st_llm2vec.training.teacher import Teacher, asked_of

sys.path.append(str(Path(__file__).parents[1]))
from prepare import rows

# Llama shape: 16,384 * 256 token vectors + 4 layers = 7.60 M parameters, 15.2 MB in float16.
MODEL = {
    "vocab_size": 16_384,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
}
SPECIAL_TOKENS = ["<|pad|>", "<|eot|>", "<|mask|>"]
SCALE = 0.5  # root mean square of the token vectors
QUIET = 0.005  # of the weights through which layers write, so that the decoder starts as the mean of its token vectors
LONGEST = 0.98  # token vectors beyond this quantile of their lengths are cut to it


def train_tokenizer(data: Path) -> PreTrainedTokenizerFast:
    """Lower-cased byte-level BPE without BOS; the leading blank makes a word the same at the start and inside.

    Blanks around a text are dropped, so a prompt may end in one, and every text is closed by the end token, so even
    the empty one has a vector: with both, stock `Transformer` + `Pooling` read exactly LLM2Vec's span.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MODEL["vocab_size"],
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=True,
    )
    texts = (row["text"] for name in ("wiki_text", "wiki_sentences") for row in rows(data, name, "train"))
    tokenizer.train_from_iterator(texts, trainer)
    pad, end, mask = SPECIAL_TOKENS
    end_id = tokenizer.token_to_id(end)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, end_id)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=end, mask_token=mask, model_max_length=512
    )


def learned_token_vectors(settings: TrainingSettings, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Token vectors in the space that the stage learns, without its last dimension, fitted to the teacher's texts.

    What the teacher is asked for here, the stage does not ask again.
    """
    shape = {"pairs": True, "least": 1, "seed": settings["seed"]}
    asked = asked_of(read_source(name, each, **shape) for name, each in settings.data.items())
    teacher = Teacher(settings, Path(settings["output"]) / "checkpoints" / FOLDER, print)
    static = distill_static(
        teacher.model,
        dimensions=MODEL["hidden_size"] - 1,
        texts=[text for _, text in asked],
        text_vectors=teacher.vectors(asked),
        tokenizer=tokenizer,
        seed=settings["seed"],
    )
    return static[0].embedding.weight.detach().cpu()


def decoder_of(vectors: torch.Tensor, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaModel:
    """A decoder whose vectors start as the mean of the token vectors, long ones counting more.

    Llama's norms bring every token to one length, which loses how much each counts. So the last dimension makes all
    equally long beforehand, and the last norm leaves it out.
    """
    set_seed(seed)
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    model = LlamaModel(LlamaConfig(**MODEL, **special, bos_token_id=None))
    vectors = vectors / vectors.square().mean().sqrt() * SCALE
    lengths = vectors.norm(dim=1).clamp(min=1e-12)
    longest = lengths.quantile(LONGEST)
    vectors = vectors * (longest / lengths).clamp(max=1)[:, None]
    rest = (longest**2 - vectors.square().sum(1)).clamp(min=0).sqrt()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                torch.nn.init.normal_(weight, std=QUIET)
        model.embed_tokens.weight.copy_(torch.cat([vectors, rest[:, None]], 1))
        model.norm.weight[-1] = 0
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets, <name>/<split>.jsonl.xz")
    parser.add_argument("--config", type=Path, required=True, help="the recipe, whose model is what this writes")
    args = parser.parse_args()
    settings = read_recipe([args.config]).stages["distill"]
    out = Path(settings["model"])
    if (out / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    else:
        tokenizer = train_tokenizer(args.data)
        tokenizer.save_pretrained(out)
    model = decoder_of(learned_token_vectors(settings, tokenizer), tokenizer, settings["seed"])
    print(f"{out}: {model.num_parameters():,} parameters")
    model.save_pretrained(out)


if __name__ == "__main__":
    main()
