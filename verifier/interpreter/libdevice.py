"""libdevice functions on numpy arrays: what `tl.extra.cuda.libdevice` calls by symbol name.

Values are computed in the argument's precision by numpy or torch; the last bits differ from NVIDIA's library.
The `fast_` forms are computed exactly, so their rounding is not seen here. Anything not listed is
`Unsupported`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from verifier.interpreter.limits import Unsupported

Function = Callable[..., Any]


def _torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Function:
    return lambda x: function(torch.from_numpy(np.array(x))).numpy()


def _half_away(x: Any) -> Any:
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


FUNCTIONS: dict[str, Function] = {
    **{name: getattr(np, name) for name in (
        "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "sinh", "cosh", "tanh",
        "sqrt", "cbrt", "floor", "ceil", "trunc", "rint", "fmod", "hypot", "copysign", "ldexp", "nextafter",
        "fmax", "fmin",
    )},
    "exp10": lambda x: np.power(np.asarray(10, x.dtype), x),
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2,
    "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "pow": np.power, "powi": np.power, "powf": np.power, "fabs": np.abs, "abs": np.abs, "llabs": np.abs,
    "rsqrt": lambda x: 1 / np.sqrt(x), "rcbrt": lambda x: 1 / np.cbrt(x), "fdivide": np.divide,
    "fdiv": np.divide, "div": np.divide, "frcp": np.reciprocal, "rcp": np.reciprocal, "fsqrt": np.sqrt,
    "fadd": np.add, "fsub": np.subtract, "fmul": np.multiply, "dadd": np.add, "dmul": np.multiply,
    "fma": lambda x, y, z: x * y + z, "saturate": lambda x: np.clip(np.nan_to_num(x, nan=0.0), 0, 1),
    "round": _half_away, "nearbyint": np.rint, "llrint": lambda x: np.rint(x).astype(np.int64),
    "llround": lambda x: _half_away(x).astype(np.int64), "fdim": lambda x, y: np.maximum(x - y, 0),
    "erf": _torch(torch.erf), "erfc": _torch(torch.special.erfc), "erfinv": _torch(torch.erfinv),
    "erfcx": _torch(torch.special.erfcx), "lgamma": _torch(torch.lgamma), "normcdf":
    _torch(torch.special.ndtr), "normcdfinv": _torch(torch.special.ndtri), "j0":
    _torch(torch.special.bessel_j0),
    "j1": _torch(torch.special.bessel_j1),
    "isinf": lambda x: np.isinf(x).astype(np.int32), "isnan": lambda x: np.isnan(x).astype(np.int32),
    "finite": lambda x: np.isfinite(x).astype(np.int32), "isfinited": lambda x:
    np.isfinite(x).astype(np.int32), "signbit": lambda x: np.signbit(x).astype(np.int32),
    "cospi": lambda x: np.cos(np.pi * x), "sinpi": lambda x: np.sin(np.pi * x),
}  # fmt: skip

_SUFFIXES = ("_rn", "_rz", "_rd", "_ru")


def lookup(symbol: str) -> Function:
    """The numpy function of a libdevice symbol such as `__nv_fast_expf`. Raises Unsupported."""
    name = symbol.removeprefix("__nv_").removeprefix("fast_")
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    for candidate in (name, name.removesuffix("f"), name.removesuffix("d")):
        if candidate in FUNCTIONS:
            return FUNCTIONS[candidate]
    raise Unsupported(f"the external function {symbol}")


def install(builder: Any) -> None:
    """Gives the interpreter's builder `create_extern_elementwise` and a clear refusal of inline assembly.

    The functions of both libdevice modules are bound to the interpreter: the generic module holds empty
    stubs, which the compiler replaces by the target's.
    """
    import triton.runtime.interpreter as ti
    from triton.language import core
    from triton.language.extra import libdevice as generic
    from triton.language.extra.cuda import libdevice as target

    def extern(self: Any, library: str, path: str, symbol: str, args: list[Any], result: Any, pure: bool) -> Any:
        function = lookup(symbol)
        values = function(*[a.data for a in args])
        scalar = result.scalar
        return ti.TensorHandle(np.asarray(values).astype(ti._get_np_dtype(scalar)), scalar)

    def inline(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise Unsupported("inline assembly")

    builder.create_extern_elementwise = extern
    builder.create_inline_asm = inline
    for name, member in list(vars(target).items()):
        if core.is_builtin(member):
            bound = functools.partial(member, _semantic=ti.interpreter_semantic)
            setattr(target, name, bound)
            setattr(generic, name, bound)
