"""What a run leaves beside its encoder: settings, data hashes, learning curve, scores, and the adapter of the stage.

OUTPUT/checkpoints/train.json     what the run was told, so that it is resumed as it began
OUTPUT/training/settings.json     the same, with the data's hashes, seeds, steps and scores
OUTPUT/training/curve.jsonl       one JSON object a logged step; curve.svg where matplotlib is installed
OUTPUT/adapter/                   the LoRA adapter, in peft's format, with the encoder's settings
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerState

from .. import __version__
from ..atomic import published, published_folder
from ..checkpoints import SETTINGS_FILE
from ..errors import InvalidInputError
from ..model import LLM2Vec
from ..recipes import FIELDS, TrainingSettings
from ..runtime import as_torch_dtype
from ..vetting import read_json

STATE = "train.json"
LOSS = "loss.safetensors"


@dataclass(frozen=True)
class Result:
    """What a stage came to.

    Args:
        folder: The encoder.
        steps: Optimizer steps, those before an interruption included.
        rows: Rows of all data sets, after limits and weights; those of a stream are not counted.
        before: Scores on the evaluation data before the first step, by name; empty without such data.
        after: The same of the saved encoder.
    """

    folder: Path
    steps: int
    rows: int
    before: dict[str, float]
    after: dict[str, float]


class Run:
    """The record of one stage: begun, resumed as it began, and ended.

    Args:
        output: Where the encoder will lie.
        settings: What the stage is told now.
        resume: Whether a run in the output is gone on with; if not, there must be none.

    Raises:
        FileExistsError: The output has something in it, and resume was not asked for.
        InvalidInputError: The run to resume has other settings.
    """

    def __init__(self, output: Path, settings: TrainingSettings, *, resume: bool) -> None:
        if not resume and output.exists() and (output.is_file() or any(output.iterdir())):
            raise FileExistsError(f"{output} exists already. Continue its run with --resume, or choose another folder.")
        self.output, self.settings, self.resume = output, settings, resume
        self.checkpoints = output / "checkpoints"
        self.data: dict[str, Any] = {}
        self.evaluation: str | None = None
        self.guide: str | None = None
        self.state = read_json(self.checkpoints / STATE)
        before, now = self.state.get("must_stay", {}), json.loads(json.dumps(settings.must_stay()))
        if self.state and self.state.get("length") != self._length and settings.warmup_steps is None:
            now["warmup_steps"] = before.get("warmup_steps")  # it follows the length, which may change
        for key in FIELDS if self.state else ():  # the objective first
            if before.get(key) != now.get(key):
                raise InvalidInputError(
                    f"The run in {output} has {key}={before.get(key)!r}, not {now.get(key)!r}. Resume it as it began."
                )

    def take_data(self, data: dict[str, Any], evaluation: str | None) -> None:
        """Take the records of the data sets and the hash of the evaluation file.

        Raises:
            InvalidInputError: They are not those of the run to resume.
        """
        self.data, self.evaluation = data, evaluation
        if not self.state:
            return
        hashes = {name: (self.state["data"][name]["sha256"], each["sha256"]) for name, each in data.items()}
        hashes["eval_file"] = (self.state["evaluation"], evaluation)
        for name, (began, is_now) in hashes.items():
            if began != is_now:
                raise InvalidInputError(
                    f"The data set {name!r} has changed since the run in {self.output} began. Give the data that it "
                    "began with, or another output."
                )

    def take_guide(self, fingerprint: str | None) -> None:
        """Take what identifies the guide.

        Raises:
            InvalidInputError: It is another one than that of the run to resume.
        """
        self.guide = fingerprint
        if self.state.get("guide", fingerprint) != fingerprint:
            raise InvalidInputError(
                f"The guide {self.settings['guide']!r} has changed since the run in {self.output} began. Give the one "
                "that it began with, or another output."
            )

    @property
    def finished(self) -> bool:
        """Whether the encoder is there, trained for as long as is asked."""
        ended = "after" in self.state and (self.output / "modules.json").is_file()
        return ended and self.state["length"] == self._length

    @property
    def _length(self) -> list[float | None]:
        return [self.settings["max_steps"], self.settings.epochs]

    @property
    def before(self) -> dict[str, float] | None:
        """The scores before the first step; None where they have not been taken."""
        scores: dict[str, float] | None = self.state.get("before")
        return scores

    def result(self) -> Result:
        """What the finished stage came to."""
        rows = sum(data.get("rows", 0) for data in self.data.values())
        return Result(self.output, self.state["steps"], rows, self.state["before"], self.state["after"])

    def begin(self, before: dict[str, float], best: tuple[str, bool], *, write: bool) -> None:
        """Record what the stage is told, the scores before the first step, and which of them says what is best."""
        told: dict[str, Any] = {
            "settings": self.settings.to_dict(),
            "must_stay": self.settings.must_stay(),
            "length": self._length,
        }
        told |= {"data": self.data, "evaluation": self.evaluation, "guide": self.guide}
        self.state = {**told, "before": before, "best": list(best)}
        if write:
            write_json(self.checkpoints / STATE, self.state)

    def save_adapter(self, model: LLM2Vec, max_seq_length: int, *, write: bool) -> None:
        """Save the stage's adapter beside the encoder that is to come, with that encoder's settings."""
        in_training, model.max_seq_length = model.max_seq_length, max_seq_length
        if write:
            dtype = as_torch_dtype(self.settings["adapter_dtype"]) or torch.float32
            save_adapter(model, self.output / "adapter", self.settings["model"], dtype)
        model.max_seq_length = in_training

    def end(self, model: LLM2Vec, state: TrainerState, after: dict[str, float], *, write: bool) -> Result:
        """Save the encoder with its record and card; only then is the stage finished."""
        scores = {"before": self.state["before"], "after": after}
        told = {"settings": portable(self.settings), "data": self.data, "steps": state.global_step, **scores}
        if self.evaluation:
            told["evaluation"] = self.evaluation
        if self.settings["keep_best"]:
            told["best_step"] = state.best_global_step
        model.provenance.setdefault("training", []).append(told)
        self.state |= {"length": self._length, "steps": state.global_step, "after": after}
        if write:
            curve = [{"step": 0, **scores["before"]}, *curve_of(state.log_history)]
            write_run(self.output / "training", told, curve)
            model.save_pretrained(str(self.output))
            write_json(self.checkpoints / STATE, self.state)
        return self.result()


def portable(settings: TrainingSettings) -> dict[str, Any]:
    """The settings as a card may say them: names of files and folders, no paths of the machine."""
    kept = {name: value for name, value in settings.to_dict().items() if name not in ("data", "output")}
    for name in ("model", "eval_file", "teacher", "guide"):
        if name in kept and Path(kept[name]).exists():
            kept[name] = Path(kept[name]).name
    return kept


def write_json(file: Path, content: Any) -> None:
    """Writes a JSON file that is there complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with published(file) as draft:
        draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_adapter(model: LLM2Vec, folder: Path, base: str, dtype: torch.dtype) -> None:
    """Save the adapter that the model carries, in peft's format; `load(base, adapter=folder)` is the encoder.

    Args:
        base: The model below it: a hub id, or a folder, of which the name is kept.
        dtype: Of the adapter's tensors; it was trained in float32.
    """
    decoder = model[0].model
    with published_folder(folder) as draft:
        with warnings.catch_warnings():  # peft looks for a config.json in the decoder's folder
            warnings.filterwarnings("ignore", "Could not find a config file in")
            decoder.save_pretrained(draft)
        config = json.loads((draft / "adapter_config.json").read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = Path(base).name if Path(base).exists() else base
        write_json(draft / "adapter_config.json", config)
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(draft / "adapter_model.safetensors").items()}
        save_file(tensors, draft / "adapter_model.safetensors", metadata={"format": "pt"})
        settings = {"format": 1, **model.settings(), "provenance": model.provenance}
        write_json(draft / SETTINGS_FILE, settings)


def take_checkpoint(model: LLM2Vec, checkpoint: Path) -> None:
    """Put the trained weights of a trainer's checkpoint into the model that they were saved from."""
    decoder = model[0].model
    adapter = checkpoint / "adapter_model.safetensors"
    if adapter.is_file():
        own = {name.replace(".default.", "."): weight for name, weight in decoder.named_parameters() if "lora_" in name}
        stored = {name.removeprefix("base_model.model."): tensor for name, tensor in load_file(adapter).items()}
    else:
        own = dict(decoder.named_parameters())
        stored = load_file(checkpoint / "model.safetensors")
    assert own.keys() >= stored.keys(), "a checkpoint of another model"
    assert adapter.is_file() is False or own.keys() == stored.keys(), "an adapter of another model"
    with torch.no_grad():
        for name, tensor in stored.items():
            own[name].copy_(tensor)


def save_loss(loss: nn.Module, checkpoint: Path) -> None:
    """Save what a loss learns and keeps beside the model; the last file of a checkpoint."""
    with published(checkpoint / LOSS) as draft:
        save_file({name: weight.detach().contiguous() for name, weight in _kept(loss).items()}, draft)


def load_loss(loss: nn.Module, checkpoint: Path) -> None:
    """Put what `save_loss` saved back."""
    stored, own = load_file(checkpoint / LOSS), _kept(loss)
    if stored.keys() != own.keys():
        raise InvalidInputError(f"{checkpoint / LOSS} is of another loss. Remove {checkpoint}.")
    with torch.no_grad():
        for name, tensor in stored.items():
            own[name].copy_(tensor)


def _kept(loss: nn.Module) -> dict[str, Tensor]:
    """What a loss learns, and the buffers that it began with."""
    return {**beside_model(loss), **dict(loss.named_buffers(recurse=False))}


def beside_model(loss: nn.Module) -> dict[str, nn.Parameter]:
    """Return what a loss learns beside the model, by name."""
    models = [module for module in loss.modules() if isinstance(module, LLM2Vec)]
    theirs = {id(parameter) for model in models for parameter in model.parameters()}
    return {name: p for name, p in loss.named_parameters() if p.requires_grad and id(p) not in theirs}


def keep_share(model: LLM2Vec, first: Mapping[str, Tensor], share: float) -> None:
    """Leave a share of what the stage learned in the weights: of its adapter, or between the first weights and these.

    What is kept of the model before the stage serves texts unlike the stage's own (WiSE-FT, Wortsman et al. 2022, arXiv
    2109.01903).
    """
    decoder = model[0].model
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if first:
                weight.copy_(torch.lerp(first[name].float(), weight.float(), share))
            elif "lora_B" in name:
                weight.mul_(share)


def curve_of(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The logged steps of a trainer, without its times: a resumed run has the same."""
    kept = [
        {key: value for key, value in row.items() if not key.endswith(("runtime", "per_second", "preparation_time"))}
        for row in history
    ]
    return [row for row in kept if {"loss", "eval_loss"} & row.keys() or any(key.startswith("eval_") for key in row)]


def write_run(folder: Path, settings: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]) -> None:
    """Writes settings, numbers and plot of a run."""
    with published_folder(folder) as draft:
        write_json(draft / "settings.json", {"st_llm2vec": __version__, **settings})
        lines = "".join(json.dumps(row) + "\n" for row in curve)
        (draft / "curve.jsonl").write_text(lines, encoding="utf-8")
        if find_spec("matplotlib"):
            _plot(draft / "curve.svg", curve)


def _plot(file: Path, curve: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.figure import Figure  # without pyplot: no window, no state

    scores = sorted({key for row in curve for key in row if key.startswith("eval_")})
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots(1, 1 + bool(scores), squeeze=False)[0]
    for ax, names in zip(axes, (["loss"], scores), strict=False):
        for name in names:
            points = [(row["step"], row[name]) for row in curve if name in row]
            ax.plot(*zip(*points, strict=True), label=name, linewidth=1.2) if points else None
        ax.set_xlabel("step")
        ax.legend(frameon=False, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})
