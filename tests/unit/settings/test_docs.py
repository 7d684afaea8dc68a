"""docs/config.md and the files in config/ say what the model says."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from pgpool_proxy.settings import KEYS, Settings, load
from pgpool_proxy.settings.entries import DATABASE_KEYS, PEER_KEYS, USER_KEYS
from pgpool_proxy.settings.ini import pairs
from pgpool_proxy.settings.keys import INT_MAX, Flag, Key, Seconds, Whole, Word
from pgpool_proxy.settings.model import default_text

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "config.md").read_text()
SAMPLE = ROOT / "config" / "pgpool_proxy.ini"


def values(key: Key) -> str:
    """The column `values` of docs/config.md."""
    if isinstance(key, Word):
        return ", ".join(key.words)
    if isinstance(key, Whole):
        numbers = f"from {key.low}" if key.high == INT_MAX else f"{key.low} to {key.high}"
        return f"{numbers}, or {key.zero}" if key.zero else numbers
    return "0, 1" if isinstance(key, Flag) else "seconds" if isinstance(key, Seconds) else "text"


def section(title: str) -> dict[str, list[str]]:
    """The rows of the tables under a heading: key -> the other columns."""
    text = DOCS.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line.strip("| ")) for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): [column.strip() for column in row[1:]] for row in rows}


MAIN = section("[pgbouncer]")


def test_docs_have_every_key_and_no_other() -> None:
    assert sorted(MAIN) == sorted(KEYS)
    assert "\n".join(MAIN).count("\n") == len(KEYS) - 1


@pytest.mark.parametrize("name", KEYS)
def test_a_row_of_the_docs_is_the_models(name: str) -> None:
    key, default = KEYS[name], default_text(name)
    shown = "-" if default is None else f"`{default}`" if default else "empty"
    changeable = "yes" if key.changeable else "no"
    meaning = key.doc + (" (our own key)" if key.own else "")
    assert MAIN[name][:4] == [shown, values(key), changeable, meaning]
    example = MAIN[name][4].strip("`").replace("\\|", "|")
    assert example.startswith(f"{name} = ")
    key.parse(example.removeprefix(f"{name} = "))


@pytest.mark.parametrize(("title", "keys"), [("[databases]", DATABASE_KEYS), ("[users]", USER_KEYS), ("[peers]", PEER_KEYS)])
def test_the_keys_of_entries_are_documented(title: str, keys: dict[str, Key]) -> None:
    rows = section(title)
    assert sorted(rows) == sorted(keys)
    for name, key in keys.items():
        assert rows[name][:2] == [values(key), key.doc]
        ((found, value),) = pairs(rows[name][2].strip("`"))
        assert found == name
        key.parse(value)


def test_keys_without_effect_stand_under_their_own_heading() -> None:
    text = DOCS.split("### Without effect here\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE)) == {name for name, key in KEYS.items() if not key.effect}


def test_the_sample_file_has_every_key_with_its_default_and_a_comment() -> None:
    lines = SAMPLE.read_text().split("\n[pgbouncer]\n")[1].splitlines()
    found: dict[str, str] = {}
    for before, line in pairwise(lines):
        match = re.fullmatch(r";(\w+) =\s?(.*)", line)
        if match is not None:
            name, found[match[1]] = match[1], match[2]
            assert before == "; " + KEYS[name].doc + ("" if KEYS[name].changeable else " [restart]")
    assert sorted(found) == sorted(KEYS)
    for name, text in found.items():
        default = default_text(name)
        assert text == (default if default is not None else "0" if name == "verbose" else "")


def test_the_sample_file_loads_as_it_is_and_with_every_key_uncommented(tmp_path: Path) -> None:
    assert load(str(SAMPLE), {"conffile": ""}, {}).settings == Settings(conffile="")
    text = re.sub(r"^;(\w+ = \S.*|'.*)$", r"\1", SAMPLE.read_text(), flags=re.MULTILINE)
    (tmp_path / "all.ini").write_text(text)
    config = load(str(tmp_path / "all.ini"), {"conffile": ""}, {})
    assert config.settings == Settings(conffile="")
    assert set(config.databases) == {"mydb", "shared"}
    assert (set(config.users), set(config.peers)) == ({"reports"}, {1})


def test_the_sample_file_names_every_key_of_an_entry() -> None:
    text = SAMPLE.read_text()
    for start, end, keys in (
        ("[databases]", "[users]", DATABASE_KEYS),
        ("[users]", "[peers]", USER_KEYS),
        ("[peers]", "[pgbouncer]", PEER_KEYS),
    ):
        part = text.split(f"\n{start}\n")[1].split(f"\n{end}\n")[0]
        assert dict(re.findall(r"^;   (\w+) +(.*)$", part, re.MULTILINE)) == {name: key.doc for name, key in keys.items()}


def test_the_minimal_file_loads_and_finds_its_user_list() -> None:
    config = load(str(ROOT / "config" / "minimal.ini"), {}, {})
    assert config.settings.pool_mode == "transaction"
    assert config.auth_file_stamp is not None
