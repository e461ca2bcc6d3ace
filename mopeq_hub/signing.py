"""Signatures of publications, by model-signing: made with a run's own identity or a private key, and verified.

What is signed are the digests of the files, which are known where the files are not: of weights that were sent and let
go, and of those that stay on the Hub. The signature is the one that model-signing makes of a folder with these files.
"""

import base64
import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mopeq_hub.errors import MopeqError, UsageError
from mopeq_hub.hub.contents import file_names
from mopeq_hub.manifest import SIGNATURE_NAME
from mopeq_hub.records import sha256_of
from mopeq_hub.untrusted import read_object

if TYPE_CHECKING:
    from model_signing import hashing, signing, verifying

OIDC = "oidc"
_NOT_SIGNED = (SIGNATURE_NAME, ".cache", ".git", ".gitattributes", ".github", ".gitignore")
"""What lies beside a publication without being part of it: the signature, and what Hub, git and downloads leave."""
_INSTALL = "pip install 'mopeq-hub[sign]'"
_KEY_FORM = "an EC key (P-256, P-384 or P-521) in a PEM file"


@dataclass(frozen=True)
class Signer:
    """Who signs: the holder of a private key, or without one the identity of the run that this process is."""

    key: Path | None

    def sign(self, folder: Path, manifest: dict[str, Any]) -> None:
        """Sign what is published of `folder` and leave the signature there.

        manifest: of the publication; the files it describes need not be there any more. Raises MopeqError where the
        run has lost its identity, or sigstore does not sign.
        """
        digests = {name: described["sha256"] for name, described in manifest["files"].items()}
        for name in file_names(folder):
            if name not in digests and is_signed(name):
                digests[name] = sha256_of(folder / name)
        known = _known(manifest["publication"], digests)
        if self.key:
            _with_key(self.key).set_hashing_config(known).sign(folder, folder / SIGNATURE_NAME)
        else:
            _sign_as_run(known, folder)


def signer_for(who: str) -> Signer:
    """Who signs: `oidc` for this run's identity, else the file of a private key.

    Raises MopeqError where there is no such identity or key, or nothing to sign with, so that it is known before the
    work begins.
    """
    _check_installed()
    if who == OIDC:
        _identity_token()
        return Signer(None)
    key = Path(who).expanduser()
    _with_key(key)
    return Signer(key)


@dataclass(frozen=True)
class Signatory:
    """Whose signature a publication should have: a public key's, or an identity's that a provider vouches for."""

    key: Path | None = None
    identity: str = ""
    provider: str = ""

    def __str__(self) -> str:
        return f"the key {self.key}" if self.key else self.identity

    def verify(self, signature: Path, digests: Mapping[str, str]) -> None:
        """Raises MopeqError, with the reason, unless the file is their signature of just these files.

        digests: SHA-256, in hex, of every file that is there, but for those that are never signed.
        """
        material = read_object(signature.read_text("utf-8", errors="replace")).get("verificationMaterial")
        if not isinstance(material, dict):
            raise MopeqError(f"{SIGNATURE_NAME} is not a signature")
        if ("publicKey" in material) != bool(self.key):
            made = "with a key" if "publicKey" in material else "by an identity"
            raise MopeqError(f"it was signed {made}, not by {self}")
        try:
            # The library warns on the screen, where nothing but the findings belongs.
            with redirect_stdout(sys.stderr):
                self._config().set_hashing_config(_known("", digests)).verify(signature.parent, signature)
        except Exception as error:
            # A stranger's file went through several libraries, each with errors of its own.
            raise MopeqError(self._reason(error, signature, digests)) from None

    def _config(self) -> "verifying.Config":
        from model_signing import verifying

        if self.key:
            return verifying.Config().use_elliptic_key_verifier(public_key=self.key)
        return verifying.Config().use_sigstore_verifier(identity=self.identity, oidc_issuer=self.provider)

    def _reason(self, error: Exception, signature: Path, digests: Mapping[str, str]) -> str:
        if str(error).startswith("Signature mismatch"):
            return _difference(signature, digests)
        if str(error).startswith("Key mismatch"):
            return f"it was signed with another key than {self.key}"
        if type(error).__name__ == "InvalidSignature":
            return f"{SIGNATURE_NAME} was changed after it was made"
        return f"{SIGNATURE_NAME} cannot be verified: {type(error).__name__}: {str(error)[:200]}"


def signatory_for(key: Path | None, identity: str | None, provider: str | None) -> Signatory | None:
    """Whose signature is asked for; None where nobody's is.

    Raises UsageError on half an identity or both kinds at once, MopeqError on a file that is not a public key.
    """
    if key and (identity or provider):
        raise UsageError("--key and --identity are two kinds of signatures", "give one of them")
    if bool(identity) != bool(provider):
        raise UsageError("--identity and --identity-provider belong together", "give both, or neither")
    if not key and not identity:
        return None
    _check_installed()
    signatory = Signatory(key, identity or "", provider or "")
    if key:
        try:
            signatory._config()
        except OSError as error:
            raise MopeqError(f"the key {key} cannot be read: {error.strerror}", f"name {_KEY_FORM}") from None
        except Exception:
            raise MopeqError(f"{key} is not a public key that is known here", f"name {_KEY_FORM}") from None
    return signatory


def is_signed(name: str) -> bool:
    """Whether a file with this name would be part of what is signed."""
    return name.split("/")[0] not in _NOT_SIGNED


def _check_installed() -> None:
    try:
        import model_signing  # noqa: F401
    except ImportError as error:
        # It needs more than it says of itself.
        raise MopeqError(f"signatures need {error.name}, which is not installed", _INSTALL) from None


def _known(name: str, digests: Mapping[str, str]) -> "hashing.Config":
    """A way for the library to hash a folder's files that knows the digests of all of them."""
    from model_signing import hashing, manifest

    # Beside the digests it says how a verifier is to hash the files, and what it is to pass over.
    rules = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": list(_NOT_SIGNED)}
    items = [
        manifest.FileManifestItem(
            path=PurePosixPath(file), digest=manifest.hashing.Digest("sha256", bytes.fromhex(digest))
        )
        for file, digest in digests.items()
    ]
    whole = manifest.Manifest(name, items, manifest.SerializationType.from_args(rules))

    class Known(hashing.Config):
        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> manifest.Manifest:
            return whole

    return Known()


def _with_key(key: Path) -> "signing.Config":
    from model_signing import signing

    hint = f"name `{OIDC}`, or a private key: {_KEY_FORM}, without a password"
    try:
        return signing.Config().use_elliptic_key_signer(private_key=key)
    except OSError as error:
        raise MopeqError(f"the key {key} cannot be read: {error.strerror}", hint) from None
    except Exception:
        # What the library says of a key is not for the screen.
        raise MopeqError(f"{key} is not a private key that can sign", hint) from None


def _sign_as_run(known: "hashing.Config", folder: Path) -> None:
    from model_signing import signing

    # Asked for now: it is good for minutes. Given by hand, the library never asks a person with a browser instead.
    token = _identity_token()
    try:
        config = signing.Config().use_sigstore_signer(identity_token=token)
        config.set_hashing_config(known).sign(folder, folder / SIGNATURE_NAME)
    except Exception as error:
        reason = str(error).replace(token, "***")[:200]
        raise MopeqError(
            f"sigstore did not sign: {type(error).__name__}: {reason}", "run the same command again, or sign with a key"
        ) from None


def _identity_token() -> str:
    """The token by which this run's OIDC identity is known to sigstore. Raises MopeqError where it has none."""
    from sigstore import oidc

    try:
        token = oidc.detect_credential()
    except Exception:
        # Answers of the server that gives tokens are not for the screen.
        raise MopeqError(
            "the OIDC identity of this run cannot be had", "give the workflow's job `permissions: id-token: write`"
        ) from None
    if token is None:
        raise MopeqError(
            "this is no run with an OIDC identity, such as one of GitHub Actions is", "sign with a key: --sign KEY.pem"
        )
    return token


def _difference(signature: Path, digests: Mapping[str, str]) -> str:
    """Which file is not as it was signed; the signature itself was found valid."""
    envelope = json.loads(signature.read_text("utf-8"))["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    signed = {str(file["name"]): file["digest"] for file in statement["predicate"]["resources"]}
    for name in sorted({*signed, *digests}):
        if name not in digests:
            return f"{name} was signed and is missing"
        if name not in signed:
            return f"{name} is there and was not signed"
        if signed[name] != digests[name]:
            return f"{name} is not the file that was signed"
    return f"{SIGNATURE_NAME} was not made over the SHA-256 of whole files"
