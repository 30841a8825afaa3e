"""What checks the signatures of control keys in this process.

Decided here: which code that is, so that what it found good is believed again by the same code
alone. Names of versions would not do: a library may be built anew under the same one, and
what it is linked to has one of its own. So it is the files of the loaded modules that check,
with their sizes and times, which costs some microseconds; to ask for versions takes 50 ms.
"""

from __future__ import annotations

import os
import sys

from cryptography.hazmat.bindings._rust import openssl

from walyoff import __version__

#: Between them they do all that a signature's being good depends on, below walyoff itself.
MODULES = (
    "walytis_identities.key_objects",
    "multi_crypt.multi_crypt",
    "multi_crypt.crypt",
    "multi_crypt.algorithms.ec_secp256k1",
    "multi_crypt.algorithms.pq_ml_kem_768_ml_dsa_65",
    "multi_crypt.algorithms.pq_ml_kem_1024_ml_dsa_87",
    "multi_crypt._libboqs.pq_base",
    "coincurve.keys",
    "coincurve._libsecp256k1",
    "cryptography.hazmat.primitives.asymmetric.mldsa",
    "cryptography.hazmat.bindings._rust",
)


def verifiers() -> str:
    """Names the code that checks signatures here; those that are not loaded are left out."""
    parts = [__version__, openssl.openssl_version_text(), _liboqs()]
    for name in MODULES:
        path = getattr(sys.modules.get(name), "__file__", None)
        if path is not None:
            parts.append(f"{path} {_stamp(path)}")
    return "\n".join(parts)


def _stamp(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:
        # In an archive, say: its path has to do.
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"


def _liboqs() -> str:
    """The version of a native liboqs, if that is used."""
    loaded = getattr(sys.modules.get("multi_crypt._libboqs.pq_base"), "oqs", None)
    version = getattr(loaded, "oqs_version", None)
    return "" if version is None else str(version())


__all__ = ["MODULES", "verifiers"]
