"""The steps of the first contact in their order, with the time that each may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One step, which runs in a process of its own.

    target: "module:function", where the module is importable or the path of a Python file.
    title: heading in the report.
    seconds: expected time on a GPU, kept free for the step while earlier ones run; with less than half of it
        left, the step is skipped.
    limit: seconds after which the process is killed.
    interpreter: whether Triton's interpreter is on in a run on the CPU.
    rival: whether it runs third-party code, which gets the remaining time. If it takes longer or crashes, the report
        has a remark and no failure.
    """

    name: str
    target: str
    title: str
    seconds: float
    limit: float
    interpreter: bool = False
    rival: bool = False


def _operator(name: str, seconds: float, limit: float) -> Step:
    return Step(name, f"contact.operators:{name}", f"Operator `{name}`", seconds, limit, interpreter=True)


STEPS = (
    Step("environment", "contact.machine:environment", "Environment", 4, 40),
    Step("doctor", "contact.machine:doctor", "`python -m bcnet_fast.doctor`", 10, 75, interpreter=True),
    _operator("difference_attention", 12, 60),
    _operator("anchor_sampling", 8, 50),
    _operator("anchor_projection", 12, 60),
    _operator("add_layer_norm", 6, 40),
    _operator("match_proposals", 5, 40),
    _operator("soft_nms", 5, 40),
    Step("sanitizer", "contact.sanitizer:sanitizer", "Memory errors (compute-sanitizer)", 15, 60, interpreter=True),
    Step("engine_accuracy", "contact.engine:accuracy", "Engine against float64", 20, 75),
    Step("engine_graphs", "contact.engine:graphs", "CUDA graph against eager execution", 10, 45),
    Step("engine_streams", "contact.lifetimes:streams", "Two engines on two streams, one destroyed", 6, 35),
    Step("engine_threads", "contact.lifetimes:threads", "One engine called by two threads", 6, 35),
    Step("engine_memory", "contact.lifetimes:memory", "Many batch sizes, and the memory they keep", 8, 45),
    Step("engine_exit", "contact.lifetimes:exit_of_process", "End of a process that holds graphs", 5, 35),
    Step("engine_devices", "contact.lifetimes:devices", "The engine on a second device", 2, 35),
    Step("timing", "contact.timing:bcnet", "Time of BCNet's network", 15, 60),
    Step("timing_maps", "contact.timing:maps", "Time of the networks of BMN and G-TAD", 12, 50),
    Step("rewrites", "contact.timing:rewrites", "Time without one of the engine's rewrites", 15, 60),
    Step("kernels", "contact.profiled:kernels", "Kernels of one replay", 12, 60),
    Step("predict", "contact.work:videos", "`predict` over 20 synthetic videos", 12, 75),
    Step("training_steps", "contact.work:training_steps", "Five training steps", 12, 60),
    Step("training_epochs", "contact.work:training_epochs", "Two short epochs, and resuming after one", 15, 90),
    Step("rival_attention", "contact.rivals:attention", "Rivals: SDPA and FlexAttention", 15, 75, rival=True),
    Step("rival_tensorrt", "contact.rivals:tensorrt", "Rivals: TensorRT", 2, 90, rival=True),
    Step("rival_compile", "contact.rivals:compiled", "Rivals: torch.compile, max-autotune", 30, 240, rival=True),
)
