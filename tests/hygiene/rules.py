"""The rules, as functions on texts: each yields one line for every place that breaks it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600

_INDEX_HOSTS = ("py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "proxy.go" + "lang.org")
_INDEX_OPTIONS = ("--index-" + "url", "--extra-index-" + "url", "--find-" + "links")
_FORBIDDEN = re.compile(
    "|".join(
        [
            *(re.escape(host) for host in _INDEX_HOSTS),
            # pip's options with a value; the names alone may be spoken of.
            *(rf"(?<![\w-]){option}[ =]+\S" for option in _INDEX_OPTIONS),
            r"https?://\S*/simple\b",
            # Absolute paths that exist on somebody's machine only.
            r"(?<![\w.\-/])/(?:work|root|home/\w+)/",
        ]
    )
)
_LINK = re.compile(r"\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
_CODE_SPAN = re.compile(r"`([^`\n]+)`")
_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_PATH_IN_TEXT = re.compile(
    r"(?<![\w./\-])(?:s3fs_banyan|tests|scripts|docs)/[\w./\-]+\.(?:md|py|sql|toml|sh|lock)\b"
)
_OWN_DIRECTORIES = ("s3fs_banyan/", "tests/", "scripts/", "docs/", ".ci/")
_METRIC = re.compile(r"\bs3fs_banyan_[a-z0-9_]*[a-z0-9]\b")
_METRIC_SUFFIXES = ("_bucket", "_sum", "_count", "_total", "_created")


def long_functions(source: str) -> Iterator[str]:
    """Functions with more than 70 lines, decorators not counted."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"line {node.lineno}: {node.name} has {lines} lines"


def long_file(source: str) -> Iterator[str]:
    """A file with more than 600 lines."""
    lines = len(source.splitlines())
    if lines > FILE_LINES_MAX:
        yield f"{lines} lines"


def forbidden_text(text: str) -> Iterator[str]:
    """Addresses of package indexes, and paths that exist on one machine only."""
    for number, line in enumerate(text.splitlines(), 1):
        for match in _FORBIDDEN.finditer(line):
            yield f"line {number}: {match[0]}"


def addresses(text: str) -> Iterator[str]:
    """Any address at all; for lock files, which name packages by version and hash only."""
    for number, line in enumerate(text.splitlines(), 1):
        if "://" in line or "file:/" in line or " @ " in line:
            yield f"line {number}: {line.strip()}"


def unhashed_requirements(lock: str) -> Iterator[str]:
    """Requirements of a lock file that are not pinned by version and by hash."""
    for entry in re.split(r"(?<!\\)\n", lock):
        requirement = entry.strip()
        if not requirement or requirement.startswith("#"):
            continue
        if not re.match(r"[\w.\-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", requirement, re.DOTALL):
            yield requirement.partition("\\")[0].strip()


def unknown_top_level(paths: Iterable[str]) -> Iterator[str]:
    """Entries of the repository's root that have no business there."""
    allowed = {"pyproject.toml", "README.md", "s3fs_banyan", "tests", "scripts", "docs"}
    for name in sorted({path.partition("/")[0] for path in paths}):
        if name not in allowed and not name.startswith("."):
            yield name


def missing_links(document: str, exists: Callable[[str], bool]) -> Iterator[str]:
    """Relative links of a Markdown document that lead nowhere; `exists` resolves them."""
    prose = _FENCE.sub("", document)
    for match in _LINK.finditer(prose):
        target, _, _ = match[1].partition("#")
        if target and not re.match(r"[a-z][a-z0-9+.\-]*:", target) and not exists(target):
            yield f"link to {target}"


def missing_anchors(document: str, headings_of: Callable[[str], str | None]) -> Iterator[str]:
    """Links to a heading that the linked document has not; `headings_of` gives its text."""
    prose = _FENCE.sub("", document)
    for match in _LINK.finditer(prose):
        target, _, anchor = match[1].partition("#")
        if not anchor or re.match(r"[a-z][a-z0-9+.\-]*:", target):
            continue
        linked = headings_of(target) if target else document
        if linked is not None and anchor not in heading_anchors(linked):
            yield f"link to {match[1]}"


def heading_anchors(document: str) -> set[str]:
    """The names by which a Markdown document's headings are linked."""
    anchors: set[str] = set()
    for line in _FENCE.sub("", document).splitlines():
        if heading := re.match(r"#{1,6}\s+(.*)", line):
            kept = re.sub(r"[^\w\- ]", "", heading[1].strip().lower())
            anchors.add(kept.replace(" ", "-"))
    return anchors


def missing_paths(text: str, exists: Callable[[str], bool]) -> Iterator[str]:
    """Files of this repository that a text names and that are not there."""
    named = {match[0] for match in _PATH_IN_TEXT.finditer(text)}
    for path in sorted(named):
        if not exists(path):
            yield f"mentions {path}"


def missing_code_span_paths(document: str, exists: Callable[[str], bool]) -> Iterator[str]:
    """Paths in code spans of a Markdown document (`scripts/test`) that are not there."""
    for match in _CODE_SPAN.finditer(_FENCE.sub("", document)):
        word = match[1].split()[0] if match[1].split() else ""
        word = word.removeprefix("./").rstrip(".,;:")
        word, _, _ = word.partition(":")
        is_path = word.startswith(_OWN_DIRECTORIES) and re.fullmatch(r"[\w./\-]+", word)
        if is_path and not exists(word):
            yield f"mentions {word}"


def unlisted_metrics(text: str, listed: Iterable[str]) -> Iterator[str]:
    """Metric names in a text that the engine does not export."""
    known = set(listed)
    for name in sorted(set(_METRIC.findall(text))):
        bases = {name, *(name.removesuffix(suffix) for suffix in _METRIC_SUFFIXES)}
        if not bases & known:
            yield f"metric {name}"


def declared_failpoints(source: str) -> Iterator[tuple[str, str | None]]:
    """Yield (name of the failpoint, name of the constant that holds it, if there is one)."""
    tree = ast.parse(source)
    constants = {
        id(node.value): node.targets[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    } | {
        id(node.value): node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    for call in _calls(tree, "register_failpoint"):
        if call.args and isinstance(call.args[0], ast.Constant):
            yield str(call.args[0].value), constants.get(id(call))


def passed_failpoints(source: str) -> Iterator[str]:
    """Yield what is handed to `failpoint`: 'a-name' in quotes, or a CONSTANT's name without."""
    for call in _calls(ast.parse(source), "failpoint"):
        argument = call.args[0] if call.args else None
        match argument:
            case ast.Constant():
                yield repr(argument.value)
            case ast.Name():
                yield argument.id
            case ast.Attribute():
                yield argument.attr
            case _:
                yield f"an expression in line {call.lineno}"


def _calls(tree: ast.AST, function: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name == function:
                yield node
