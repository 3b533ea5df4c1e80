"""A native extension belongs to the sources beside it: an old build is refused, and made again by the next build."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.paths import ROOT

from bcnet_fast.ops import native

BUILT = Path(native.module.__file__) if native.module else None


def copy_sources(to: Path) -> Path:
    shutil.copytree(ROOT / "csrc", to / "csrc", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.py", to / "setup.py")
    return to


def digests(tree: Path) -> tuple[str, str]:
    digest = runpy.run_path(str(tree / "csrc" / "digest.py"))["digest"]
    return digest("_C"), digest("_C_cuda")


@pytest.mark.parametrize(
    ("file", "cpu", "cuda"),
    [
        ("csrc/cpu/soft_nms.cpp", True, False),
        ("csrc/cuda/soft_nms.cu", False, True),
        ("csrc/python/bindings_cuda.cpp", False, True),
        ("csrc/include/soft_nms.h", True, True),
        ("setup.py", True, True),
    ],
)
def test_the_digest_of_an_extension_changes_with_any_of_its_files(tmp_path, file, cpu, cuda):
    tree = copy_sources(tmp_path)
    before = digests(tree)
    assert before == digests(ROOT)
    path = tree / file
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert digests(tree) == before
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert [new != old for new, old in zip(digests(tree), before, strict=True)] == [cpu, cuda]


def test_every_source_file_belongs_to_an_extension():
    module = SimpleNamespace(**runpy.run_path(str(ROOT / "csrc" / "digest.py")))
    known = {*module.headers(), *module.sources("_C"), *module.sources("_C_cuda")}
    assert known == {path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu")}


@pytest.mark.skipif(BUILT is None, reason=str(native.reason))
def test_a_build_from_other_sources_is_refused_with_a_warning_and_a_package_without_sources_is_not(tmp_path):
    tree = copy_sources(tmp_path)
    package = tree / "bcnet_fast"
    (package / "ops").mkdir(parents=True)
    for folder in (package, package / "ops"):
        (folder / "__init__.py").touch()
    shutil.copy(native.__file__, package / "ops" / "native.py")
    shutil.copy(BUILT, package / BUILT.name)

    def loaded() -> tuple[str, str]:
        command = [sys.executable, "-c", "from bcnet_fast.ops import native; print(native.module is not None)"]
        environment = os.environ | {"PYTHONPATH": ""}
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip(), done.stderr

    assert loaded() == ("True", "")
    header = tree / "csrc" / "include" / "layers.h"
    header.write_text(header.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    found, message = loaded()
    assert found == "False"
    expected = (
        f"the native extension was built from other sources than those in {tree / 'csrc'}; run 'pip install -e .'"
    )
    assert expected in message
    shutil.rmtree(tree / "csrc")
    assert loaded() == ("True", "")


IN_FOLDER = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "out", "--build-temp", "work"]
EDITABLE = [sys.executable, "-c", "from setuptools.build_meta import build_editable; build_editable('wheel')"]


@pytest.mark.skipif(BUILT is None, reason=str(native.reason))
@pytest.mark.parametrize(("command", "folder"), [(IN_FOLDER, "out"), (EDITABLE, ".")], ids=["folder", "editable"])
def test_the_next_build_compiles_again_what_was_built_from_other_sources(tmp_path, command, folder):
    """Installing once more, for an extra, reuses the build of the first install."""
    tree = copy_sources(tmp_path)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree / name)
    for path in (tree / "bcnet_fast", tree / folder / "bcnet_fast", tree / "kernels", tree / "wheel"):
        path.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "bcnet_fast" / "__init__.py", tree / "bcnet_fast")
    compiler = tree / "c++"
    compiler.write_text("#!/bin/sh\necho called >&2\nexit 1\n")
    compiler.chmod(0o755)
    built = tree / folder / "bcnet_fast" / BUILT.name
    shutil.copy(BUILT, built)
    flags = {"CC": str(compiler), "CXX": str(compiler), "BCNET_FAST_NATIVE": "1", "BCNET_FAST_CUDA": "0"}

    def build() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tree, env=os.environ | flags, capture_output=True, text=True, check=False)

    done = build()
    assert done.returncode == 0, done.stderr
    assert built.read_bytes() == BUILT.read_bytes()
    source = tree / "csrc" / "cpu" / "layers.cpp"
    old = source.stat()
    source.write_text(source.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    os.utime(source, ns=(old.st_atime_ns, old.st_mtime_ns))
    again = build()
    assert again.returncode != 0 and "called" in again.stderr


def test_native_sources_are_formatted():
    files = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu")]
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 500, path
        assert max(map(len, lines)) <= 120, path
    tool = shutil.which("clang-format")
    if tool is None or " 18." not in subprocess.run([tool, "--version"], capture_output=True, text=True).stdout:
        pytest.skip("the rest needs clang-format 18, whose format .clang-format describes")
    done = subprocess.run([tool, "--dry-run", "-Werror", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
