"""What many tests need: the bundled model, one publication of it made once for all workers, and a home of their own."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Two workers and the processes they start share two cores; threads that outnumber them spin against each other.
for threads in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(threads, "1")

import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402

if TYPE_CHECKING:
    from tests.hub import HubServer

ASSETS = Path(__file__).parent / "assets"
SHAPES = ASSETS / "shapes-moe-vl"


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills, by the first worker that asks for it."""
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            make(partial)
            partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of this run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session", autouse=True)
def home(shared: Path) -> Iterator[Path]:
    """Nothing of the user's is read or written: caches, tokens and settings are this run's."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MOPEQ_HOME", str(shared / "mopeq-home"))
    patch.setenv("HF_HOME", str(shared / "hf-home"))
    patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    # Publications are compared byte by byte, and they say when and in which run they were made.
    patch.setenv("SOURCE_DATE_EPOCH", "1750000000")
    for variable in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "MOPEQ_DEBUG", "GITHUB_RUN_ID", "JOB_ID"):
        patch.delenv(variable, raising=False)
    yield shared
    patch.undo()


def draw_the_same_numbers() -> None:
    """Before each fixture and each test, so that what they draw does not depend on what ran before."""
    import torch

    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    draw_the_same_numbers()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    draw_the_same_numbers()


@pytest.fixture(scope="session")
def shapes() -> Path:
    """The bundled trained model: LLaVA over qwen3_moe, 4 layers of 24 experts."""
    return SHAPES


@pytest.fixture(scope="session")
def some_questions(shared: Path) -> Path:
    """The first 48 of the bundled model's questions, with their pictures."""
    folder = shared / "some-questions"
    with FileLock(shared / "some-questions.lock"):
        if not folder.exists():
            folder.mkdir()
            shutil.copytree(SHAPES / "images", folder / "images")
            lines = (SHAPES / "eval.jsonl").read_text("utf-8").splitlines(keepends=True)[:48]
            (folder / "questions.jsonl").write_text("".join(lines), "utf-8")
    return folder / "questions.jsonl"


@pytest.fixture(scope="session")
def published(shared: Path, some_questions: Path) -> Path:
    """The bundled model published to a folder by the defaults; tests read it and must not change it."""
    target = shared / "published" / "shapes-MoPEQ"
    with FileLock(shared / "published.lock"):
        if not target.exists():
            from mopeq_hub import Recipe, publish

            publish(str(SHAPES), str(target), Recipe(), questions=some_questions, compare=False)
    return target


@pytest.fixture(scope="session")
def filled(shared: Path) -> Path:
    """What `tests.shelf` makes: the bundled model, published at two budgets."""
    from tests.shelf import fill

    return made_once(shared / "shelf", fill)


@pytest.fixture
def publication(published: Path, tmp_path: Path) -> Path:
    """A copy of the publication that a test may damage."""
    shutil.copytree(published, tmp_path / "publication")
    shutil.copytree(published.with_name(published.name + "-space"), tmp_path / "publication-space")
    return tmp_path / "publication"


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The files of a private and a public key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    folder = tmp_path_factory.mktemp("keys")
    private, public = folder / "key.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def hub(tmp_path: Path) -> Iterator["HubServer"]:
    """A running Hub on loopback, to which the client in this process is pointed."""
    from tests.hub import HubServer, client_pointed_at

    with HubServer(tmp_path / "server") as server, client_pointed_at(server, tmp_path / "home"):
        yield server


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[[Callable[[Path], None]], Path]:
    """Makes a copy of the bundled model and applies a damage to it."""

    def make(damage: Callable[[Path], None]) -> Path:
        folder = tmp_path / "copied-model"
        shutil.copytree(SHAPES, folder, ignore=shutil.ignore_patterns("images", "*.jsonl"))
        damage(folder)
        return folder

    return make


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def many_shards(folder: Path, count: int) -> Path:
    """The bundled model in `count` files, each with a part of every layer."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(SHAPES, folder, ignore=shutil.ignore_patterns("*.safetensors*", "images", "*.jsonl"))
    tensors: dict[str, Any] = {}
    for path in sorted(SHAPES.glob("*.safetensors")):
        tensors |= load_file(path)
    weight_map: dict[str, str] = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = sorted(tensors)[number::count]
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
