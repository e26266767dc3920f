"""The front matter of model cards, changed line by line; PyYAML says what it means."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prune_cli.report.front_matter import Card, Entry, read_card

CARD = """---
# whose it is
license: apache-2.0   # as of 2024
language: [en, "de"]
tags:
- vision
  # a comment in between
- "two words"
model-index:
- name: net
  results:
  - task: {type: image-classification}
"quoted key": x
pipeline_tag: >-
  image-classification
---
# Net

---
Not front matter.
"""


def mean(text: str) -> dict[str, Any]:
    """What the front matter of a card says, by PyYAML."""
    found = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_what_is_not_changed_stays_as_it_was_written() -> None:
    """To the byte, comments and quotes too."""
    card = read_card(CARD)

    assert card.text == CARD
    assert card.body == "# Net\n\n---\nNot front matter.\n"


def test_an_entry_goes_with_all_its_lines() -> None:
    """However deep they are."""
    text = read_card(CARD).without("model-index", "tags").text

    assert mean(text) == {
        key: value for key, value in mean(CARD).items() if key not in ("model-index", "tags")
    }
    assert "results" not in text


def test_an_entry_takes_the_place_of_the_one_before() -> None:
    """A new one comes last."""
    card = read_card(CARD).put(Entry("license", ("license: mit",)))
    card = card.put(Entry("base_model", ("base_model: org/net",)))

    assert mean(card.text) == mean(CARD) | {"license": "mit", "base_model": "org/net"}


@pytest.mark.parametrize(
    ("spelt", "expected"),
    [
        ("tags:\n- a\n- b", ["a", "b", "new"]),
        ("tags:\n  - a\n\n  # one more\n  - 'b c'", ["a", "b c", "new"]),
        ("tags: [a, b]", ["a", "b", "new"]),
        ("tags: []", ["new"]),
        ("tags:", ["new"]),
        ("tags: a # one", ["a", "new"]),
        ("tags: [new, a]", ["new", "a"]),
        ("tags:\n- 'new'", ["new"]),
        ('"tags": [a]', ["a", "new"]),
        ("license: mit", ["new"]),
        ('tags: ["a, b", c]', ["a, b", "c"]),
        ("tags: [a,\n  b]", ["a", "b"]),
        ("tags: &anchor\n- a", ["a"]),
        ("tags:\n- a\n- [b]\n- {c: d}", ["a", ["b"], {"c": "d"}, "new"]),
        ("tags:\n- a\n- >-\n  b", ["a", "b"]),
    ],
)
def test_a_list_gets_what_it_lacks(spelt: str, expected: list[object]) -> None:
    """In whichever way it is spelt; one that is spelt oddly is left as it is."""
    card = read_card(f"---\n{spelt}\n---\n").with_items("tags", ["new"])

    assert mean(card.text)["tags"] == expected


@pytest.mark.parametrize(
    "text",
    ["", "# Net\n", "---\n", "----\na: b\n----\n", "---\n- a\n---\n", "a\n---\nb: c\n---\n"],
)
def test_what_has_no_front_matter_is_all_body(text: str) -> None:
    """Also a line, or a list between lines."""
    assert read_card(text) == Card((), text)


@given(
    facts=st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,8}", fullmatch=True),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        min_size=1,
        max_size=5,
    ),
    style=st.sampled_from([None, False, True]),
    width=st.sampled_from([20, 1000]),
)
def test_any_front_matter_is_kept(facts: dict[str, object], style: bool | None, width: int) -> None:
    """What PyYAML writes, in any of its styles, means the same with an entry more."""
    dumped = yaml.safe_dump(facts, default_flow_style=style, width=width)
    card = read_card(f"---\n{dumped}---\nbody")

    text = card.put(Entry("base_model", ("base_model: org/net",))).text

    if card.entries:  # a mapping in braces is left alone
        assert mean(text) == facts | {"base_model": "org/net"}
