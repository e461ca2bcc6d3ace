"""`check` finds whatever is not as the manifest says."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mopeq_hub import MopeqError
from mopeq_hub.check import check
from mopeq_hub.source import _FIRST_BYTES as HEAD_BYTES
from tests.conftest import edit_json
from tests.hub import HubServer, client_pointed_at

SHARD = "model-00001-of-00003.safetensors"


LOADS = "it loads, every weight in its place"


def troubles(folder: Path, load: bool = True) -> dict[str, str]:
    return {finding.subject: finding.trouble for finding in check(str(folder), load=load) if finding.trouble}


def test_a_publication_is_what_it_says(published: Path) -> None:
    assert troubles(published) == {}


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    data[-1] ^= 1
    (folder / SHARD).write_bytes(data)


def other_width(folder: Path) -> None:
    edit_json(folder / "mopeq.json", lambda manifest: manifest["experts"][1]["bits"].__setitem__(0, 2))


def lost_expert(folder: Path) -> None:
    tensors = load_file(folder / SHARD)
    name = next(name for name in tensors if ".experts.5." in name and name.endswith("qweight"))
    del tensors[name]
    save_file(tensors, folder / SHARD, metadata={"format": "pt"})
    edit_json(folder / "model.safetensors.index.json", lambda index: index["weight_map"].pop(name))


def lost_rule(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config["quantization_config"]["extra_config"].clear())


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def config_of_another_form(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def smuggled_code(folder: Path) -> None:
    (folder / "modeling.py").write_text("print('hello')")


def other_recipe(folder: Path) -> None:
    edit_json(folder / "mopeq.json", lambda manifest: manifest["recipe"].update(seed=5))


def no_fidelity(folder: Path) -> None:
    (folder / "fidelity.json").unlink()


def other_fidelity(folder: Path) -> None:
    edit_json(folder / "fidelity.json", lambda fidelity: fidelity.update(weights_digest="0" * 64))


def no_card(folder: Path) -> None:
    (folder / "README.md").unlink()


def empty_card(folder: Path) -> None:
    (folder / "README.md").write_text("no metadata")


@pytest.mark.parametrize(
    ("damage", "subjects"),
    [
        (flip_a_bit, {"every file has its hash"}),
        (
            other_width,
            {
                "every tensor fits the bit map",
                "the loader's configuration fits the bit map",
                LOADS,
            },
        ),
        (
            lost_expert,
            {"every file has its hash", "every tensor fits the bit map", LOADS},
        ),
        (
            lost_rule,
            {
                "every file has its hash",
                "the loader's configuration fits the bit map",
                LOADS,
            },
        ),
        (
            no_config,
            {
                "every file has its hash",
                "the loader's configuration fits the bit map",
                LOADS,
            },
        ),
        (
            config_of_another_form,
            {
                "every file has its hash",
                "the loader's configuration fits the bit map",
                LOADS,
            },
        ),
        (smuggled_code, {"it brings no foreign code and no pickles"}),
        (other_recipe, {"the recipe has its digest"}),
        (no_fidelity, {"fidelity was measured on these files"}),
        (other_fidelity, {"fidelity was measured on these files"}),
        (no_card, {"the card's metadata is complete"}),
        (empty_card, {"the card's metadata is complete"}),
    ],
)
def test_damage_is_found(damage: Callable[[Path], None], subjects: set[str], publication: Path) -> None:
    damage(publication)
    # Damage that the loader cannot see is looked for without it: it takes as long as all of that.
    assert set(troubles(publication, load=LOADS in subjects)) == subjects


def test_it_is_not_loaded_where_that_is_not_wanted(publication: Path) -> None:
    lost_rule(publication)
    expected = {"every file has its hash", "the loader's configuration fits the bit map"}
    assert set(troubles(publication, load=False)) == expected


def test_what_its_loader_needs_is_said_in_a_line_to_copy(publication: Path) -> None:
    edit_json(publication / "mopeq.json", lambda manifest: manifest["model"].update(model_type="llama4"))
    said = [finding.subject for finding in check(str(publication), load=False)]
    assert any("write `import mopeq_hub` before `from_pretrained`" in subject for subject in said)


def test_what_is_no_publication_cannot_be_checked(tmp_path: Path) -> None:
    with pytest.raises(MopeqError, match="does not exist"):
        check(str(tmp_path / "nothing"))
    with pytest.raises(MopeqError, match="not a publication"):
        check(str(tmp_path))


def test_a_manifest_of_another_form_is_refused_by_its_schema(publication: Path) -> None:
    manifest = json.loads((publication / "mopeq.json").read_text())
    manifest["experts"][0]["bits"][0] = "four"
    (publication / "mopeq.json").write_text(json.dumps(manifest))
    with pytest.raises(MopeqError, match="experts/0/bits/0"):
        check(str(publication))


@pytest.fixture
def on_hub(published: Path, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub that holds the publication, and a client that has nothing of it."""
    with HubServer(tmp_path / "server") as hub, client_pointed_at(hub, tmp_path / "home"):
        hub.add_repo("alice/shapes-MoPEQ", published)
        yield hub


def test_weights_on_the_hub_stay_there_unless_they_are_loaded(on_hub: HubServer, published: Path) -> None:
    findings = check("alice/shapes-MoPEQ", load=False)
    assert findings == check(str(published), load=False)
    assert [finding.trouble for finding in findings] == [None] * 7
    shards = sorted(published.glob("*.safetensors"))
    others = sum(path.stat().st_size for path in published.rglob("*") if path.is_file() and path not in shards)
    heads = len(shards) * HEAD_BYTES
    assert on_hub.traffic("alice/shapes-MoPEQ").downloaded <= others + heads
    assert heads < sum(path.stat().st_size for path in shards) / 3


@pytest.mark.parametrize("damage", [flip_a_bit, lost_expert, lost_rule, no_config, smuggled_code, no_fidelity, no_card])
def test_damage_on_the_hub_is_found_in_the_same_words(
    damage: Callable[[Path], None], on_hub: HubServer, publication: Path
) -> None:
    damage(publication)
    before = {path.relative_to(publication).as_posix() for path in publication.rglob("*") if path.is_file()}
    gone = dict.fromkeys(set(on_hub.files("alice/shapes-MoPEQ")) - before - {".gitattributes"})
    on_hub.commit("alice/shapes-MoPEQ", {**{name: publication / name for name in before}, **gone})
    here, there = check(str(publication), load=False), check("alice/shapes-MoPEQ", load=False)
    assert [finding.subject for finding in there if finding.trouble] == [each.subject for each in here if each.trouble]
    for one, other in zip(here, there, strict=True):
        # Where a file lies is said as it is.
        assert (one.trouble or "").split(" of ")[0].split(" '")[0] == (other.trouble or "").split(" of ")[0].split(
            " '"
        )[0]


def test_a_repo_without_a_manifest_is_no_publication(on_hub: HubServer) -> None:
    on_hub.add_repo("alice/other", {"notes.txt": b"mine"})
    with pytest.raises(MopeqError, match="not a publication"):
        check("alice/other", load=False)
    with pytest.raises(MopeqError, match="does not exist"):
        check("alice/nowhere", load=False)
