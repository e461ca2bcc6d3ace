"""Figures and names as every report writes them."""

import pytest

from mopeq_hub.report import UNIFORM_4, choices, code, escape, hub_address, link, listed, number, percent, size, uniform
from tests.report.documents import check, fidelity, manifest


def test_the_made_up_documents_are_valid() -> None:
    made = manifest(dense=1)
    check(made, "mopeq.schema.json")
    check(fidelity(made, by_blocks=True, accuracy=True), "fidelity.schema.json")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (5_800_000, "5.80 MB"),
        (999_499_999, "999 MB"),
        (999_500_000, "1.00 GB"),
        (54_000_000_000, "54.0 GB"),
        (1_380_000_000_000, "1.38 TB"),
    ],
)
def test_size_has_three_digits_and_a_decimal_unit(count: int, text: str) -> None:
    assert size(count) == text


def test_a_percentage_says_all_only_of_all() -> None:
    assert [percent(share) for share in (0, 0.5, 0.9632, 0.9996, 1)] == ["0.0%", "50.0%", "96.3%", "over 99.9%", "100%"]


def test_numbers_and_lists() -> None:
    assert [number(value) for value in (0.0, 0.041372, 1.2e-5, float("nan"))] == [
        "0",
        "0.0414",
        "1.2e-05",
        "not finite",
    ]
    assert [listed(words) for words in (["2"], ["2", "3"], ["2", "3", "4"])] == ["2", "2 and 3", "2, 3 and 4"]


def test_escaped_text_reads_the_same_and_marks_nothing_up() -> None:
    assert escape("plain words, 3.5 (and more)") == "plain words, 3.5 (and more)"
    assert escape("https://a.b www.a.b @a") == "https&#58;//a.b www&#46;a.b &#64;a"
    assert escape("<b>*a*\n[c](d)") == "&#60;b&#62;&#42;a&#42; &#91;c&#93;(d)"


def test_a_code_span_holds_backticks() -> None:
    assert [code(text) for text in ("a_b", "a`b", "``a`")] == ["`a_b`", "``a`b``", "``` ``a` ```"]


def test_only_plain_addresses_become_links() -> None:
    label = escape("here")
    assert link(label, "https://huggingface.co/a/b") == "[here](https://huggingface.co/a/b)"
    assert [link(label, bad) for bad in (None, "javascript:alert(1)", "https://a b", "https://a)b")] == ["here"] * 4
    assert hub_address("a/b") == "https://huggingface.co/a/b"
    assert [hub_address(bad) for bad in (None, "a", "a/b/c", "../b", "a/b?c", "a/b\n")] == [None] * 6


def test_choices_are_compared_from_the_largest_to_this_one() -> None:
    made = manifest()
    names = ["original", UNIFORM_4, "uniform 3 bits", "uniform 2 bits", "this publication"]
    assert [choice.name for choice in choices(made, fidelity(made))] == names
    assert [choice.name for choice in choices(made, None)] == ["original", UNIFORM_4, "this publication"]


def test_a_uniform_choice_has_the_size_of_its_packed_weights() -> None:
    made = manifest()
    assert uniform(made, 4).bytes == made["sizes"]["uniform_4bit_bytes"]
    weights, group = made["sizes"]["expert_weights"], 64
    assert uniform(made, 4).bytes - uniform(made, 3).bytes == (weights + weights // group) // 8
    assert uniform(made, 2).bpw == 2 + 18 / group
