"""The two classes of `oqs` that multi_crypt uses, without liboqs.

`multi_crypt` imports `oqs` (liboqs-python), whose import without the native library tries to
download and compile it and then ends the process. Here a module of that name stands in while
multi_crypt is imported and is taken away again. When a native liboqs is installed and loads,
the real package is left to use it.

Secret-key operations are pqcrypto's, because its expanded secret keys are byte-compatible
with liboqs; encapsulation and verification are cryptography's, which are much faster and
release the GIL.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
import threading
from types import ModuleType, TracebackType
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import mldsa, mlkem

_KEMS: dict[str, tuple[str, Any]] = {
    "ML-KEM-768": ("ml_kem_768", mlkem.MLKEM768PublicKey),
    "ML-KEM-1024": ("ml_kem_1024", mlkem.MLKEM1024PublicKey),
}
_SIGNATURES: dict[str, tuple[str, Any]] = {
    "ML-DSA-65": ("ml_dsa_65", mldsa.MLDSA65PublicKey),
    "ML-DSA-87": ("ml_dsa_87", mldsa.MLDSA87PublicKey),
}
#: What the loader is asked for: `ctypes.util.find_library` runs ldconfig, gcc and ld for it.
_NATIVE_NAMES = {
    "linux": ("liboqs.so", *(f"liboqs.so.{version}" for version in range(16, 3, -1))),
    "darwin": ("liboqs.dylib",),
    "win32": ("oqs.dll",),
}
_import_lock = threading.Lock()


class MechanismNotSupportedError(Exception):
    """An algorithm that this adapter does not have."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not supported")


class _Algorithm:
    """What both classes share: context manager, and a secret key that never prints."""

    _table: dict[str, tuple[str, Any]]
    _package: str

    def __init__(self, alg_name: str, secret_key: bytes | None = None) -> None:
        if alg_name not in self._table:
            raise MechanismNotSupportedError(alg_name)
        module, self._public_class = self._table[alg_name]
        self._module = importlib.import_module(f"pqcrypto.{self._package}").__dict__[module]
        self._name = alg_name
        self._secret = secret_key
        if secret_key is not None and len(secret_key) != self._module.SECRET_KEY_SIZE:
            raise ValueError(f"{alg_name} secret key of {len(secret_key)} bytes")

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.free()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}>"

    def free(self) -> None:
        """Forget the secret key."""
        self._secret = None

    def generate_keypair(self) -> bytes:
        """Make a key pair; returns the public key."""
        public, self._secret = self._module.keygen()
        return bytes(public)

    def export_secret_key(self) -> bytes:
        """The secret key in liboqs' expanded form."""
        return bytes(self._need_secret())

    def _need_secret(self) -> bytes:
        if self._secret is None:
            raise ValueError("no secret key")
        return self._secret


class KeyEncapsulation(_Algorithm):
    """`oqs.KeyEncapsulation` for ML-KEM."""

    _table = _KEMS
    _package = "kem"

    def encap_secret(self, public_key: bytes) -> tuple[bytes, bytes]:
        """Returns (ciphertext, shared secret). Raises ValueError on a bad key."""
        key = self._public_class.from_public_bytes(bytes(public_key))
        shared, ciphertext = key.encapsulate()
        return bytes(ciphertext), bytes(shared)

    def decap_secret(self, ciphertext: bytes) -> bytes:
        """The shared secret; of a foreign ciphertext an unrelated one, as ML-KEM specifies."""
        return bytes(self._module.decaps(self._need_secret(), bytes(ciphertext)))


class Signature(_Algorithm):
    """`oqs.Signature` for ML-DSA with an empty context."""

    _table = _SIGNATURES
    _package = "sign"

    def sign(self, message: bytes) -> bytes:
        """Sign a message (about 10 ms, holding the GIL)."""
        return bytes(self._module.sign(self._need_secret(), bytes(message)))

    def verify(self, message: bytes, signature: bytes, public_key: bytes) -> bool:
        """True if the signature holds; liboqs' interface wants a bool."""
        try:
            key = self._public_class.from_public_bytes(bytes(public_key))
            key.verify(bytes(signature), bytes(message))
        except (InvalidSignature, ValueError):
            return False
        return True


def has_native_liboqs() -> bool:
    """Whether a native liboqs is installed and loads, found without importing `oqs`."""
    for name in _NATIVE_NAMES.get(sys.platform, ()):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        return hasattr(library, "OQS_KEM_new") and hasattr(library, "OQS_SIG_new")
    return False


def import_multi_crypt() -> ModuleType:
    """Import multi_crypt safely; what is loaded already is left alone."""
    with _import_lock:
        loaded = sys.modules.get("multi_crypt")
        if loaded is not None:
            return loaded
        if has_native_liboqs():
            return importlib.import_module("multi_crypt")
        stand_in = ModuleType("oqs", "walyoff's stand-in for liboqs-python")
        stand_in.KeyEncapsulation = KeyEncapsulation  # type: ignore[attr-defined]
        stand_in.Signature = Signature  # type: ignore[attr-defined]
        stand_in.MechanismNotSupportedError = (  # type: ignore[attr-defined]
            MechanismNotSupportedError
        )
        before = sys.modules.get("oqs")
        sys.modules["oqs"] = stand_in
        try:
            return importlib.import_module("multi_crypt")
        finally:
            with contextlib.suppress(KeyError):
                del sys.modules["oqs"]
            if before is not None:
                sys.modules["oqs"] = before
