"""One training stage from rows to a saved encoder, without a terminal; and all stages of a recipe, in their order.

A run leaves `OUTPUT/checkpoints/checkpoint-N` (adapter + optimizer, to resume from) and, at its end, the merged encoder
in OUTPUT, with what records.py lists. Killed at any point, it ends with the same weights after `resume=True`.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from torch import nn
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..atomic import only_writer
from ..errors import InvalidInputError
from ..loading import load
from ..model import LLM2Vec
from ..recipe_files import Recipe
from ..recipes import TrainingSettings
from .arguments import SAVE_STEPS, arguments, column_of, prompts_of
from .data import Source, read_source
from .guided import guide_fingerprint
from .lora import add_lora, merge_lora
from .objectives import OBJECTIVES, Objective
from .processes import share_gradients
from .progress import ToldSteps
from .records import LOSS, Result, Run, beside_model, keep_share, load_loss, save_loss, take_checkpoint
from .scoring import Scoring, read_scoring
from .streams import check_streams

Log = Callable[[str], None]


def train_stage(
    settings: TrainingSettings,
    *,
    resume: bool = False,
    log: Log | None = None,
    evaluator: SentenceEvaluator | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Result:
    """Train one stage and save the merged encoder, its adapter and its record.

    Args:
        settings: With model, data and output.
        resume: Go on from the last checkpoint in the output; with the same settings and data.
        log: Takes one line of text for each thing to know, such as a logged step.
        evaluator: One of the host's, in place of `eval_file`.
        callbacks: More of the host's callbacks.

    Returns:
        Where the encoder lies, and its scores.

    Raises:
        InvalidInputError: Settings or rows that cannot be used, or that are not those of the run to resume; or another
            run is writing the output.
        FileExistsError: The output has something in it, and resume was not asked for.

    Example:
        >>> texts = ["Bears sleep through the winter.", "The bank raised its rates.", "Bread rises."]
        >>> train_stage(TrainingSettings("simcse", "llm2vec-tiny", {"mine": texts}, "step3", max_steps=1)).steps
        1
    """
    settings.require_complete()
    processes = PartialState(cpu=bool(settings["cpu"]))
    with only_writer(Path(settings["output"])) if processes.is_main_process else nullcontext():
        run = Run(Path(settings["output"]), settings, resume=resume)
        return _stage(run, processes, log or (lambda line: None), evaluator, callbacks)


def _stage(
    run: Run,
    processes: PartialState,
    log: Log,
    evaluator: SentenceEvaluator | None,
    callbacks: Sequence[TrainerCallback],
) -> Result:
    settings, output, resume = run.settings, run.output, run.resume
    objective = OBJECTIVES[settings.objective]
    sources, scoring = _read(settings, evaluator)
    run.take_data({name: source.record() for name, source in sources.items()}, scoring.sha256)
    if run.finished:
        log(f"{output} is finished and left as it is.")
        return run.result()
    processes.wait_for_everyone()  # nothing is written before each has looked
    last_file = LOSS if objective.loss_learns(settings) else TRAINER_STATE_NAME
    last = last_checkpoint(run.checkpoints, log, last_file) if resume else None
    if resume:
        log(f"Resuming from {last}." if last else f"{run.checkpoints} has no checkpoint yet; starting.")
    if objective.prepare is not None:
        width = None
        if run.before is None:  # what is wrong with the student is said before a teacher works for hours
            width = _model(settings, objective).get_embedding_dimension()
        with processes.main_process_first():
            sources, evaluation = objective.prepare(sources, scoring.data, settings, run.checkpoints, log, width)
            scoring = replace(scoring, data=evaluation)
    model = _model(settings, objective)
    own_length = model.max_seq_length
    model.train()  # ordinary layers in one dtype, before an optimizer holds their weights
    model.max_seq_length = settings["max_seq_length"] or own_length
    trainer = _trainer(model, settings, sources, scoring, run.checkpoints, [ToldSteps(log), *callbacks])
    run.take_guide(guide_fingerprint(trainer.loss))  # type: ignore[arg-type]
    if run.before is None:
        before = scoring.score(trainer, own_length)
        run.begin(before, scoring.best(), write=trainer.is_world_process_zero())
    _train(trainer, run, objective, last, log)
    if settings["full"]:
        model.provenance.setdefault("stages", []).append(settings.objective)
    else:
        run.save_adapter(model, own_length, write=trainer.is_world_process_zero())
        merge_lora(model)
    after = scoring.score(trainer, own_length)
    model.max_seq_length = own_length
    result = run.end(model, trainer.state, after, write=trainer.is_world_process_zero())
    processes.wait_for_everyone()  # the next stage opens what the first one wrote
    streamed = any(source.stream is not None for source in sources.values())
    read = "a stream" if streamed else f"{result.rows} rows"
    log(f"{output}: {settings.objective}, {result.steps} steps on {read}.")
    return result


def _train(trainer: SentenceTransformerTrainer, run: Run, objective: Objective, last: str | None, log: Log) -> None:
    """Train from the last checkpoint on, and leave in the model what the stage is to keep."""
    settings, model, loss = run.settings, trainer.model, trainer.loss
    assert isinstance(model, LLM2Vec)
    assert isinstance(loss, nn.Module)  # which the host types as one, or several by data set
    first = copy.deepcopy(model[0].model.state_dict()) if settings["share"] and settings["full"] else {}
    if settings["keep_best"]:
        trainer.args.metric_for_best_model, trainer.args.greater_is_better = run.state["best"]
    if objective.loss_learns(settings):
        trainer.add_callback(_LossState(loss))
        if last is not None:
            load_loss(loss, Path(last))
    model.train()
    set_seed(settings["seed"])  # whatever was scored before
    with objective.around(model, settings):
        trainer.train(resume_from_checkpoint=last)
    best = trainer.state.best_model_checkpoint if settings["keep_best"] else None
    if best is not None:
        take_checkpoint(model, Path(best))
        log(f"The best on the evaluation data: step {trainer.state.best_global_step}.")
    if settings["share"]:
        keep_share(model, first, settings["share"])


def train_all(recipe: Recipe, *, resume: bool = False, log: Log | None = None) -> dict[str, Result]:
    """Train the stages of a recipe, each from the result of the one that it is after; finished ones are skipped.

    Raises:
        As `train_stage`.

    Example:
        >>> train_all(read_recipe(["recipe.toml"]))["simcse"].steps
        1
    """
    said = log or (lambda line: None)
    unfinished = set()
    for name, settings in recipe.stages.items():  # all files, before the first stage trains for hours
        run, start = Run(Path(settings["output"]), settings, resume=resume), recipe.after[name]
        if run.state and start in unfinished:
            raise InvalidInputError(
                f"The run in {run.output} began from a {start!r} that is to be trained further. Remove that folder, "
                f"or give {start!r} the length that it had."
            )
        if not run.finished:
            unfinished.add(name)
        _read(settings)
        said(f"{name}: {settings.objective} from {settings['model']}.")
    return {name: train_stage(settings, resume=resume, log=log) for name, settings in recipe.stages.items()}


class _LossState(TrainerCallback):  # type: ignore[misc]
    """Keeps what a loss learns beside the model, such as a projection, in each checkpoint."""

    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            save_loss(self.loss, Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


def _read(settings: TrainingSettings, evaluator: SentenceEvaluator | None = None) -> tuple[dict[str, Source], Scoring]:
    """All files of a stage, before its model is loaded."""
    objective, data = OBJECTIVES[settings.objective], settings.data or {}
    shape: dict[str, Any] = {"pairs": objective.pairs, "least": objective.least}
    check_streams(settings)
    sources = {name: read_source(name, each, seed=settings["seed"], **shape) for name, each in data.items()}
    objective.require(sources, settings)
    scoring = Scoring(evaluator) if evaluator is not None else read_scoring(settings, **shape)
    if settings["keep_best"] and scoring == Scoring():
        raise InvalidInputError("keep_best needs eval_file, on which the best checkpoint is chosen.")
    scored = settings["eval_steps"] or SAVE_STEPS  # a run may end before
    if settings["keep_best"] and settings.save_steps not in (None, scored):
        raise InvalidInputError(
            f"keep_best needs a checkpoint where it scores: save_steps={settings.save_steps} must be "
            f"eval_steps={scored}. Leave save_steps out."
        )
    return sources, scoring


def _model(settings: TrainingSettings, objective: Objective) -> LLM2Vec:
    """The encoder that a stage starts from, with the prompts that it is to have."""
    model = load(
        settings["model"],
        dtype=settings["dtype"] or ("float32" if settings["full"] else None),
        device="cpu" if settings["cpu"] else None,
        **{name: settings[name] for name in ("pooling_mode", "template", "attention") if settings[name]},
    )
    if late := [stage for stage in model.provenance.get("stages", []) if stage in objective.never_after]:
        raise InvalidInputError(
            f"{settings['model']} has been through {late[0]}; {settings.objective} goes before it. Start from the "
            "decoder or an earlier stage."
        )
    prompts = {"query": settings["query_prompt"], "document": settings["document_prompt"]}
    model.prompts.update({name: prompt for name, prompt in prompts.items() if prompt})
    return model


def _trainer(
    model: LLM2Vec,
    settings: TrainingSettings,
    sources: Mapping[str, Source],
    scoring: Scoring,
    checkpoints: Path,
    callbacks: Sequence[TrainerCallback],
) -> SentenceTransformerTrainer:
    """The host's trainer; what cannot be trained is refused before anything is written."""
    objective = OBJECTIVES[settings.objective]
    datasets, evaluation, prompts = _datasets(model, settings, sources, scoring.data)
    if not settings["full"]:
        add_lora(
            model,
            settings.objective,
            r=settings["lora_r"],
            alpha=settings["lora_alpha"],
            dropout=settings["lora_dropout"],
            target_modules=settings["lora_targets"] and list(settings["lora_targets"]),
            seed=settings["seed"],
        )
    if settings["gradient_checkpointing"]:
        decoder = model[0].model  # transformers has a new name for it, and warns of the old one
        getattr(decoder, "activation_checkpointing_enable", decoder.gradient_checkpointing_enable)(
            {"use_reentrant": False}
        )
    loss = objective.loss(model, settings, sources)
    share_gradients(beside_model(loss).values())
    trainer = _Trainer(
        model=model,
        args=arguments(
            settings,
            prompts,
            scoring,
            batch_sampler=objective.batch_sampler,
            checkpoints=checkpoints,
            learning_rates=_slow_embeddings(model, loss, settings),
        ),
        train_dataset=DatasetDict(datasets) if len(datasets) > 1 else next(iter(datasets.values())),
        eval_dataset=evaluation,
        evaluator=objective.evaluator(loss) if scoring.data else scoring.evaluator,
        loss=loss,
        data_collator=objective.collator(model, settings),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _datasets(
    model: LLM2Vec, settings: TrainingSettings, sources: Mapping[str, Source], evaluation: Source | None
) -> tuple[dict[str, Dataset], Dataset | None, dict[str, str]]:
    """The data sets, that of the evaluation, and all prompts by column; rows of it have those of the first data set."""
    objective = OBJECTIVES[settings.objective]
    every = {name: (source, name) for name, source in sources.items()}  # and whose prompts it has
    if evaluation is not None:
        every[""] = evaluation, next(iter(sources))
    datasets = {name: objective.dataset(model, settings, source) for name, (source, _) in every.items()}
    prompts = {
        column_of(name, column): prompt
        for name, (source, own) in every.items()
        for column, prompt in zip(source.columns, prompts_of(settings, own, len(source.columns)), strict=True)
    }
    if any(prompts.values()):
        for name, (source, _) in every.items():
            names = {column: column_of(name, column) for column in source.columns}
            datasets[name] = datasets[name].rename_columns(names)
    last = datasets.pop("", None)
    return datasets, last, prompts if any(prompts.values()) else {}


class _Trainer(SentenceTransformerTrainer):
    """The host's, in which one process saves a checkpoint and not each of them."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        together = self.is_fsdp_enabled or self.is_deepspeed_enabled  # each has a part of the weights
        if self.args.should_save or together:
            super()._save(output_dir, state_dict)


def _slow_embeddings(model: LLM2Vec, loss: nn.Module, settings: TrainingSettings) -> dict[str, float]:
    """The learning rate of the token embeddings, by the pattern of their name in the loss."""
    if settings["embedding_learning_rate"] is None:
        return {}
    embeddings = model[0].model.get_input_embeddings().weight
    (name,) = [name for name, parameter in loss.named_parameters() if parameter is embeddings]
    return {f"^{re.escape(name)}$": settings["embedding_learning_rate"]}


def last_checkpoint(folder: Path, log: Log = lambda line: None, last_file: str = TRAINER_STATE_NAME) -> str | None:
    """The last checkpoint that was written to its end: the trainer's state is its last file, or one after it."""
    found = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in reversed(found):
        if _is_json(path / TRAINER_STATE_NAME) and (path / last_file).is_file():
            return str(path)
        log(f"{path} was not written to its end and is left out.")
    return None


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
