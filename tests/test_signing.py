"""Signatures: over what is published, verified by model-signing itself and by `check`; real ones, by real keys."""

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from huggingface_hub import HfApi

from mopeq_hub import MopeqError, Recipe, pipeline
from mopeq_hub.check import Finding, check
from mopeq_hub.signing import Signatory, signatory_for, signer_for
from tests.conftest import edit_json
from tests.hub import HubServer

Keys = tuple[Path, Path]
REPO = "alice/shapes-MoPEQ"


@pytest.fixture
def hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setenv("HF_TOKEN", hub.token("alice"))
    return hub


@pytest.fixture(scope="module")
def signed_once(published: Path, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signed") / "shapes-MoPEQ"
    pipeline.push(published, str(folder), sign=str(keys[0]), space=False)
    return folder


@pytest.fixture
def signed(signed_once: Path, tmp_path: Path) -> Path:
    """A signed publication in a folder, for a test to damage."""
    return Path(shutil.copytree(signed_once, tmp_path / "signed"))


def verdict(where: str | Path, key: Path) -> Finding:
    """What `check` says of the signature, without loading."""
    findings = check(str(where), load=False, signatory=signatory_for(key, None, None))
    return next(finding for finding in findings if "signed by" in finding.subject)


def model_signing_verifies(folder: Path, public: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
    command += ["--signature", str(folder / "model.sig"), "--public_key", str(public)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_signed_repo_is_verified_by_model_signing_itself(
    hub: HubServer, published: Path, keys: Keys, tmp_path: Path
) -> None:
    pipeline.push(published, REPO, sign=str(keys[0]))
    copy = Path(HfApi().snapshot_download(REPO, local_dir=tmp_path / "copy"))
    verified = model_signing_verifies(copy, keys[1])
    assert verified.returncode == 0, verified.stderr
    edit_json(copy / "mopeq.json", lambda manifest: manifest["provenance"].update(who="mallory"))
    spoilt = model_signing_verifies(copy, keys[1])
    assert spoilt.returncode != 0
    assert "mopeq.json" in spoilt.stdout + spoilt.stderr


def test_check_verifies_a_repo_without_downloading_its_weights(hub: HubServer, published: Path, keys: Keys) -> None:
    pipeline.push(published, REPO, sign=str(keys[0]), space=False)
    before = hub.traffic(REPO).downloaded
    assert verdict(REPO, keys[1]) == Finding(f"it is signed by the key {keys[1]}", None)
    weights = sum(path.stat().st_size for path in published.glob("*.safetensors"))
    moved = hub.traffic(REPO).downloaded - before
    assert moved < weights / 2
    hub.commit(REPO, {"model-00001-of-00003.safetensors": b"other weights"})
    assert verdict(REPO, keys[1]).trouble == "model-00001-of-00003.safetensors is not the file that was signed"


def other_card(folder: Path) -> None:
    (folder / "README.md").write_text("another card")


def one_more_file(folder: Path) -> None:
    (folder / "chat_template.json").write_text("{}")


def one_file_less(folder: Path) -> None:
    (folder / "plots" / "bits.png").unlink()


def other_statement(folder: Path) -> None:
    def change(bundle: dict[str, Any]) -> None:
        payload = bundle["dsseEnvelope"]["payload"]
        bundle["dsseEnvelope"]["payload"] = payload[:-8] + payload[-4:]

    edit_json(folder / "model.sig", change)


def no_statement(folder: Path) -> None:
    edit_json(folder / "model.sig", lambda bundle: bundle.pop("dsseEnvelope"))


def no_signature(folder: Path) -> None:
    (folder / "model.sig").unlink()


def no_json(folder: Path) -> None:
    (folder / "model.sig").write_bytes(b"\xff\x00")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (other_card, "README.md is not the file that was signed"),
        (one_more_file, "chat_template.json is there and was not signed"),
        (one_file_less, "plots/bits.png was signed and is missing"),
        (other_statement, "model.sig was changed after it was made"),
        (no_statement, "model.sig cannot be verified"),
        (no_signature, "there is no model.sig"),
        (no_json, "model.sig is not a signature"),
    ],
)
def test_what_is_wrong_with_a_signature_is_said(damage: Any, words: str, signed: Path, keys: Keys) -> None:
    assert verdict(signed, keys[1]).trouble is None
    damage(signed)
    assert words in (verdict(signed, keys[1]).trouble or "")


def test_a_signature_of_somebody_else_is_no_signature(signed: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    other = tmp_path / "other.pem"
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    other.write_bytes(public.public_bytes(serialization.Encoding.PEM, form))
    assert verdict(signed, other).trouble == f"it was signed with another key than {other}"
    someone = Signatory(identity="someone@example.org", provider="https://accounts.example.org")
    (trouble,) = [finding.trouble for finding in check(str(signed), load=False, signatory=someone) if finding.trouble]
    assert trouble == "it was signed with a key, not by someone@example.org"


def test_a_signature_by_an_identity_is_sigstores_to_verify(
    signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sigstore.models import ClientTrustConfig

    def nowhere() -> Any:
        raise ConnectionError("no way to sigstore")

    monkeypatch.setattr(ClientTrustConfig, "production", nowhere)
    material = {"certificate": {"rawBytes": "AA=="}}
    edit_json(signed / "model.sig", lambda bundle: bundle.update(verificationMaterial=material))
    assert verdict(signed, keys[1]).trouble == f"it was signed by an identity, not by the key {keys[1]}"
    someone = signatory_for(None, "someone@example.org", "https://accounts.example.org")
    (trouble,) = [finding.trouble for finding in check(str(signed), load=False, signatory=someone) if finding.trouble]
    assert trouble == "model.sig cannot be verified: ConnectionError: no way to sigstore"


def test_a_signature_nobody_asked_for_is_mentioned(signed: Path, published: Path) -> None:
    findings = check(str(signed), load=False)
    assert [finding.trouble for finding in findings] == [None] * 8
    assert findings[0].subject.startswith("signed, not verified")
    assert len(check(str(published), load=False)) == 7


def test_a_signature_belongs_to_the_publication(published: Path, signed: Path, keys: Keys) -> None:
    first = (signed / "model.sig").read_bytes()
    assert not pipeline.push(published, str(signed), sign=str(keys[0]), space=False).changed
    (signed / "tokenizer.json").unlink()
    pipeline.push(published, str(signed), sign=str(keys[0]), space=False)
    assert verdict(signed, keys[1]).trouble is None
    assert (signed / "model.sig").read_bytes() != first
    (signed / "tokenizer.json").unlink()
    pipeline.push(published, str(signed), space=False)
    assert not (signed / "model.sig").exists(), "a signature of something else does not stay"


def test_what_is_there_unsigned_is_made_again_to_be_signed(hub: HubServer, published: Path, keys: Keys) -> None:
    pipeline.push(published, REPO, space=False)
    assert pipeline.push(published, REPO, sign=str(keys[0]), space=False).changed
    assert verdict(REPO, keys[1]).trouble is None
    hub.commit(REPO, {"tokenizer.json": None})
    pipeline.push(published, REPO, space=False)
    assert "model.sig" not in hub.files(REPO)


def test_a_signed_folder_is_pushed_without_its_signature(
    hub: HubServer, signed: Path, keys: Keys, published: Path
) -> None:
    pipeline.push(signed, REPO, space=False)
    assert "model.sig" not in hub.files(REPO), "it is of another card and another time"


def password(path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    form = serialization.PrivateFormat.PKCS8
    secret = serialization.BestAvailableEncryption(b"secret")
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, secret))


def other_kind(path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key, plain = ed25519.Ed25519PrivateKey.generate(), serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))


def garbage(path: Path) -> None:
    path.write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")


def nothing(path: Path) -> None:
    """No file at all."""


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (password, "is not a private key that can sign"),
        (other_kind, "is not a private key that can sign"),
        (garbage, "is not a private key that can sign"),
        (nothing, "cannot be read: No such file"),
    ],
)
def test_a_key_that_cannot_sign_is_told_before_any_work(make: Any, words: str, shapes: Path, tmp_path: Path) -> None:
    make(tmp_path / "some.pem")
    with pytest.raises(MopeqError, match=words) as raised:
        pipeline.publish(str(shapes), str(tmp_path / "target"), Recipe(), sign=str(tmp_path / "some.pem"))
    assert "c2VjcmV0" not in str(raised.value)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("key", "identity", "provider", "words"),
    [
        (Path("k.pem"), "me", "https://p", "two kinds"),
        (None, "me", None, "belong together"),
        (None, None, "https://p", "belong together"),
        (Path("nowhere.pem"), None, None, "cannot be read"),
        (Path(__file__), None, None, "is not a public key"),
    ],
)
def test_half_a_question_is_refused(key: Path | None, identity: str | None, provider: str | None, words: str) -> None:
    with pytest.raises(MopeqError, match=words):
        signatory_for(key, identity, provider)


def test_without_the_package_one_line_says_what_to_install(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for ask in (lambda: signer_for("oidc"), lambda: signatory_for(keys[1], None, None)):
        with pytest.raises(MopeqError, match=r"pip install 'mopeq-hub\[sign\]'"):
            ask()


def token() -> str:
    """An identity token as GitHub Actions makes one, but for the signature."""
    who = "https://github.com/alice/models/.github/workflows/publish.yml@refs/heads/main"
    claims = {"iss": "https://token.actions.githubusercontent.com", "sub": who, "aud": "sigstore", "exp": 2**31}
    parts = ({"alg": "RS256", "typ": "JWT"}, claims)
    return ".".join(
        [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts] + ["c2ln"]
    )


class Tokens(BaseHTTPRequestHandler):
    """Gives identity tokens as the address in ACTIONS_ID_TOKEN_REQUEST_URL does."""

    asked: ClassVar[list[tuple[str, str]]] = []
    status = 200

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Authorization"]))
        body = json.dumps({"value": token()}).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *anything: Any) -> None:
        pass


@pytest.fixture
def workflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Tokens]]:
    """A job of a workflow that may ask for its identity."""
    server = HTTPServer(("127.0.0.1", 0), Tokens)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(Tokens, "asked", [])
    monkeypatch.setattr(Tokens, "status", 200)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"http://127.0.0.1:{server.server_port}/token?api=1")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "asking-secret")
    yield Tokens
    server.shutdown()
    server.server_close()


def test_the_identity_of_a_run_is_asked_for_before_the_work(workflow: type[Tokens]) -> None:
    assert signer_for("oidc").key is None
    assert workflow.asked == [("/token?api=1&audience=sigstore", "bearer asking-secret")]


def test_sigstore_that_refuses_a_token_is_one_line_without_it(
    workflow: type[Tokens], published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sigstore.models import ClientTrustConfig

    def nowhere() -> Any:
        raise ConnectionError(f"cannot reach sigstore with {token()}")

    monkeypatch.setattr(ClientTrustConfig, "production", nowhere)
    with pytest.raises(MopeqError, match=r"sigstore did not sign: ConnectionError: cannot reach sigstore with \*\*\*"):
        pipeline.push(published, str(tmp_path / "target"), sign="oidc", space=False)
    assert len(workflow.asked) == 2, "a token is good for minutes, so it is asked for again when the work is done"
    assert not (tmp_path / "target").exists()


def test_a_workflow_without_the_permission_is_told_which(
    workflow: type[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "status", 403)
    with pytest.raises(MopeqError, match="id-token: write") as raised:
        signer_for("oidc")
    assert "secret" not in str(raised.value)
    monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
    with pytest.raises(MopeqError, match="id-token: write"):
        signer_for("oidc")


def test_a_machine_of_ones_own_has_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "BUILDKITE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MopeqError, match="OIDC identity"):
        signer_for("oidc")
