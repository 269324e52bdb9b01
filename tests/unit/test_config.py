"""Settings: what the file may say, what is said about a wrong one, and what is never said."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError

from s3fs_banyan.config import (
    Config,
    format_seconds,
    format_size,
    load_config,
    parse_seconds,
    parse_size,
)
from s3fs_banyan.config.file import expand
from s3fs_banyan.errors import ConfigError

SECRET = "wJalrXUtnFEMI-K7MDENG"
MISSION_EXAMPLE = """\
storage:
  remote:
    type: s3
    bucket: "skywalking-backup"
    region: "ap-northeast-1"
    credentials:
      access_key: ${AWS_ACCESS_KEY}
      secret_key: ${AWS_SECRET_KEY}
"""
DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def load(directory: Path, text: str, **environ: str) -> Config:
    """Load `text` as a file."""
    path = directory / "banyan.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, {}, environ=environ)


def faults(directory: Path, text: str, **environ: str) -> list[str]:
    """Return the lines of the refusal of `text`, without the path of the file."""
    with pytest.raises(ConfigError) as caught:
        load(directory, text, **environ)
    return str(caught.value).replace(f"{directory / 'banyan.yaml'}: ", "FILE: ").split("\n")


def nested(key: str, value: str) -> str:
    """Return YAML that sets one dotted key."""
    parts = key.split(".")
    lines = [f"{'  ' * depth}{part}:" for depth, part in enumerate(parts)]
    return "\n".join(lines) + f" {value}\n"


def leaves(section: type[BaseModel], prefix: str = "") -> dict[str, object]:
    """Return key -> default of all settings below a section."""
    found: dict[str, object] = {}
    for name, field in section.model_fields.items():
        key = prefix + (field.alias or name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= leaves(inner, f"{key}.")
        else:
            found[key] = field.default
    return found


# --- what works --------------------------------------------------------------------------


def test_example_of_the_mission_works_as_it_stands(tmp_path: Path) -> None:
    """The one file that every user starts from."""
    config = load(tmp_path, MISSION_EXAMPLE, AWS_ACCESS_KEY="AKIA1", AWS_SECRET_KEY=SECRET)
    remote = config.storage.remote
    assert (remote.type, remote.bucket, remote.region) == (
        "s3",
        "skywalking-backup",
        "ap-northeast-1",
    )
    assert remote.url == "s3://skywalking-backup"
    assert remote.credentials.access_key == SecretStr("AKIA1")
    assert remote.credentials.secret_key == SecretStr(SECRET)
    assert config.secrets() == ("AKIA1", SECRET)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "storage:\n", "cache:\n  size:\n"])
def test_empty_values_mean_the_defaults(tmp_path: Path, text: str) -> None:
    """A commented-out value must not become an error or a null deep in the engine."""
    assert load(tmp_path, text) == load_config(None, {})


def test_optional_variable_that_is_unset_leaves_the_standard_chain(tmp_path: Path) -> None:
    """`${VAR:-}` is how one file serves a laptop with keys and a pod with a role."""
    text = nested("storage.remote.credentials", "{access_key: '${A:-}', secret_key: '${B:-}'}")
    assert load(tmp_path, text).secrets() == ()


def test_human_values_reach_their_fields_in_base_units(tmp_path: Path) -> None:
    """A unit read wrongly is a journal a thousand times too small."""
    text = "cache:\n  size: 20GiB\n  dirty_max: 512MB\ncommit:\n  interval: 1m30s\n"
    config = load(tmp_path, text)
    assert config.cache.size_bytes == 20 * 1024**3
    assert config.cache.dirty_bytes_max == 512 * 10**6
    assert config.commit.interval_s == 90.0


@pytest.mark.parametrize("key", ["reclaim.window", "reclaim.hourly", "reclaim.grace"])
def test_reclaim_may_keep_nothing(tmp_path: Path, key: str) -> None:
    """0 is a choice here, not a missing value."""
    config = load(tmp_path, nested(key, "0"))
    assert getattr(config.reclaim, key.split(".")[1] + "_s") == 0


def test_file_store_has_a_url(tmp_path: Path) -> None:
    """The address in the file is the one the command line would take."""
    config = load(tmp_path, nested("storage.remote", "{type: file, directory: /srv/volume}"))
    assert config.storage.remote.url == "file:///srv/volume"
    with_prefix = load(tmp_path, nested("storage.remote", "{type: s3, bucket: abc, prefix: /a/b/}"))
    assert with_prefix.storage.remote.url == "s3://abc/a/b"
    assert load_config(None, {}).storage.remote.url is None


def test_override_wins_over_the_file_and_none_is_no_override(tmp_path: Path) -> None:
    """An option that a person did not give must not undo the file."""
    path = tmp_path / "banyan.yaml"
    path.write_text("log:\n  level: debug\nmount:\n  allow_other: false\n", encoding="utf-8")
    given = {"log.level": "ERROR", "mount.allow_other": None, "cache.size": "1GiB"}
    config = load_config(path, given, environ={})
    assert config.log.level == "error"
    assert config.mount.allow_other is False
    assert config.cache.size_bytes == 1024**3


def test_override_replaces_a_value_with_a_fault(tmp_path: Path) -> None:
    """The command line can repair a file whose variable is not set."""
    path = tmp_path / "banyan.yaml"
    path.write_text("log:\n  level: ${LEVEL}\n", encoding="utf-8")
    assert load_config(path, {"log.level": "debug"}, environ={}).log.level == "debug"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ({"log.levle": "debug"}, "log.levle: unknown key, did you mean 'level'?"),
        ({"durability.mode": "x"}, "durability.mode: 'durability' is not a section"),
    ],
)
def test_faulty_override_is_named(tmp_path: Path, override: dict[str, object], line: str) -> None:
    """A wrong option is reported like a wrong line of the file."""
    path = tmp_path / "banyan.yaml"
    path.write_text("durability: remote\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}$"):
        load_config(path, override, environ={})


def test_settings_cannot_be_changed() -> None:
    """Every component may keep a reference."""
    config = load_config(None, {})
    with pytest.raises(ValidationError, match="frozen"):
        config.commit.interval_s = 5.0


def test_settings_survive_the_way_into_the_worker_process(tmp_path: Path) -> None:
    """The worker gets plain values: the settings must pass a process border unchanged."""
    config = load(tmp_path, MISSION_EXAMPLE, AWS_ACCESS_KEY="AKIA1", AWS_SECRET_KEY=SECRET)
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301 - our own bytes


# --- faults ------------------------------------------------------------------------------


def test_unset_variables_are_named_with_their_keys(tmp_path: Path) -> None:
    """The first thing that goes wrong in a pod."""
    assert faults(tmp_path, MISSION_EXAMPLE) == [
        "storage.remote.credentials.access_key: environment variable AWS_ACCESS_KEY is not set",
        "storage.remote.credentials.secret_key: environment variable AWS_SECRET_KEY is not set",
    ]


def test_empty_variable_is_a_fault(tmp_path: Path) -> None:
    """A secret that was mounted empty must not silently select other credentials."""
    assert faults(tmp_path, MISSION_EXAMPLE, AWS_ACCESS_KEY="", AWS_SECRET_KEY=SECRET) == [
        "storage.remote.credentials.access_key: environment variable AWS_ACCESS_KEY is empty"
    ]


SYNTAX = [
    ("a: [\n", "line 2, column 1: expected the node content, but found '<stream end>'"),
    ("log: [a: b: c]\n", "line 1, column 11: expected ',' or ']', but got ':'"),
    ("log: a: b\n", "line 1, column 7: mapping values are not allowed here"),
    ("- a\n", "line 1: expected sections and keys"),
    ("log:\n  level: \x01\n", "line 2: a control character is not allowed"),
    ("[" * 4000, "is nested too deeply"),
    (
        "log: &a\n",
        "line 1, column 6: anchors and aliases (& and *) are not supported: quote the value",
    ),
]
TAGGED = "tags (! before a value) are not supported: quote the value"
LONE_DOLLAR = "a '$' that begins no '${NAME}': write '$$' for a dollar sign"
NO_SECTION = "expected a section with keys, not a value"
FAULTS = [
    ("storage.remote.buckte", "x", "", "unknown key, did you mean 'bucket'?"),
    ("log.x", "1", "", "unknown key, known here are level, format"),
    ("commit.interval_s", "5", "", "unknown key, did you mean 'interval'?"),
    ("log", "{1: 2}", ", line 1", "a key is not text: put it in quotes"),
    ("log.level", "!!bool x", "", TAGGED),
    ("log.level", "0x_", "", "is not a number: quote the value if it is text"),
    ("log.level", "$x", "", LONE_DOLLAR),
    ("storage", "5", "", NO_SECTION),
    ("storage.remote", "[a]", "", NO_SECTION),
]
ACROSS = [
    ("storage.remote", "{type: s3}", ".bucket", "is required when the type is 's3'"),
    ("storage.remote", "{type: file}", ".directory", "is required when the type is 'file'"),
    (
        "storage.remote",
        "{bucket: abc}",
        ".type",
        "is required when 'bucket' is given: 's3' or 'file'",
    ),
    (
        "storage.remote",
        "{type: s3, bucket: abc, directory: /a}",
        ".directory",
        "has no meaning when the type is 's3'",
    ),
    (
        "storage.remote",
        "{type: file, directory: /a, region: b}",
        ".region",
        "has no meaning when the type is 'file'",
    ),
    (
        "storage.remote",
        "{verify_tls: no, ca_bundle: /a}",
        ".ca_bundle",
        "has no meaning when 'verify_tls' is false",
    ),
    (
        "storage.remote.credentials",
        "{access_key: a}",
        ".secret_key",
        "is required when 'access_key' is given",
    ),
    (
        "storage.remote.credentials",
        "{secret_key: a}",
        ".access_key",
        "is required when 'secret_key' is given",
    ),
    (
        "storage.remote.credentials",
        "{session_token: a}",
        ".access_key",
        "is required when 'session_token' is given",
    ),
    (
        "cache",
        "{dirty_max: 100MiB}",
        ".dirty_max",
        "must be at least four times 'journal.segment_size' (256MiB), "
        "or commits are due at every moment",
    ),
    ("journal.sync_every", "65MiB", "", "must not exceed 'journal.segment_size' (64MiB)"),
    (
        "cache",
        "{size: 16MiB, block_size: 2MiB}",
        ".block_size",
        "must not exceed a sixteenth of 'cache.size'",
    ),
    ("heartbeat.stale_after", "59s", "", "must be at least twice 'heartbeat.interval'"),
]


@pytest.mark.parametrize(("text", "why"), SYNTAX)
def test_text_that_is_no_yaml_is_refused_with_its_line(tmp_path: Path, text: str, why: str) -> None:
    """Half of all configuration faults are indentation."""
    assert faults(tmp_path, text) == [f"FILE: {why}"]


@pytest.mark.parametrize(("given_key", "value", "inner", "why"), FAULTS + ACROSS)
def test_fault_is_one_line_with_its_key(
    tmp_path: Path, given_key: str, value: str, inner: str, why: str
) -> None:
    """What a person reads when the mount does not start."""
    assert faults(tmp_path, nested(given_key, value)) == [f"{given_key}{inner}: {why}"]


def test_second_key_names_both_lines(tmp_path: Path) -> None:
    """YAML itself would silently take the last one."""
    (line,) = faults(tmp_path, "log:\n  level: info\n  level: debug\n")
    assert line == "log.level: is given twice, on lines 2 and 3"


SIZE_FAULT = "not a size: write a number of bytes"
TIME_FAULT = "not a duration: write a number of seconds"
FLAG_FAULT = "expected true or false"
TEXT_FAULT = "expected text: put the value in quotes"
PATH_FAULT = "must be an absolute path"
WRONG_VALUES = {
    "storage.remote.type": [("azure", "expected 's3' or 'file'")],
    "storage.remote.bucket": [("s3://b", "not the name of a bucket"), ("5", TEXT_FAULT)],
    "storage.remote.prefix": [("a//b", "only letters, digits"), ("a/../b", "only letters")],
    "storage.remote.directory": [("a/b", PATH_FAULT), ("[x]", "expected a path")],
    "storage.remote.region": [("no", TEXT_FAULT)],
    "storage.remote.endpoint_url": [
        ("127.0.0.1:9000", "not an address: write http://HOST:PORT"),
        ("http://h:nine", "not an address"),
        ("http://[::1", "not an address"),
        (f"http://u:{SECRET}@h", "only scheme, host, port and path are allowed"),
    ],
    "storage.remote.path_style": [("perhaps", FLAG_FAULT)],
    "storage.remote.verify_tls": [("[1]", FLAG_FAULT)],
    "storage.remote.ca_bundle": [("ca.pem", PATH_FAULT)],
    "storage.remote.connect_timeout": [("soon", TIME_FAULT), ("0", "must be at least 0.1s")],
    "storage.remote.read_timeout": [("2h", "must be at most 1h"), ("-1", TIME_FAULT)],
    "storage.remote.retry_deadline": [("2d", "must be at most 1d")],
    "storage.remote.connections": [("0", "must be at least 1"), ("1.5", "expected a whole number")],
    "storage.remote.uploads": [("0", "must be at least 1"), ("257", "must be at most 256")],
    "storage.remote.multipart": [("often", "expected 'auto', 'always' or 'never'")],
    "storage.remote.part_size": [("4MiB", "must be at least 5MiB"), ("8M", SIZE_FAULT)],
    "storage.remote.credentials.access_key": [("5", TEXT_FAULT)],
    "storage.remote.credentials.secret_key": [("[a]", TEXT_FAULT)],
    "storage.remote.credentials.session_token": [("true", TEXT_FAULT)],
    "durability": [("both", "expected 'local' or 'remote'")],
    "commit.interval": [("0.9s", "must be at least 1s"), (".nan", TIME_FAULT)],
    "commit.inline_max": [("7MiB", "must be at most 6MiB"), ("4M", SIZE_FAULT)],
    "journal.segment_size": [("1MiB", "must be at least 4MiB")],
    "journal.sync_every": [("1KiB", "must be at least 64KiB")],
    "journal.sync_interval": [("1ms", "must be at least 0.01s"), ("true", TIME_FAULT)],
    "cache.directory": [("cache", PATH_FAULT), ("5", "expected a path")],
    "cache.size": [("1.0000001kB", SIZE_FAULT), ("1.5", "not a whole number of bytes")],
    "cache.dirty_max": [("1MiB", "must be at least 16MiB"), ("false", SIZE_FAULT)],
    "cache.ram_size": [("-1", SIZE_FAULT), ("[]", SIZE_FAULT)],
    "cache.block_size": [("1KiB", "must be at least 64KiB"), ("9MiB", "must be at most 8MiB")],
    "volume.capacity": [("1MiB", "must be at least 1GiB")],
    "volume.pack_size": [("4MiB", "must be at least 5MiB"), ("2GiB", "must be at most 1GiB")],
    "reclaim.window": [("1w", TIME_FAULT)],
    "reclaim.hourly": [(".inf", TIME_FAULT)],
    "reclaim.grace": [("10000d", "must be at most 3650d")],
    "reclaim.every": [("0", "must be at least 1s")],
    "metrics.address": [("9464", TEXT_FAULT), ("':9464'", "not an address to listen on")],
    "mount.kernel_writeback": [("maybe", FLAG_FAULT)],
    "mount.read_ahead": [("1GiB", "must be at most 64MiB")],
    "mount.allow_other": [("3", FLAG_FAULT)],
    "mount.max_tasks": [("99", "must be at least 100"), ("many", "expected a whole number")],
    "heartbeat.interval": [("0", "must be at least 1s")],
    "heartbeat.stale_after": [("2d", "must be at most 1d")],
    "log.level": [("loud", "expected 'debug', 'info', 'warning' or 'error'")],
    "log.format": [("xml", "expected 'text' or 'json'")],
}


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [(key, value, why) for key, cases in WRONG_VALUES.items() for value, why in cases],
)
def test_wrong_value_is_named_by_key_and_not_repeated(
    tmp_path: Path, key: str, value: str, why: str
) -> None:
    """Each setting refuses what it cannot use, and says where."""
    (line,) = faults(tmp_path, nested(key, value))
    assert line.startswith(f"{key}: {why}")
    assert SECRET not in line


def test_every_setting_has_a_fault_test() -> None:
    """A new key comes with its limits tested."""
    assert set(WRONG_VALUES) == set(leaves(Config))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    """Nobody should repair a file one restart at a time."""
    text = "log:\n  levle: a\n  format: ${F}\ncommit:\n  interval: x\n"
    assert len(faults(tmp_path, text)) == 3


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("absent.yaml", None, "No such file or directory"),
        ("latin.yaml", b"log: \xff\n", "is not UTF-8 text"),
        (".", None, "Is a directory"),
    ],
)
def test_unreadable_file_is_named(
    tmp_path: Path, name: str, content: bytes | None, why: str
) -> None:
    """A wrong path is a line of text, not a traceback."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {}, environ={})
    assert str(caught.value) == f"{path}: {why}"


# --- secrets -----------------------------------------------------------------------------


def test_secrets_are_in_no_view_of_the_settings(tmp_path: Path) -> None:
    """`status`, a traceback and a debug log all show settings."""
    config = load(tmp_path, MISSION_EXAMPLE, AWS_ACCESS_KEY="AKIA1", AWS_SECRET_KEY=SECRET)
    views = [repr(config), str(config), json.dumps(config.public_dict())]
    views += [config.model_dump_json(), str(config.model_dump())]
    assert not any(SECRET in view or "AKIA1" in view for view in views)
    shown: Any = config.public_dict()
    assert shown["storage"]["remote"]["credentials"] == {
        "access_key": "***",
        "secret_key": "***",
        "session_token": None,
    }
    assert shown["commit"]["interval"] == 30.0


@pytest.mark.parametrize(
    "text",
    [
        f"storage:\n  remote:\n    secret_key: {SECRET}\n",
        f"storage:\n  remote:\n    bucket: s3://{SECRET}\n    credentials: {SECRET}\n",
        f"storage: {{remote: {{credentials: {{secret_key: [{SECRET}]}}}}}}\n",
        f"secret: {SECRET}: {SECRET}\n",
        f"secret: *{SECRET}\n",
        f"secret: &{SECRET}\n",
        f"secret: !{SECRET} x\n",
        f"secret: !{SECRET}!x y\n",
        f'secret: "{SECRET}\n',
        f"secret: '{SECRET}' {SECRET}\n",
        f"secret: $({SECRET}\n",
        f"secret: ${{{SECRET}}}\n",
        f"cache:\n  size: {SECRET}\nlog: {{level: {SECRET}}}\ncommit: {{interval: {SECRET}}}\n",
        "cache:\n  size: ${S}\nlog: {level: '${S}'}\nmetrics: {address: '${S}'}\n",
    ],
)
def test_no_fault_repeats_what_may_be_a_secret(tmp_path: Path, text: str) -> None:
    """A key pasted into the wrong place must not end in the log of the pod."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, S=SECRET)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


# --- sizes, durations, variables ---------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        (4096, 4096),
        ("10GiB", 10 * 1024**3),
        ("512MB", 512_000_000),
        ("64 kB", 64_000),
        ("1.5KiB", 1536),
        ("3tib", 3 * 1024**4),
        ("7B", 7),
    ],
)
def test_size_is_read(text: object, size: int) -> None:
    """The units are the ones they say: 1000 and 1024 are not mixed up."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "1K", "1 Gi", "-1", "1e3", "1.2.3", "٣", True, "1" * 30])
def test_size_is_refused(text: object) -> None:
    """What could be read in two ways is not read at all."""
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("250ms", 0.25),
        (2, 2),
        ("0.5", 0.5),
        ("1d", 86400),
    ],
)
def test_duration_is_read(text: object, seconds: float) -> None:
    """`m` is minutes and `ms` is milliseconds."""
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "1 h", "-5s", "1M", "inf", "nan", True, "5s 3"])
def test_duration_is_refused(text: object) -> None:
    """An endless or negative interval must not reach a timer."""
    with pytest.raises(ValueError, match="not a duration"):
        parse_seconds(text)


@settings(deadline=None)
@given(st.integers(0, 1 << 59))
def test_formatted_size_is_read_back(size: int) -> None:
    """The limits in messages are values that the file takes."""
    assert parse_size(format_size(size)) == size


@settings(deadline=None)
@given(st.integers(0, 10**8))
def test_formatted_duration_is_read_back(seconds: int) -> None:
    """The same for durations."""
    assert parse_seconds(format_seconds(float(seconds))) == seconds


PLAIN = st.text(st.characters(exclude_characters="$", exclude_categories=["Cs"]), max_size=8)
NAMES = st.from_regex(r"[A-Z_][A-Z0-9_]{0,5}", fullmatch=True)
DEFAULTS = st.text(st.characters(exclude_characters="}", exclude_categories=["Cs"]), max_size=8)
PARTS = st.one_of(
    st.tuples(st.just("plain"), PLAIN, st.just("")),
    st.tuples(st.just("dollar"), st.just(""), st.just("")),
    st.tuples(st.just("variable"), NAMES, st.just("")),
    st.tuples(st.just("default"), NAMES, DEFAULTS),
)


@settings(deadline=None)
@given(st.lists(PARTS, max_size=6), st.dictionaries(NAMES, st.text(max_size=6), max_size=6))
def test_expansion_equals_the_plain_reading(
    parts: list[tuple[str, str, str]], environ: dict[str, str]
) -> None:
    """Values with `$`, `}` or `${` inside are taken as they are, never expanded again."""
    text, expected, missing = "", "", []
    for kind, first, second in parts:
        value = environ.get(first, "")
        if kind == "plain":
            text, expected = text + first, expected + first
        elif kind == "dollar":
            text, expected = f"{text}$$", f"{expected}$"
        elif kind == "variable":
            text, expected = f"{text}${{{first}}}", expected + value
            missing += [first] if not value else []
        else:
            text, expected = f"{text}${{{first}:-{second}}}", expected + (value or second)
    if missing:
        with pytest.raises(ValueError, match=rf"environment variable {missing[0]} is"):
            expand(text, environ)
    else:
        assert expand(text, environ) == expected


@settings(deadline=None)
@given(st.text(alphabet="${}:-AB", max_size=12))
def test_expansion_never_leaves_a_reference_behind(text: str) -> None:
    """A reference that was mistyped is a fault and not a bucket called `${BUCKET`."""
    try:
        result = expand(text, {"A": "x", "B": "y"})
    except ValueError:
        assert "$" in text
    else:
        rest = re.sub(r"\$\$|\$\{[AB]+(:-[^}]*)?\}", "", text)
        assert "$" not in rest
        assert "$" in text or result == text


# --- the document ------------------------------------------------------------------------


def documented() -> dict[str, str]:
    """Return key -> default as the tables of the document give them."""
    rows = re.findall(
        r"^\| `([a-z_.]+)` \| [^|]+ \| ([^|]*)\| [^|]+ \|$",
        DOCUMENT.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return {key: default.strip() for key, default in rows}


def test_document_lists_every_setting() -> None:
    """A key that nobody can find out about does not exist."""
    assert set(documented()) == set(leaves(Config))


def test_documented_defaults_are_the_real_ones(tmp_path: Path) -> None:
    """Writing a documented default into the file changes nothing."""
    for key, default in documented().items():
        if default:
            assert load(tmp_path, nested(key, default)) == load_config(None, {}), key
        else:
            assert leaves(Config)[key] in (None, ""), key
