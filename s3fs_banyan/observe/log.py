"""The log: one line a record, as text or JSON, with secrets taken out.

A record may carry fields besides its message: `log.info("published", extra=fields(seq=7))`.
`LOG_FIELDS` lists the names in use and what they mean. Secrets that are known (`register_secret`)
are replaced in the finished text, traceback included, so no way of logging gets around it.

Whatever is logged, only a record begins a line that begins like one: names and messages come from
applications and from stores, and nobody may write a record of ours with them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, Literal, TextIO
from urllib.parse import quote

ROOT: Final = "s3fs_banyan"

LOG_FIELDS: Final = {
    "bytes": "size of what the record is about",
    "count": "how many things the record is about",
    "epoch": "term number of a writer",
    "errno": "name of the error that a call was answered with",
    "ino": "inode number",
    "key": "object of the store, without the volume's prefix",
    "kind": "kind of thing: journal, frame, block, pack, commit, checkpoint, ...",
    "op_seq": "sequence number of an operation",
    "operation": "kind of request of the kernel",
    "path": "local file or directory",
    "pid": "process that the record is about",
    "reason": "why something failed or was decided",
    "seconds": "how long it took",
    "segment": "number of a segment of the journal",
    "seq": "sequence number of a commit",
    "step": "step of a commit",
    "store": "address of the store, without secrets",
    "verb": "kind of request to the store",
}

_HIDDEN: Final = "***"
_INDENT: Final = "  "
_secrets: dict[str, None] = {}


def register_secret(secret: str) -> None:
    """Keep `secret` out of every line logged from now on, in clear, quoted or URL-encoded."""
    if not secret:
        return
    forms = {secret, quote(secret), quote(secret, safe=""), repr(secret)[1:-1]}
    forms |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    known = forms.union(_secrets)
    _secrets.clear()
    _secrets.update(dict.fromkeys(sorted(known, key=lambda form: (-len(form), form))))


def redact(text: str) -> str:
    """Return `text` with every known secret replaced."""
    for secret in _secrets:
        text = text.replace(secret, _HIDDEN)
    return text


def fields(**values: object) -> dict[str, object]:
    """Return the `extra` of a record that carries these fields; names are from LOG_FIELDS."""
    unknown = values.keys() - LOG_FIELDS.keys()
    if unknown:
        raise ValueError(f"log fields that LOG_FIELDS does not list: {sorted(unknown)}")
    return {"fields": values}


def _fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    found = getattr(record, "fields", None)
    return found if isinstance(found, Mapping) else {}


def _plain(value: object) -> object:
    """Return a field's value as JSON can hold it; names that are bytes become text."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "backslashreplace")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, tz=UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


class _TextFormatter(logging.Formatter):
    """`TIME LEVEL LOGGER: message key=value ...`, tracebacks on indented lines of their own."""

    def format(self, record: logging.LogRecord) -> str:
        # Secrets go before characters are escaped, which would hide one that holds such.
        values = [f"{key}={_shown(value)}" for key, value in _fields_of(record).items()]
        head = f"{_time(record)} {record.levelname} {record.name}:"
        line = " ".join([head, _one_line(redact(record.getMessage())), *values])
        if record.exc_info:
            trace = redact(self.formatException(record.exc_info)).split("\n")
            line += "".join(f"\n{_INDENT}{_one_line(part)}" for part in trace)
        return redact(line)


class _JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, error, and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        for key, value in _fields_of(record).items():
            entry.setdefault(key, _plain(value))
        # Before JSON's own escapes, which would hide a secret that has quotes or backslashes.
        clean = {key: redact(v) if isinstance(v, str) else v for key, v in entry.items()}
        # Unicode has ends of lines that JSON does not escape, and terminals have control codes.
        return _escaped(json.dumps(clean, ensure_ascii=False), lambda c: json.dumps(c)[1:-1])


def _one_line(text: str) -> str:
    """Return `text` with control characters escaped: a file name must not forge a line."""
    return _escaped(text, lambda c: c.encode("unicode_escape").decode())


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else escape(c) for c in text)


def _shown(value: object) -> str:
    """Return a field's value as text; in quotes if it would not end where it seems to."""
    text = _one_line(redact(str(_plain(value))))
    return json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' "=') else text


class _Handler(logging.StreamHandler[TextIO]):
    """Marks the handler that `setup_logging` installed, so that a second call replaces it."""


def setup_logging(
    level: Literal["debug", "info", "warning", "error"],
    log_format: Literal["text", "json"],
    stream: TextIO,
) -> None:
    """Send the process's log to `stream`; a later call replaces an earlier one.

    `level` is for this package. Libraries are heard from `warning` on: at lower levels their
    lines hold signed requests.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(handler)
    handler = _Handler(stream)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT).setLevel(level.upper())
