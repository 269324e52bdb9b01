"""The YAML file as plain values: strict, with variables expanded and faults by key.

Reads a document without aliases and tags, refuses a key that is given twice, and expands
`${VAR}`. It knows no key of ours; `settings` checks the values. Nothing that stands in the file or
in the environment ever becomes part of a fault, since it may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import yaml

from s3fs_banyan.errors import ConfigError

_DOLLAR: Final = re.compile(r"\$(?:(\$)|\{([A-Za-z_][A-Za-z0-9_]*)(?:(:-)([^}]*))?\})?")


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Replace `${VAR}`, `${VAR:-default}` and `$$`; raise `ValueError` with the fault.

    What a variable holds is taken as it is, and so is a default. An empty variable counts as
    one that is not set, as it does in a shell's `:-`.
    """

    def replace(found: re.Match[str]) -> str:
        dollar, name, has_default, default = found.groups()
        if dollar is not None:
            return "$"
        if name is None:
            raise ValueError("a '$' that begins no '${NAME}': write '$$' for a dollar sign")
        if environ.get(name):
            return environ[name]
        if has_default is not None:
            return str(default)
        state = "empty" if name in environ else "not set"
        raise ValueError(f"environment variable {name} is {state}")

    return _DOLLAR.sub(replace, text)


class _Loader(yaml.SafeLoader):
    """The safe loader without aliases, which could make a small file endlessly large."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases (& and *) are not supported: quote the value",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)

    def implicit_tag(self, plain: str) -> str:
        """Return the tag that a plain scalar has when none is written before it."""
        return str(self.resolve(yaml.ScalarNode, plain, (True, False)))  # type: ignore[no-untyped-call]


class _Reader:
    """Turns YAML nodes into values, expanding variables; gathers the faults by key."""

    def __init__(self, loader: _Loader, environ: Mapping[str, str]) -> None:
        self._loader = loader
        self._environ = environ
        self.faults: dict[str, str] = {}

    def value_of(self, node: yaml.Node, path: str) -> object:
        """Return the value of a node; one that has a fault is None, as if not given."""
        if isinstance(node, yaml.MappingNode):
            return self.mapping_of(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value_of(item, f"{path}[{i}]") for i, item in enumerate(node.value)]
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        try:
            if kind in {"str", "timestamp"}:
                return expand(node.value, self._environ)
        except ValueError as error:
            self.faults[path] = str(error)
            return None
        if self._loader.implicit_tag(node.value) != node.tag:
            self.faults[path] = "tags (! before a value) are not supported: quote the value"
            return None
        try:
            value: object = self._loader.construct_object(node)
        except ValueError:  # 0x_, or more digits than Python converts
            self.faults[path] = "is not a number: quote the value if it is text"
            return None
        return value

    def mapping_of(self, node: yaml.MappingNode, path: str) -> dict[str, object]:
        """Return the values of a section; a key given twice is a fault."""
        values: dict[str, object] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag != "tag:yaml.org,2002:str":
                where = f"{path}, line {line}" if path else f"line {line}"
                self.faults[where] = "a key is not text: put it in quotes"
                continue
            key = key_node.value
            inner = f"{path}.{key}" if path else key
            if key in values:
                self.faults[inner] = f"is given twice, on lines {lines[key]} and {line}"
                continue
            lines[key] = line
            values[key] = self.value_of(value_node, inner)
        return values


def read_file(path: Path, environ: Mapping[str, str]) -> tuple[dict[str, object], dict[str, str]]:
    """Return the values of the file, and the faults by key found while reading them.

    A value with a fault is None. Raises `ConfigError` if the file is not YAML of our kind.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None or node.tag == "tag:yaml.org,2002:null":
            return {}, {}
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}: line 1: expected sections and keys")
        reader = _Reader(loader, environ)
        return reader.mapping_of(node, ""), reader.faults
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{path}: {_syntax_fault(error)}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}: line {line}: a control character is not allowed") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None


def _syntax_fault(error: yaml.MarkedYAMLError) -> str:
    """Say what is wrong and where, without the text of the file that PyYAML would quote."""
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    problem = re.sub(r"'(?P<text>[^']*)'", _keep_token, error.problem or "is not YAML")
    return f"{where}{problem}"


def _keep_token(quoted: re.Match[str]) -> str:
    """Return what PyYAML quotes if it is a mark or the name of a token (`<scalar>`)."""
    text = quoted["text"]
    return quoted[0] if len(text) <= 1 or text.startswith("<") else "'...'"


def put(values: dict[str, object], key: str, value: object) -> None:
    """Set the dotted `key` in nested sections."""
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: '{section}' is not a section")
        values = inner
    values[last] = value
