"""What a user installs is what stands in the tree, in every way of installing it.

Each build works on a copy of the tree and each installation has an environment of its own, which
borrows this one's packages: nothing is downloaded, and nothing here is overwritten.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("packaging")  # one worker builds, not each

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = {"mhc_compile", "docs", "examples", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"}
COPIED = {*SHIPPED, "passes", "tests", "bench"}

USE = """
import importlib.metadata, json, sys
import mhc_compile, mhc_compile.passes
found = importlib.metadata.entry_points(group="torch_dynamo_backends", name="mhc")
print(json.dumps({
    "package": mhc_compile.__file__,
    "passes": mhc_compile.passes.__file__,
    "second copy": "passes" in sys.modules,
    "backends": [[point.value, callable(point.load())] for point in found],
}))
"""

Install = Callable[..., Path]


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    env |= {"PYTHONPATH": str(path)} if path else {}
    return subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)


def succeed(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    done = run(*command, cwd=cwd, path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_tree(target: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__")
    target.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy2(source, target / name)
    return target


def expected_files(tree: Path) -> set[str]:
    """The package's files, found without the link."""
    folders = {"mhc_compile": tree / "mhc_compile", "mhc_compile/passes": tree / "passes"}
    return {
        f"{prefix}/{path.relative_to(folder).as_posix()}"
        for prefix, folder in folders.items()
        for path in folder.rglob("*")
        if path.is_file() and "passes" not in path.relative_to(folder).parts[:1]
    }


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("packaging") / "tree")


@pytest.fixture(scope="session")
def archives(tree: Path) -> dict[str, Path]:
    """The sdist, the wheel made from it, and the wheel made from the tree."""
    build = (sys.executable, "-m", "build", "--no-isolation", ".")
    succeed(*build, "--outdir", "both", cwd=tree)
    succeed(*build, "--outdir", "direct", "--wheel", cwd=copy_tree(tree.parent / "direct"))
    found = {
        "sdist": tree.glob("both/*.tar.gz"),
        "wheel": tree.glob("both/*.whl"),
        "direct wheel": tree.parent.glob("direct/direct/*.whl"),
    }
    return {kind: next(paths) for kind, paths in found.items()}


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Install into a new environment that sees this one's packages; returns its Python."""

    def install(*what: str | Path) -> Path:
        home = tmp_path / "venv"
        venv.create(home, symlinks=os.name != "nt", with_pip=False)
        scheme = sysconfig.get_paths(vars={"base": str(home), "platbase": str(home)})
        borrowed = sysconfig.get_path("purelib")
        (Path(scheme["purelib"]) / "borrowed.pth").write_text(f"{borrowed}\n", "utf-8")
        python = Path(scheme["scripts"]) / "python"
        offline = ("--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed")
        pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *offline)
        succeed(*pip, *what, cwd=tmp_path)
        return python

    return install


def use(python: Path | str, cwd: Path, path: Path | None = None) -> dict[str, object]:
    result = json.loads(succeed(python, "-c", USE, cwd=cwd, path=path).splitlines()[-1])
    assert isinstance(result, dict)
    return result


def check_used(result: dict[str, object], home: Path) -> None:
    assert result["package"] == str(home / "mhc_compile" / "__init__.py")
    assert result["passes"] == str(home / "mhc_compile" / "passes" / "__init__.py")
    assert result["second copy"] is False


def packed(archive: Path) -> dict[str, bytes]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(archive) as sdist:
        members = [member for member in sdist.getmembers() if not member.isdir()]
        assert all(member.isfile() for member in members), "a link in the sdist"
        return {
            member.name.split("/", 1)[1]: file.read()
            for member in members
            if (file := sdist.extractfile(member)) is not None
        }


def test_link_is_a_link() -> None:
    assert os.readlink(ROOT / "mhc_compile" / "passes") == os.path.join("..", "passes")


@pytest.mark.parametrize("kind", ["sdist", "wheel", "direct wheel"])
def test_archive_holds_the_tree(archives: dict[str, Path], tree: Path, kind: str) -> None:
    contents = packed(archives[kind])
    expected = expected_files(tree)
    assert {"mhc_compile/py.typed", "mhc_compile/passes/__init__.py"} <= expected
    assert {name for name in contents if name.startswith("mhc_compile/")} == expected
    for name in expected:
        assert contents[name] == (tree / name).read_bytes(), name


@pytest.mark.parametrize("kind", ["wheel", "direct wheel"])
def test_wheel_installs_one_top_level_name(archives: dict[str, Path], kind: str) -> None:
    names = set(packed(archives[kind]))
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mhc_compile"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_sdist_holds_the_package_its_documents_and_no_more(archives: dict[str, Path], tree: Path) -> None:
    names = set(packed(archives["sdist"]))
    made = {"PKG-INFO", "setup.cfg", "mhc_compile.egg-info"}
    assert {name.split("/")[0] for name in names} - made == SHIPPED
    beside = {path for folder in ("docs", "examples") for path in (tree / folder).rglob("*") if path.is_file()}
    found = {name for name in names if name.startswith(("docs/", "examples/"))}
    assert found == {path.relative_to(tree).as_posix() for path in beside}


@pytest.mark.slow
def test_wheel_from_the_sdist_works(archives: dict[str, Path], install: Install, tmp_path: Path) -> None:
    python = install(archives["wheel"])
    result = use(python, tmp_path)
    check_used(result, Path(str(result["package"])).parents[1])
    assert str(result["package"]).startswith(str(tmp_path))
    assert result["backends"] == [["mhc_compile.backend:mhc", True]]
    assert "usage" in succeed(python.with_name("mhc-compile"), "--help", cwd=tmp_path).lower()


@pytest.mark.slow
def test_editable_install_works(tree: Path, install: Install, tmp_path: Path) -> None:
    result = use(install("--editable", tree), tmp_path)
    check_used(result, tree)
    assert result["backends"] == [["mhc_compile.backend:mhc", True]]


@pytest.mark.slow
def test_no_install_works(tree: Path, tmp_path: Path) -> None:
    check_used(use(sys.executable, tmp_path, path=tree), tree)


def import_error(code: str, cwd: Path) -> str:
    """The message of the one ImportError that ends the program."""
    done = run(sys.executable, "-c", code, cwd=cwd)
    assert done.returncode != 0
    assert done.stderr.count("Traceback") == 1, done.stderr
    _, found, message = done.stderr.rpartition("\nImportError: ")
    assert found, done.stderr
    return message


def test_passes_by_the_wrong_name_says_the_right_one(tree: Path) -> None:
    assert "mhc_compile.passes" in import_error("import passes", tree)


def test_checkout_without_links_says_what_to_do(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    link = tree / "mhc_compile" / "passes"
    link.unlink()
    link.write_text("../passes", "utf-8")  # what git leaves where it may not make links
    assert "core.symlinks" in import_error("import mhc_compile", tree)
