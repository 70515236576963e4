"""Job files: YAML, one job per document, become `JobSpec`.

A job file has the keys of `JobSpec`; only the GPU's memory is written differently, as a size::

    name: resnet50-finetune
    command: [python, train.py, --epochs, 3]
    gpu: {memory: 8GiB, kinds: [T4, A100]}

Durations are seconds. Where text is expected, numbers and words such as ``yes`` are taken as they are written.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import yaml

from muxflow.contracts import JobSpec
from muxflow.sizes import parse_size

MAX_BYTES: Final = 1_000_000
"""A submission must fit into one message of the bus."""

NAME_RULE: Final = "must be 1 to 128 letters, digits, '.', '_' or '-', beginning and ending with a letter or digit"

_NULL: Final = "tag:yaml.org,2002:null"
_MAX_DEPTH: Final = 16
_MAX_NODES: Final = 100_000

# What msgspec says about these would be a regular expression.
_RULES: Final = {
    "name": NAME_RULE,
    "tenant": NAME_RULE,
    "checkpoint.signal": "must be SIGUSR1, SIGUSR2, SIGHUP or SIGRTMIN to SIGRTMIN+15",
}
_ENV_RULE: Final = "is not a name of an environment variable: letters, digits and '_', not beginning with a digit"


class JobFileError(ValueError):
    """A job file is wrong. The message is one line: file, line, field, and how to put it right."""


def load(path: str | Path) -> tuple[JobSpec, ...]:
    """Read all jobs of a file; ``-`` is standard input. Raises `JobFileError`."""
    name = "standard input" if str(path) == "-" else str(path)
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1) if str(path) == "-" else _read(Path(path))
        text = data.decode()
    except OSError as error:
        raise JobFileError(f"{name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise JobFileError(f"{name}: not UTF-8 text (byte {error.start})") from None
    if len(data) > MAX_BYTES:
        raise JobFileError(f"{name}: larger than {MAX_BYTES} bytes")
    return parse(text, name=name)


def parse(text: str, *, name: str = "job file") -> tuple[JobSpec, ...]:
    """Read all jobs in a text; `name` is what messages call it. Raises `JobFileError`."""
    jobs: dict[tuple[str, str], JobSpec] = {}
    for document in _documents(text, name):
        spec = document.spec()
        if (spec.tenant, spec.name) in jobs:
            raise document.error("name", f"{spec.name!r} is used twice in this file; job names are unique")
        jobs[spec.tenant, spec.name] = spec
    if not jobs:
        raise JobFileError(f"{name}: holds no job")
    return tuple(jobs.values())


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _documents(text: str, name: str) -> Iterator[_Document]:
    try:
        for node in yaml.compose_all(text, yaml.SafeLoader):
            if node.tag != _NULL:
                yield _Document(name, node)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise JobFileError(f"{name}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise JobFileError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise JobFileError(f"{name}: nested too deeply") from None


class _Document:
    """One YAML document, kept as nodes so that messages can name lines."""

    def __init__(self, name: str, root: yaml.Node) -> None:
        self._name = name
        self._root = root
        self._nodes = 0

    def error(self, place: str, message: str) -> JobFileError:
        """Make an error about a place such as ``gpu.memory`` or ``command[2]``."""
        where = f"{self._name}:{self._line(place)}"
        return JobFileError(f"{where}: {place}: {message}" if place else f"{where}: {message}")

    def spec(self) -> JobSpec:
        """Make the job that this document describes."""
        tree = self._plain(self._root, "", 0)
        if not isinstance(tree, dict):
            raise self.error("", "a job is a table of keys: name, command, gpu")
        self._check_keys(tree, JobSpec, "")
        self._check_variables(tree)
        for required, example in (
            ("name", "name: my-job"),
            ("command", "command: [python, train.py]"),
            ("gpu", "gpu: {memory: 8GiB}"),
        ):
            if tree.get(required) in (None, ""):
                raise self.error("", f"{required} is missing; write for example {example!r}")
        self._convert_memory(tree["gpu"])
        try:
            spec = msgspec.convert(tree, JobSpec, strict=False)
        except msgspec.ValidationError as error:
            raise self._explain(error) from None
        if spec.workdir is not None and not spec.workdir.startswith("/"):
            raise self.error("workdir", "must be an absolute path on the node")  # there is nothing it is relative to
        return spec

    def _plain(self, node: yaml.Node, place: str, depth: int) -> Any:
        """Turn nodes into dicts, lists, str and None. Scalars stay as they are written: types come from the struct."""
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise self.error("", "nested too deeply")
        if isinstance(node, yaml.ScalarNode):
            return None if node.tag == _NULL else node.value
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, f"{place}[{n}]", depth + 1) for n, item in enumerate(node.value)]
        table: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.value.isprintable():
                raise self.error(place, "keys must be plain words")
            key, inner = key_node.value, f"{place}.{key_node.value}".lstrip(".")
            if key in table:
                raise self.error(inner, f"is given twice (again in line {key_node.start_mark.line + 1})")
            table[key] = self._plain(value_node, inner, depth + 1)
        return table

    def _check_keys(self, tree: dict[str, Any], kind: type[msgspec.Struct], place: str) -> None:
        inner_kinds = {_file_key(field.encode_name): field.type for field in msgspec.structs.fields(kind)}
        for key, value in tree.items():
            inner = f"{place}.{key}".lstrip(".")
            if key not in inner_kinds:
                raise self.error(inner, f"unknown key; {_suggest(key, inner_kinds)}")
            struct = _struct_in(inner_kinds[key])
            if struct is None:
                continue
            items = value if isinstance(value, list) else [value]
            for n, item in enumerate(items):
                if isinstance(item, dict):
                    self._check_keys(item, struct, f"{inner}[{n}]" if items is value else inner)

    def _check_variables(self, tree: dict[str, Any]) -> None:
        """Check ``env`` and ``secrets`` here: msgspec's messages do not say which key it was."""
        for section in ("env", "secrets"):
            table = tree.get(section)
            for key, value in table.items() if isinstance(table, dict) else ():
                if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,255}", key):
                    raise self.error(f"{section}.{key}", f"{key!r} {_ENV_RULE}")
                if not isinstance(value, str):
                    raise self.error(f"{section}.{key}", 'must be text; for an empty value write ""')

    def _convert_memory(self, gpu: Any) -> None:
        if not isinstance(gpu, dict):
            raise self.error("gpu", "must be a table, such as {memory: 8GiB}")
        memory = gpu.pop("memory", None)
        if not isinstance(memory, str):
            raise self.error("gpu", "memory is missing; write for example {memory: 8GiB}")
        try:
            gpu["memory_bytes"] = parse_size(memory)
        except ValueError as error:
            raise self.error("gpu.memory", str(error)) from None

    def _explain(self, error: msgspec.ValidationError) -> JobFileError:
        text, _, at = str(error).partition(" - at `")
        place = at.rstrip("`").removeprefix("$").lstrip(".").replace("memory_bytes", "memory")
        return self.error(place, _RULES.get(place) or _in_yaml_words(text))

    def _line(self, place: str) -> int:
        """Number of the line where a place is, or where the nearest thing around it begins."""
        node, line = self._root, self._root.start_mark.line
        for step in re.findall(r"[^.\[\]]+", place):
            if isinstance(node, yaml.MappingNode):
                found = next(((key, value) for key, value in node.value if key.value == step), None)
                if found is None:
                    break
                line, node = found[0].start_mark.line, found[1]
            elif isinstance(node, yaml.SequenceNode) and step.isdecimal() and int(step) < len(node.value):
                node = node.value[int(step)]
                line = node.start_mark.line
        return line + 1


def _file_key(field: str) -> str:
    return "memory" if field == "memory_bytes" else field


def _struct_in(annotation: Any) -> type[msgspec.Struct] | None:
    """Find the struct in a type such as ``tuple[Mount, ...]`` or ``Checkpoint | None``."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    return next((struct for inner in get_args(annotation) if (struct := _struct_in(inner))), None)


def _suggest(key: str, known: dict[str, Any]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


def _in_yaml_words(text: str) -> str:
    """Say what msgspec says in the words of YAML files."""
    meanings = {
        "array": "a list",
        "object": "a table",
        "str": "text",
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "null": "nothing",
    }

    def mean(match: re.Match[str]) -> str:
        return " or ".join(meanings.get(word, repr(word)) for word in match[1].split(" | "))

    text = re.sub(r"`([^`]+)`", mean, text)
    return text[0].lower() + text[1:]
