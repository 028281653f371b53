"""What every test process would do again and again, done once."""

from __future__ import annotations

from functools import cache


@cache
def remember_operators() -> None:
    """torch's exporter to ONNX reads the source of some 500 functions at every export."""
    from onnxscript._framework_apis import torch_2_5

    torch_2_5.get_torchlib_ops = cache(torch_2_5.get_torchlib_ops)


@cache
def warm_up() -> None:
    """Import, and have run once, what every forked command would import for itself."""
    import onnxruntime  # noqa: F401
    import onnxsim  # noqa: F401
    import PIL.Image  # noqa: F401
    import torch
    import torch.export.pt2_archive._package
    import torch.onnx._internal.exporter._core
    import torch.onnx.ops

    import bnfold.formats.conversion  # noqa: F401
    from bnfold.cli import commands

    for name in commands.list_commands(None):  # type: ignore[arg-type]
        commands.get_command(None, name)  # type: ignore[arg-type]
    remember_operators()
    net, x = torch.nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 3)
    program = torch.export.export(net, (x,)).run_decompositions({})
    torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
