"""Options whose values are classes: which class a short name means, and what it keeps of the class before it."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import yaml
from jsonargparse import ArgumentParser, Namespace, _typehints

import diffusion_lightning

Kept: TypeAlias = dict[str, tuple[Any, Any, dict[str, Any]]]
"""By option: the new class's path, the former one's, and the arguments that it left, of which the user gave none."""


class ClassOptions:
    """Watches a parser as it reads classes, and has it read them as they are meant.

    - A short name of this package's is its class wherever the option can take that, whoever else has the name.
    - Another class of an option keeps the former one's arguments of the same names, which is jsonargparse's way to lay
      a config over another one; :meth:`notes` says which.
    - A list is given anew: no class in it keeps what one of the former list had that stood in its place.
    """

    _is_watching = False

    def __init__(self) -> None:
        self._kept: Kept = {}
        self._on_command_line: set[str] = set()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, parsers read classes like this; of a watch inside another one, the outer one sees it all."""
        if ClassOptions._is_watching:
            yield
            return
        # jsonargparse has no setting for either: these are where all values of classes, and all short names, come by
        check, resolve = _typehints.ActionTypeHint._check_type, _typehints.resolve_class_path_by_name
        inside = False

        def check_type(action: Any, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
            nonlocal inside
            if inside or cfg is None:  # of a class inside the one that is read
                return check(action, value, append=append, cfg=cfg, mode=mode)
            former = cfg.get(action.dest)
            if isinstance(_loaded(value), list) and not append:
                former, cfg = None, Namespace({action.dest: None})
            inside = True
            try:
                result = check(action, value, append=append, cfg=cfg, mode=mode)
            finally:
                inside = False
            if not append:
                self._note(action.dest, former, value, result)
            return result

        ClassOptions._is_watching = True
        _typehints.ActionTypeHint._check_type = check_type  # type: ignore[method-assign]
        _typehints.resolve_class_path_by_name = _ours_first(resolve)  # type: ignore[assignment]
        try:
            yield
        finally:
            ClassOptions._is_watching = False
            _typehints.ActionTypeHint._check_type = check  # type: ignore[method-assign]
            _typehints.resolve_class_path_by_name = resolve

    def notes(self) -> list[str]:
        """A line for each option whose class keeps arguments of a former one that are not its own defaults."""
        lines = []
        for option, (new, former, arguments) in sorted(self._kept.items()):
            defaults = _defaults(new)
            told = {name: value for name, value in arguments.items() if _plain(value) != _plain(defaults.get(name))}
            if told:
                kept = ", ".join(f"{name}={_plain(value)}" for name, value in told.items())
                to_set = ", ".join(f"--{option}.{name}" for name in told)
                lines.append(f"--{option} {new} keeps {kept} of {former}; to be set by {to_set}")
        return lines

    def _note(self, option: str, former: Any, value: Any, result: Any) -> None:
        if isinstance(value, Namespace):  # read before, and looked at once more
            return
        if isinstance(value, _typehints.NestedArg):
            given = {f"{option}.{value.key.replace('init_args.', '')}"}
        else:
            given = {f"{option}{path}" for path in _given(_loaded(value))}
        if not isinstance(value, dict | list):  # those of a config are of its class, and kept by another one
            self._on_command_line |= given
        before, now = dict(_specs(option, former)), dict(_specs(option, result))
        earlier = {path: kept for path, kept in self._kept.items() if path in before}
        changed = {
            path: (spec.class_path, before[path].class_path, _arguments(before[path]))
            for path, spec in now.items()
            if path in before and before[path].class_path != spec.class_path
        }
        for path in earlier:
            del self._kept[path]
        for path, (new, old, arguments) in {**earlier, **changed}.items():
            if path in now and now[path].class_path == new:
                left = _arguments(now[path])
                users = {name for name in left if f"{path}.{name}" in given | self._on_command_line}
                same = {name: left[name] for name, value in arguments.items() if name in left and left[name] == value}
                self._kept[path] = new, old, {name: value for name, value in same.items() if name not in users}


def _ours_first(resolve: Callable[[Any, str], str]) -> Callable[[Any, str], str]:
    def resolve_class_path(types: Any, name: str) -> str:
        if name in diffusion_lightning.__all__:
            cls = getattr(diffusion_lightning, name)
            wanted = types if isinstance(types, tuple) else (types,)
            bases = tuple(base for each in wanted for base in _typehints.get_class_types(each))
            if isinstance(cls, type) and issubclass(cls, bases):
                return f"{diffusion_lightning.__name__}.{name}"
        return resolve(types, name)

    return resolve_class_path


def _is_spec(value: Any) -> bool:
    return isinstance(value, Namespace) and "class_path" in value


def _arguments(spec: Namespace) -> dict[str, Any]:
    return vars(spec.get("init_args") or Namespace())


def _specs(path: str, value: Any) -> Iterator[tuple[str, Namespace]]:
    """The classes in a value by their options: its own and those of arguments; of a list those of the last one."""
    if isinstance(value, list):
        yield from _specs(path, value[-1] if value else None)
    elif _is_spec(value):
        yield path, value
        for name, inner in _arguments(value).items():
            yield from _specs(f"{path}.{name}", inner)


def _loaded(value: Any) -> Any:
    """What a text of YAML or JSON says."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError, TypeError):  # the latter of dates that are none, and the like
        return None


def _given(value: Any) -> Iterator[str]:
    """The paths of the arguments that a value of a class gives, such as ``.times.stratified``."""
    if isinstance(value, dict):
        for name, inner in (value.get("init_args") or {}).items():
            yield f".{name}"
            yield from (f".{name}{path}" for path in _given(inner))


def _defaults(class_path: str) -> Namespace:
    parser, made_by = ArgumentParser(exit_on_error=False), _typehints.import_object(class_path)
    add = parser.add_class_arguments if inspect.isclass(made_by) else parser.add_function_arguments
    add(made_by, fail_untyped=False)
    return parser.get_defaults()


def _plain(value: Any) -> Any:
    """As it would stand in a config: a class by its path, a tuple as a list."""
    if _is_spec(value):
        return value.class_path
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
