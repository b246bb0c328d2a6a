"""`StageOptions`: values, validation, pickling, JSON."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest

from peerstage import StageOptions

#: Options that all differ from the defaults.
OTHERS = StageOptions(
    durable=False,
    preserve_times=True,
    include=("*.gz", "\udcff", "SHA256SUMS"),
    exclude=("a",),
    max_size=1,
    manifest=True,
    verify="sha256",
    checksums="SHA256SUMS",
    link_dest="/srv/yesterday",
    partial_dir="/srv/partial",
    bwlimit=1024,
)

INVALID: list[dict[str, Any]] = [
    {"durable": None},
    {"durable": 1},
    {"preserve_times": "yes"},
    {"include": None},
    {"include": ""},
    {"include": ["a", 5]},
    {"include": ["a/*"]},
    {"exclude": ["a\0"]},
    {"exclude": {"a": "b"}},
    {"max_size": 0},
    {"max_size": 1.5},
    {"max_size": True},
    {"manifest": "peerstage.sha256"},
    {"verify": "sha"},
    {"verify": None},
    {"verify": ["sha256"]},
    *({"checksums": name} for name in ("", ".", "..", "a/b", "/a", "a\0", "\ud800", 7)),
    {"bwlimit": 1023},
    {"bwlimit": 2048.0},
    {"bwlimit": True},
]


def test_every_option_differs_from_its_default_in_these_tests() -> None:
    defaults = dataclasses.asdict(StageOptions())
    assert [name for name, value in dataclasses.asdict(OTHERS).items() if value == defaults[name]] == []


@pytest.mark.parametrize("options", [StageOptions(), OTHERS], ids=["defaults", "others"])
def test_options_survive_pickling_and_json(options: StageOptions) -> None:
    assert pickle.loads(pickle.dumps(options)) == options
    assert StageOptions.from_json(options.to_json()) == options
    assert hash(StageOptions.from_json(options.to_json())) == hash(options)


def test_options_that_json_leaves_out_have_their_defaults() -> None:
    assert StageOptions.from_json("{}") == StageOptions()
    assert StageOptions.from_json('{"preserve_times": true}') == StageOptions(preserve_times=True)


def test_the_checksum_file_must_be_selected() -> None:
    for patterns in ({"include": "*.gz"}, {"exclude": ("*.tmp", "SHA*")}):
        (name,) = patterns
        with pytest.raises(ValueError, match=f"StageOptions: {name} must be patterns .* the checksum file"):
            StageOptions(verify="sha256", checksums="SHA256SUMS", **patterns)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["peerstage.sha256", "peerstage.json"])
def test_the_checksum_file_is_not_the_manifest_that_is_written(name: str) -> None:
    with pytest.raises(ValueError, match="StageOptions: manifest must be False if checksums is one of its names"):
        StageOptions(verify="sha256", checksums=name, manifest=True)
    assert StageOptions(verify="sha256", checksums=name).checksums == name


def test_a_pattern_may_stand_alone_and_several_in_a_list() -> None:
    options = StageOptions(include="*.gz", exclude=["a", "b"])
    assert (options.include, options.exclude) == (("*.gz",), ("a", "b"))


@pytest.mark.parametrize("values", INVALID, ids=str)
def test_an_invalid_value_is_refused_and_named(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(ValueError, match=rf"^StageOptions: {name} must be .*, not "):
        StageOptions(**values)
    with pytest.raises(ValueError, match=f"^StageOptions: {name} must be "):
        StageOptions.from_json(json.dumps(values))


@pytest.mark.parametrize(
    "text", ['{"verify": "sha256"}', '{"checksums": "a"}', '{"verify": "stable", "checksums": "a"}']
)
def test_a_checksum_file_and_its_use_go_together(text: str) -> None:
    with pytest.raises(ValueError, match=r"^StageOptions: (checksums|verify) must be .* if "):
        StageOptions.from_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Not stage options: "),
        ("{", "Not stage options: "),
        ("[" * 100_000, "Not stage options: "),
        ("[]", "Not stage options, but a JSON list"),
        ("null", "Not stage options, but a JSON NoneType"),
        ('{"durabel": true}', "StageOptions has no option 'durabel'"),
        ('{"\\u001b": true}', r"StageOptions has no option '\\x1b'"),
    ],
    ids=["nothing", "half", "nested", "list", "null", "unknown", "escape"],
)
def test_json_that_is_no_options_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        StageOptions.from_json(text)
    assert str(caught.value).isprintable()


def test_options_are_frozen_and_keyword_only() -> None:
    with pytest.raises(AttributeError):
        StageOptions().durable = False  # type: ignore[misc]
    with pytest.raises(TypeError):
        StageOptions(False)  # type: ignore[misc]
