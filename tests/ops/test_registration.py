"""How the operators are registered with PyTorch, and which of PyTorch's private names the package uses."""

from __future__ import annotations

import ast

import pytest
import torch
from helpers.paths import ROOT
from helpers.sampling_plans import PLANS

from bcnet_fast.ops import add_layer_norm, anchor_projection, anchor_sampling, difference_attention, use_backend
from bcnet_fast.ops.registration import LIBRARY, NAMESPACE

MOST_ARGUMENTS = 8
# Private names of PyTorch, each used in one function with a test of its own (tests/networks/test_onednn_linear.py).
PRIVATE_NAMES = {("bcnet_fast/networks/trainable/onednn_linear.py", "_linear_pointwise")}

PLAN = PLANS["any"]()
X = torch.randn(2, 3, PLAN.length)
CALLS = {
    "difference_attention": lambda x: difference_attention(*[x[None]] * 4)[0],
    "anchor_sampling": lambda x: anchor_sampling(x, PLAN),
    "anchor_projection": lambda x: anchor_projection(x, PLAN, x.new_ones(sum(PLAN.bins), 3, 2), relu=True),
    "add_layer_norm": lambda x: add_layer_norm(x, x),
}


def registered() -> list[str]:
    return sorted(str(name).removeprefix(f"{NAMESPACE}::") for name in dir(getattr(torch.ops, NAMESPACE)))


def test_no_operator_has_many_arguments():
    names = [name for name in registered() if not name.startswith("_") and name != "name"]
    assert {"anchor_projection", "match_proposals", "soft_nms"} <= set(names)
    for name in names:
        schema = getattr(getattr(torch.ops, NAMESPACE), name).default._schema
        assert len(schema.arguments) <= MOST_ARGUMENTS, schema


def private_names(tree: ast.AST) -> set[str]:
    """Names with a leading underscore that are looked up in `torch` or its modules, as attributes, imports or text."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch."):
            found |= {part for part in ast.unparse(node).split(".") if part.startswith("_")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found |= {part for part in parts if part.startswith("_")}
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "torch"]
            found |= {part for name in names for part in name.split(".") if part.startswith("_")}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            owner, name = ast.unparse(node.args[0]), node.args[1]
            if owner.split(".")[0] == "torch" and isinstance(name, ast.Constant) and str(name.value).startswith("_"):
                found.add(str(name.value))
    return {name for name in found if not name.startswith("__")}


@pytest.mark.skipif(not (ROOT / "bcnet_fast").is_dir(), reason="needs the sources")
def test_private_names_of_pytorch_are_the_known_ones():
    found = set()
    for folder in ("bcnet_fast", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            names = private_names(ast.parse(path.read_text(encoding="utf-8")))
            found |= {(path.relative_to(ROOT).as_posix(), name) for name in names}
    assert found == PRIVATE_NAMES


def test_private_names_are_found():
    code = "import torch._dynamo\nfrom torch._C import x\ntorch.autograd._profiler_enabled()\ngetattr(torch.ops, '_y')"
    assert private_names(ast.parse(code)) == {"_dynamo", "_C", "_profiler_enabled", "_y"}


@pytest.mark.parametrize("name", CALLS)
def test_operators_run_between_graph_breaks(name):
    """Where a compiled function falls back to Python, the implementations run as they are."""

    def broken(x):
        torch._dynamo.graph_break()
        out = [CALLS[name](x) for _ in range(2)]
        torch._dynamo.graph_break()
        return out[0] + out[1]

    with use_backend("native"):
        expected = broken(X)
        assert torch.equal(torch.compile(broken, backend="eager")(X), expected)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_of_torch_func_are_refused(name):
    """PyTorch has no rule for them; a wrong gradient would be worse than its error."""
    with use_backend("native"), pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: CALLS[name](x).square().sum())(X)


def test_operators_stay_registered():
    """The library object ends its registrations with its life, so a module has to hold it."""
    assert LIBRARY.ns == NAMESPACE
    assert all(hasattr(getattr(torch.ops, NAMESPACE), name) for name in CALLS)
