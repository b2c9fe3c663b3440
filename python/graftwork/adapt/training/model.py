"""A Hugging Face model from a folder, made ready for sparse fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graftwork.adapt.deltas.composition import compose
from graftwork.adapt.deltas.sparse_delta import SparseDelta
from graftwork.adapt.roles import Roles, assign_roles, untie_output_embedding_
from graftwork.adapt.training.data import derived_seed
from graftwork.checkpoint import Checkpoint, open_checkpoint
from graftwork.errors import BaseMismatch, CheckpointError, RecipeError
from graftwork.recipe import SparseRecipe
from graftwork.texts.corpus import Label
from graftwork.texts.hugging_face import reading_folder, transformers_module
from graftwork.texts.tasks import TASKS, Task

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float32}  # float16 needs loss scaling


@dataclass(frozen=True)
class LoadedModel:
    """A model with the roles of its parameters, and how its folder calls them.

    ``stored_names`` are the folder's names of trainable parameters by the model's own, and ``made`` the parameters that
    the folder lacks, such as a new head.
    """

    model: Any
    roles: Roles
    stored_names: Mapping[str, str]
    made: Mapping[str, nn.Parameter]
    notes: list[str]

    def stored(self, delta: SparseDelta, folder: Path) -> SparseDelta:
        """A delta of the model as one of its folder: with its names, dtypes and digests."""
        return delta.renamed(lambda name: self.stored_names.get(name, name)).for_base(folder)


def load_model(recipe: SparseRecipe, task: Task, tokenizer: Any, labels: Sequence[Label]) -> LoadedModel:
    """Load the model of a recipe, with the deltas that it starts from.

    Raises
    ------
    MissingExtra
        transformers is not installed.
    CheckpointError
        The folder holds no such model, or lacks weights that the task needs.
    RecipeError
        The model is not one for the task, or a pattern or device does not suit it.
    BaseMismatch
        A delta to start from is another model's.
    """
    device = _device(recipe)
    with open_checkpoint(recipe.model) as checkpoint:
        model, new = _load(recipe, checkpoint, labels)
        _check_length(recipe, model, tokenizer)
        if recipe.task == "masked_lm":
            _untie(model)
        if getattr(model.config, "pad_token_id", None) is None:
            model.config.pad_token_id = task.padding
        roles = _roles(recipe, model, new)
        names = _stored_names(model, roles, checkpoint)
        notes = _notes(recipe, roles, new)
        _start_from(recipe, model, {stored: name for name, stored in names.items()})
    made = {name: param for name, param in roles.full.items() if name in new}
    return LoadedModel(model.to(device), roles, names, made, notes)


def _device(recipe: SparseRecipe) -> str:
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("wrong value for 'device'", got="cuda", wanted="cpu: torch finds no GPU here")
    if recipe.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return recipe.device


def _load(recipe: SparseRecipe, checkpoint: Checkpoint, labels: Sequence[Label]) -> tuple[Any, set[str]]:
    """The model, and the names of parameters that the folder does not have."""
    codes = {info.dtype for info in checkpoint.tensors.values()} & set(_DTYPES)
    stored = _DTYPES[codes.pop()] if len(codes) == 1 else torch.float32
    dtype = stored if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
    with transformers_module() as transformers:
        with reading_folder(recipe.model, "a model"):
            config = transformers.AutoConfig.from_pretrained(recipe.model, local_files_only=True)
        task = TASKS[recipe.task]
        if type(config) not in getattr(transformers, task.mapping):
            raise RecipeError(
                "wrong value for 'task'",
                got=f"{recipe.task}, and a model of the type {config.model_type}",
                wanted="a task that such a model has",
            )
        if labels:
            config.num_labels, config.problem_type = len(labels), "single_label_classification"
        torch.manual_seed(derived_seed(recipe.seed, "head"))
        with reading_folder(recipe.model, "a model"):
            model, info = getattr(transformers, task.architecture).from_pretrained(
                recipe.model,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    return model, _new_parameters(recipe, model, info["missing_keys"])


def _new_parameters(recipe: SparseRecipe, model: nn.Module, missing: set[str]) -> set[str]:
    """What the folder lacks, which is a head to be made, or a part of the model that must not be missing."""
    new = {name for name, _ in model.named_parameters(remove_duplicate=False)} & set(missing)
    if recipe.task == "causal_lm" and new:
        raise CheckpointError(
            "the folder lacks weights of the model",
            file=recipe.model,
            tensor=sorted(new)[0],
            got=f"{len(new)} are missing",
            wanted="all weights of a causal language model",
        )
    return new


def _check_length(recipe: SparseRecipe, model: Any, tokenizer: Any) -> None:
    places = getattr(model.config, "max_position_embeddings", None) or recipe.max_tokens
    limit = min(places, tokenizer.model_max_length)
    if recipe.max_tokens > limit:
        raise RecipeError(
            "wrong value for 'max_tokens'",
            got=recipe.max_tokens,
            wanted=f"at most {limit}, the model's limit",
        )


def _untie(model: nn.Module) -> None:
    try:
        untie_output_embedding_(model)
    except TypeError as error:
        raise RecipeError(
            "wrong value for 'task'", got="masked_lm", wanted=f"a task that the model has: {error}"
        ) from None


def _roles(recipe: SparseRecipe, model: nn.Module, new: set[str]) -> Roles:
    """The roles that the recipe gives parameters; what is new is tuned in full, whatever it says."""
    maskable, full = recipe.maskable, recipe.full
    if recipe.task == "causal_lm":  # its head is no new one
        maskable, full = maskable or ["*"], full or []
    try:
        roles = assign_roles(model, maskable, full, recipe.frozen)
        if recipe.method == "spiel":
            roles = _linear_alone(model, roles)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"the recipe does not suit the model: {error}") from error
    fresh = {name: p for name, p in {**roles.maskable, **roles.frozen}.items() if name in new}
    kept = [{n: p for n, p in held.items() if n not in fresh} for held in (roles.maskable, roles.frozen)]
    if not kept[0]:
        raise CheckpointError(
            "the folder lacks all weights that could be tuned in part",
            file=recipe.model,
            tensor=next(iter(fresh)),
            remedy="give the folder of a pretrained model, or choose others with 'maskable'",
        )
    return Roles(kept[0], {**roles.full, **fresh}, kept[1], roles.tied)


def _linear_alone(model: nn.Module, roles: Roles) -> Roles:
    """SpIEL tunes matrices of Linear modules, but no output embedding that is the input's too."""
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    shared = set(roles.tied.values())
    chosen = {n: p for n, p in roles.maskable.items() if id(p) in linear and n not in shared}
    if not chosen:
        raise ValueError("maskable: the patterns match no weight of a Linear module")
    rest = {name: param for name, param in roles.maskable.items() if name not in chosen}
    return replace(roles, maskable=chosen, frozen={**roles.frozen, **rest})


def _stored_names(model: Any, roles: Roles, checkpoint: Checkpoint) -> dict[str, str]:
    """How the folder calls trainable parameters: a body may have been saved without its prefix, or with one."""
    prefix = f"{model.base_model_prefix}."
    found = {}
    for name, param in roles.trainable.items():
        forms = [name, name.removeprefix(prefix), prefix + name]
        others = [other for other, first in roles.tied.items() if first == name]
        held = next((form for form in [*forms, *others] if form in checkpoint.tensors), None)
        fits = held is not None and checkpoint.tensors[held].shape == tuple(param.shape)
        if name in roles.maskable and not fits:
            raise CheckpointError(
                "transformers holds a tensor in another form than the folder, so that no delta of it can be kept",
                file=checkpoint.path,
                tensor=name,
                remedy="save the model with save_pretrained, or leave the tensor out with 'maskable' or 'frozen'",
            )
        found[name] = held if held is not None and held in forms else name
    return found


def _start_from(recipe: SparseRecipe, model: nn.Module, names: Mapping[str, str]) -> None:
    """Put deltas on the model to stay, without what they hold in full."""
    deltas = []
    for file in recipe.start_from or []:
        delta = SparseDelta.load(file).without_full()
        mine = delta.for_base(recipe.model)
        for tensor, ours in zip(delta.tensors, mine.tensors, strict=True):
            if None not in (tensor.digest, ours.digest) and tensor.digest != ours.digest:
                raise BaseMismatch(
                    f"a delta to start from was not made against the model in {recipe.model}",
                    file=file,
                    tensor=tensor.name,
                    got=f"digest {(ours.digest or '')[:16]}…",
                    wanted=f"digest {(tensor.digest or '')[:16]}…",
                    remedy="give the model that it was made against, or another delta in 'start_from'",
                )
        deltas.append(mine.renamed(lambda name: names.get(name, name)))
    if deltas:
        compose(deltas).apply_(model, check_base=False)


def _notes(recipe: SparseRecipe, roles: Roles, new: set[str]) -> list[str]:
    notes = []
    if new:
        names = ", ".join(sorted(new)[:4]) + (", …" if len(new) > 4 else "")
        notes.append(
            f"the model's folder lacks {names}: made by chance, tuned in full, and kept in the delta"
        )
    if recipe.task == "masked_lm":
        notes.append(
            "the output embedding was untied and frozen: where it is tied, the delta moves it with the input embedding"
        )
    return notes
