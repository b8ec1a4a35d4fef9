"""Settings by their paths, as the command line names them, and in which of them configs differ."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NOT_OF_THE_RUN = {"ckpt_path", "weights_only", "debug"}
"""Options of how a part of a run was started."""


def flatten(config: Mapping[str, Any]) -> dict[str, str]:
    """Every setting of a config by its path, as text.

    An object ``{class_path, init_args}`` is the setting of its class, by the class's own name, and its arguments are
    settings below it, ``model.sde`` and ``model.sde.rho``. Objects in a list are told apart by their class,
    ``trainer.callbacks.SampleGrid``, a second of the same by ``SampleGrid.2``.
    """
    return dict(_settings(config, ""))


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """The settings that are not the same in all configs, by path, each config's value in turn; None if it has none."""
    flat = [flatten(config) for config in configs]
    paths = list(dict.fromkeys(path for settings in flat for path in settings))
    values = {path: [settings.get(path) for settings in flat] for path in paths}
    return {
        path: found
        for path, found in values.items()
        if len(set(found)) > 1 and path.partition(".")[0] not in NOT_OF_THE_RUN
    }


def of_note(config: Mapping[str, Any]) -> dict[str, str]:
    """The few settings that tell what kind of run it is; those that the config has."""
    settings = flatten(config)
    named = {
        "network": "model.network",
        "process": "model.sde",
        "parameterization": "model.parameterization",
        "optimizer": "model.optimizer",
        "learning rate": "model.optimizer.lr",
        "sampler": "model.sampler",
        "data": "data",
        "batch size": "data.batch_size",
        "precision": "trainer.precision",
    }
    return {name: settings[path] for name, path in named.items() if settings.get(path, "null") != "null"}


def _settings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    inside = f"{path}." if path else ""
    if isinstance(value, dict) and "class_path" in value:
        yield path, _class_name(value)
        yield from _settings(value.get("init_args") or {}, path)
        for name in [name for name in value if name not in ("class_path", "init_args")]:
            yield from _settings(value[name], f"{inside}{name}")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _settings(item, f"{inside}{name}")
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        seen: dict[str, int] = {}
        for item in value:
            name = _class_name(item) if isinstance(item, dict) and "class_path" in item else "item"
            seen[name] = seen.get(name, 0) + 1
            yield from _settings(item, f"{inside}{name}" + (f".{seen[name]}" if seen[name] > 1 else ""))
    else:
        yield path, _text(value)


def _class_name(recipe: Mapping[str, Any]) -> str:
    return str(recipe["class_path"]).rpartition(".")[2]


def _text(value: Any) -> str:
    """As in YAML, on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)
