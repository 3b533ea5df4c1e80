"""The package as users get it: from a wheel and editable, with and without a working C++ compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.installs import NOT_EDITABLE
from helpers.paths import ROOT

from bcnet_fast.ops import native

PARTS = ("bcnet_fast", "kernels", "csrc", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")

IMPORT_ALL = """
import importlib, pkgutil
import bcnet_fast, bcnet_fast.kernels
print(bcnet_fast.__file__)
for package in (bcnet_fast, bcnet_fast.kernels):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            print(module.name)
"""
USE = """
import torch
from bcnet_fast import doctor
from bcnet_fast.ops import native
from bcnet_fast.errors import BackendError
from bcnet_fast.ops import soft_nms, use_backend
inputs = torch.tensor([[0, 2], [1, 3.0]]), torch.tensor([0.4, 0.5])
assert soft_nms(*inputs)[2].tolist() == [1, 0]
assert native.module is None
assert any(name == "native extension" and value.startswith("no: ") for name, value in doctor.facts())
try:
    with use_backend("native"):
        soft_nms(*inputs)
except BackendError as error:
    print(error)
"""


def run(command: list[str | Path], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        # The CUDA extension takes long to compile, and has tests of its build in tests/ops/test_soft_nms_cuda.py.
        env={
            **os.environ,
            "PYTHONPATH": "",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "BCNET_FAST_CUDA": "0",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def succeed(command: list[str | Path], cwd: Path, **environment: str) -> str:
    done = run(command, cwd, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_tree(to: Path) -> Path:
    """A copy of the files that a build needs, without build outputs."""
    to.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "build", "*.egg-info")
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=ignored)
        elif source.exists():
            shutil.copy(source, to / name)
    return to


def build_wheel(tree: Path, out: Path, **environment: str) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, tree]
    succeed(command, tree.parent, **environment)
    return next(out.glob("*.whl"))


def install(wheel: Path, target: Path) -> Path:
    """Unpack a wheel, as an installer does."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def modules_of_checkout() -> set[str]:
    files = [("bcnet_fast", f, ROOT / "bcnet_fast") for f in (ROOT / "bcnet_fast").rglob("*.py")]
    files += [("bcnet_fast.kernels", f, ROOT / "kernels") for f in (ROOT / "kernels").rglob("*.py")]
    names = {".".join((package, *f.relative_to(folder).with_suffix("").parts)) for package, f, folder in files}
    return {n.removesuffix(".__init__") for n in names if not n.endswith("__main__")} - {"bcnet_fast"}


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory) -> Path:
    """The package installed from a wheel that was built where the compiler does not work."""
    folder = tmp_path_factory.mktemp("without_compiler")
    wheel = build_wheel(copy_tree(folder / "tree"), folder, CC="/bin/false", CXX="/bin/false")
    return install(wheel, folder / "site")


def test_wheel_holds_every_module_and_asset_and_works_from_elsewhere(tmp_path, without_compiler):
    """Without a compiler the reference runs, and an explicit request for native code is refused."""
    command = [sys.executable, "-c", NOT_EDITABLE + IMPORT_ALL + USE]
    shown = succeed(command, tmp_path, PYTHONPATH=str(without_compiler), BCNET_FAST_BACKEND="")
    package, *imported, refused = shown.splitlines()
    assert Path(package).is_relative_to(without_compiler)
    # A wheel has the kernels inside the package and needs no shim to find them.
    assert modules_of_checkout() - set(imported) <= {"bcnet_fast.kernels"}
    assert refused.startswith("backend 'native' cannot be used: the native extension was not built")
    for folder in ("bcnet_fast/assets", "bcnet_fast/assets/view"):
        assets = {f.name for f in (ROOT / folder).glob("*") if f.is_file()}
        assert assets and assets <= {f.name for f in (without_compiler / folder).glob("*")}


def test_a_build_that_must_be_native_fails_without_a_compiler(tmp_path):
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", "out", "--build-temp", "work"]
    broken = {"CC": "/bin/false", "CXX": "/bin/false"}
    tree = copy_tree(tmp_path / "tree")
    assert run(command, tree, BCNET_FAST_NATIVE="1", **broken).returncode != 0
    assert run(command, tree, BCNET_FAST_NATIVE="auto", **broken).returncode == 0
    assert run(command, tree, BCNET_FAST_NATIVE="0", **broken).returncode == 0
    wrong = run(command, tree, BCNET_FAST_NATIVE="yes")
    assert wrong.returncode != 0 and "BCNET_FAST_NATIVE is 'yes', expected auto, 1 or 0" in wrong.stderr


@pytest.mark.skipif(native.module is None, reason=str(native.reason))
def test_wheel_holds_the_extension(tmp_path):
    """The one of the checkout, which the build takes as its own: the install command has compiled it already."""
    tree = copy_tree(tmp_path / "tree")
    (tree / "setup.cfg").write_text("[build]\nbuild_lib = built\n")
    built = tree / "built" / "bcnet_fast"
    built.mkdir(parents=True)
    shutil.copy(native.module.__file__, built)
    wheel = build_wheel(tree, tmp_path, BCNET_FAST_NATIVE="1", CC="/bin/false", CXX="/bin/false")
    site = install(wheel, tmp_path / "site")
    (site / "bcnet_fast" / "ops" / "__init__.py").write_text("")  # else it imports PyTorch
    use = "from bcnet_fast.ops import native; print(native.reason, native.module.__file__)"
    reason, path = succeed([sys.executable, "-c", NOT_EDITABLE + use], tmp_path, PYTHONPATH=str(site)).split()
    assert reason == "None"
    assert Path(path).is_relative_to(site)


def test_source_distribution_can_be_built_from(tmp_path):
    tree = copy_tree(tmp_path / "tree")
    succeed([sys.executable, "setup.py", "-q", "sdist", "--formats=zip", "-d", tmp_path], tree)
    with zipfile.ZipFile(next(tmp_path.glob("*.zip"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.namelist()}
    folders = ("csrc", "kernels", "bcnet_fast")
    sources = [f for d in folders for f in (tree / d).rglob("*") if f.suffix in (".h", ".cpp", ".cu", ".py")]
    assert {f.relative_to(tree).as_posix() for f in sources} <= names


def test_checkout_imports_from_its_root_and_from_elsewhere(tmp_path):
    editable = any(getattr(finder, "__name__", "") == "_EditableFinder" for finder in sys.meta_path)
    found = "import bcnet_fast, bcnet_fast.kernels as k; print(bcnet_fast.__file__, *k.__path__, sep='\\n')"
    for cwd, path in ((ROOT, ""), (tmp_path, "" if editable else str(ROOT))):
        for line in succeed([sys.executable, "-c", found], cwd, PYTHONPATH=path).splitlines():
            assert Path(line).is_relative_to(ROOT)
    # From the root, the folder kernels/ must not hide an installed package of that name.
    origin = succeed([sys.executable, "-c", "import importlib.util as u; print(u.find_spec('kernels').origin)"], ROOT)
    assert str(ROOT) not in origin
