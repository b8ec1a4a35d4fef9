"""The callbacks' resume state: what they have seen goes into a checkpoint and back, never what they were told.

Some of Lightning's would also take back their settings, so that another one on the command line did nothing.
"""

import io
import os
import pickle
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from diffusion_lightning.training.recipe import plain


def keep_settings(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Change the callbacks' states in a checkpoint, before they are read, so that the trainer's settings hold.

    A ``Timer``, the trainer's ``max_time`` among them, counts from this start on. An ``EarlyStopping`` that had ended
    the training has its patience anew; while ``min_epochs`` or ``min_steps`` keep the training going, it still ends it
    then. What is named by what the run has measured takes its name of then (``go_on_from``).
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if (go_on_from := getattr(callback, "go_on_from", None)) is not None:
            go_on_from(checkpoint, trainer.lightning_module, trainer.datamodule)  # type: ignore[attr-defined]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = checkpoint.get("callbacks", {}).get(callback.state_key)
        if state is None:
            continue
        if isinstance(callback, Timer):
            state.pop("time_elapsed", None)
        elif isinstance(callback, EarlyStopping):
            _keep_patience(callback, state, _has_ended(trainer, checkpoint))
        elif isinstance(callback, ModelCheckpoint) and "best_k_models" in state:
            _keep_number(callback, state)


def follow_move(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Let a checkpoint's record of a run's best checkpoints name them where they are now.

    A run's folder may have been moved, copied or named from another working directory since it was written. Lightning
    would forget what is best, and keep the next one measured beside it. Files that are not there are forgotten.

    Args:
        trainer: whose ModelCheckpoints know their folders.
        checkpoint: before their states are read from it, and changed in place.
    """
    states = checkpoint.get("callbacks") or {}
    for callback in trainer.checkpoint_callbacks:
        state = states.get(callback.state_key)
        if isinstance(callback, ModelCheckpoint) and state and state.get("dirpath") and callback.dirpath is not None:
            states[callback.state_key] = trainer.strategy.broadcast(_moved(state, str(callback.dirpath), callback.mode))


def _moved(state: dict[str, Any], folder: str, mode: str) -> dict[str, Any]:
    """A ModelCheckpoint's state after its files have come to ``folder``."""

    def here(path: str) -> str:
        if not path:
            return ""
        inside = os.path.relpath(path, state["dirpath"])
        place = os.path.join(folder, os.path.basename(path) if inside.startswith("..") else inside)
        return place if os.path.exists(place) else ""

    kept = {here(path): score for path, score in state.get("best_k_models", {}).items() if here(path)}
    ranked = sorted(kept, key=lambda path: float(kept[path]), reverse=mode == "max")
    is_whole = len(kept) == len(state.get("best_k_models", {}))
    return {
        **state,
        "dirpath": folder,
        "best_k_models": kept,
        "best_model_path": here(state["best_model_path"]) or (ranked[0] if ranked else ""),
        "best_model_score": state["best_model_score"] if is_whole else kept[ranked[0]] if ranked else None,
        # as long as fewer are kept than may be, Lightning does not ask which is the worst
        "kth_best_model_path": ranked[-1] if ranked and state.get("kth_best_model_path") else "",
        "kth_value": kept[ranked[-1]] if ranked else state.get("kth_value"),
        "last_model_path": here(state.get("last_model_path", "")),
    }


def keep_loadable(states: dict[str, Any]) -> dict[str, Any]:
    """The states of callbacks, without what would keep the whole checkpoint from being read again.

    Numbers of other libraries become numbers (:func:`~diffusion_lightning.training.recipe.plain`). A state of anything
    else that is neither a plain value nor a tensor is left out, with a warning.
    """
    kept = {}
    for key, state in states.items():
        state = plain(state, tensors=False)
        file = io.BytesIO()
        try:
            torch.save(state, file)
            file.seek(0)
            torch.load(file, weights_only=True, map_location="cpu")
            kept[key] = state
        except (pickle.UnpicklingError, pickle.PicklingError, AttributeError, TypeError) as error:
            what = str(error).partition("Unsupported global: GLOBAL ")[2].partition(" ")[0] or str(error)
            rank_zero_warn(
                f"{key.partition('{')[0]}.state_dict(): holds a {what}, which checkpoints cannot hold, and is left "
                "out: give numbers, texts, lists, dicts or tensors"
            )
    return kept


def stops_when_it_may(trainer: Trainer) -> bool:
    """Whether an ``EarlyStopping`` has asked for the end, which ``min_epochs`` or ``min_steps`` put off."""
    stopping = [c for c in trainer.callbacks if isinstance(c, EarlyStopping)]  # type: ignore[attr-defined]
    return any(callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED for callback in stopping)


def put_off_the_end(trainer: Trainer) -> bool:
    """Take back a wish to end the training while a gradient waits for the next batch, which no checkpoint holds.

    Returns:
        Whether it was wished, and has to be again after the step.
    """
    if not trainer.should_stop or not trainer.fit_loop.epoch_loop._should_accumulate():
        return False
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer):
            callback._verbose = False  # it has told, and would after every batch until then
    trainer.should_stop = False
    return True


def _has_ended(trainer: Trainer, checkpoint: dict[str, Any]) -> bool:
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return epochs >= (trainer.min_epochs or 0) and checkpoint["global_step"] >= (trainer.min_steps or 0)


def _keep_patience(callback: EarlyStopping, state: dict[str, Any], has_ended: bool) -> None:
    if state["patience"] != callback.patience:
        rank_zero_info(f"EarlyStopping: patience={callback.patience} from now on, before it was {state['patience']}")
        state["patience"] = callback.patience
    not_stopped = EarlyStoppingReason.NOT_STOPPED.value
    if has_ended and state.get("stopping_reason", not_stopped) != not_stopped:
        state.update(wait_count=0, stopping_reason=not_stopped, stopping_reason_message=None)


def _keep_number(callback: ModelCheckpoint, state: dict[str, Any]) -> None:
    """Of more best checkpoints than ``save_top_k`` the others are forgotten, and stay on the disk."""
    best = sorted(state["best_k_models"].items(), key=lambda item: item[1].item(), reverse=callback.mode == "max")
    if 0 < callback.save_top_k < len(best):
        best = best[: callback.save_top_k]
        state.update(best_k_models=dict(best), kth_best_model_path=best[-1][0], kth_value=best[-1][1])
