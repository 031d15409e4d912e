"""Pieces of kernel source that the variants share: program ids, loads, scores with mask and bias, stores,
launches.

Each function writes a few lines for one build. The mistakes live here, beside the right code that they
replace.

Names in every kernel: `rows` are query positions of this program, `cols` key positions of one tile,
`scores` is [BLOCK_M, BLOCK_N] in fp32, and S the length of the sequence.
"""

from __future__ import annotations

from tools.models.sampler.build import Build, fill

KEPT_OUT = "-1.0e30"
"""A finite stand-in for minus infinity: a tile without a kept score then makes no NaN."""


def strides(tensors: str) -> str:
    return "\n".join(f"stride_{x}b, stride_{x}h, stride_{x}s, stride_{x}d," for x in tensors)


def sizes(b: Build) -> str:
    """Scalar parameters of a kernel that computes scores."""
    names = ["H", "S"]
    if not b.slip("no_scale"):
        names.append("scale")
    names += [p.name for p in b.task.parameters]
    return ", ".join(names) + ",\n" + ("D," if b.slip("runtime_arange") else "D: tl.constexpr,")


def arguments(b: Build) -> str:
    """Host values for `sizes`."""
    values = ["H", "S"] + ([] if b.slip("no_scale") else [b.host_scale])
    return ", ".join(values + [p.value for p in b.task.parameters]) + ","


def program(b: Build) -> str:
    """Which rows of which (batch, head) pair this program owns."""
    tile, pair = ("1", "0") if b.genome.programs == "heads_first" else ("0", "1")
    index = f"tl.program_id({tile})"
    if b.genome.programs == "long_first":
        index = f"tl.num_programs({tile}) - 1 - {index}"
    return f"""
row_tile = {index}
pair = tl.program_id({pair})
batch = (pair // H).to(tl.int64)
head = pair % H
rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
dims = tl.arange(0, D)
"""


def grid(b: Build, block_m: str, *more: str) -> str:
    """The launch grid that `program` expects."""
    tiles = f"S // {block_m}" if b.slip("floor_grid") else f"triton.cdiv(S, {block_m})"
    pairs = "H" if b.slip("one_batch_grid") else "B * H"
    axes = [pairs, tiles] if b.genome.programs == "heads_first" else [tiles, pairs]
    return f"({', '.join([*axes, *more])})"


def offsets(**pointers: str) -> str:
    """Move each pointer to its (batch, head) slice."""
    return "\n".join(f"{p} += batch * stride_{x}b + head * stride_{x}h" for p, x in pointers.items())


def load_q(b: Build) -> str:
    scaled = b.scaled_queries or b.slip("scale_twice")
    lines = f"""
q = tl.load(
    Q + rows[:, None] * stride_qs + dims[None, :] * stride_qd,
    mask=rows[:, None] < S,
    other=0.0,
){b.cast}
"""
    return lines + ("q = (q * scale).to(q.dtype)\n" if scaled and not _unscaled(b) else "")


def described(b: Build) -> bool:
    """K and V are read through tensor descriptors, which fill the tail with zeros."""
    return b.genome.loads == "descriptors" and b.genome.variant == "flash"


def load_k(b: Build, tail: bool = True) -> str:
    """K as [D, tile], so that it can stand right of the dot. `tail` guards keys past the end."""
    if described(b):
        return f"k = k_tiles.load([start, 0]){'' if b.slip('dot_shape') else '.T'}{b.cast}"
    if b.slip("dot_shape"):
        return _tile("k", "K", "k", b, tail, rows="cols[:, None]", columns="dims[None, :]")
    return _tile("k", "K", "k", b, tail, rows="cols[None, :]", columns="dims[:, None]")


def load_v(b: Build, tail: bool = True) -> str:
    """V as [tile, D]."""
    if described(b):
        return f"v = v_tiles.load([start, 0]){b.cast}"
    return _tile("v", "V", "v", b, tail, rows="cols[:, None]", columns="dims[None, :]")


def _tile(name: str, pointer: str, x: str, b: Build, tail: bool, *, rows: str, columns: str) -> str:
    address = f"{pointer} + {rows} * stride_{x}s + {columns} * stride_{x}d"
    if not tail or b.slip("unguarded_load"):
        return f"{name} = tl.load({address}){b.cast}"
    return f"{name} = tl.load({address}, mask={rows} < S, other=0.0){b.cast}"


WINDOW = """
half = window // 2
row_y, row_x = rows // width, rows % width
phase_y, phase_x = row_y % dilation, row_x % dilation
$centres
"""

CENTRES = """
last_y = (height - phase_y + dilation - 1) // dilation - 1 - half
last_x = (width - phase_x + dilation - 1) // dilation - 1 - half
centre_y = tl.minimum(tl.maximum(row_y // dilation, half), last_y)
centre_x = tl.minimum(tl.maximum(row_x // dilation, half), last_x)
"""


def setup(b: Build) -> str:
    """What the scores need once per program."""
    if b.task.family == "alibi":
        factor = "" if b.slip("natural_bias") else b.to_log2
        index = "head" if b.slip("slope_shift") else "(head + 1)"
        return f"slope = tl.math.exp2(-8.0 * {index} / H){factor}"
    if b.task.family == "neighbourhood":
        plain = "centre_y, centre_x = row_y // dilation, row_x // dilation"
        return fill(WINDOW, {"centres": plain if b.slip("no_shift") else CENTRES})
    return ""


def scores(b: Build, *, tail: bool = True, pairs: bool = True) -> str:
    """Scores of one tile: product, scale, soft cap or bias, mask.

    `tail` masks keys past the end; `pairs` False leaves out a causal mask that is known to hold.
    """
    lines = [f"scores = tl.dot(q, k{b.precision}){_scale(b)}", *_modified(b), *_masked(b, tail, pairs)]
    return "\n".join(lines)


def _unscaled(b: Build) -> bool:
    return b.slip("no_scale") or b.slip("cap_before_scale")


def _scale(b: Build) -> str:
    if _unscaled(b):
        return ""
    return " * scale" if not b.scaled_queries or b.slip("scale_twice") else ""


def _modified(b: Build) -> list[str]:
    family, factor = b.task.family, "" if b.slip("natural_bias") else b.to_log2
    if family == "softcap":
        late = " * scale" if b.slip("cap_before_scale") and not b.slip("no_scale") else ""
        name = "tl.math.tanh" if b.slip("missing_tanh") else "tanh"
        return [f"scores = cap * {name}(scores / cap){late}{b.to_log2}"]
    if family == "relative":
        distance = "cols[None, :] - rows[:, None]" if b.slip("bias_sign") else "rows[:, None] - cols[None, :]"
        return [f"scores += ({distance}).to(tl.float32){factor}"]
    if family == "alibi":
        distance = "rows[:, None] - cols[None, :]" if b.slip("bias_sign") else "cols[None, :] - rows[:, None]"
        return [f"scores += slope * ({distance}).to(tl.float32)"]
    return []


NEAR = """
col_y, col_x = cols // width, cols % width
near_y = tl.abs(col_y[None, :] // dilation - centre_y[:, None]) <= half
near_x = tl.abs(col_x[None, :] // dilation - centre_x[:, None]) <= half
"""

SAME_PHASE = """
same_phase = (col_y[None, :] % dilation == phase_y[:, None]) & (col_x[None, :] % dilation == phase_x[:, None])
"""


def _masked(b: Build, tail: bool, pairs: bool) -> list[str]:
    terms = ["(cols[None, :] < S)"] if tail and not b.slip("no_tail_mask") else []
    before: list[str] = []
    if b.task.family == "neighbourhood":
        before = NEAR.strip().replace("<=", "<" if b.slip("window_short") else "<=").split("\n")
        terms += ["near_y", "near_x"]
        if not b.slip("no_dilation"):
            before += SAME_PHASE.strip().split("\n")
            terms.append("same_phase")
    elif b.task.causal and pairs and not b.slip("no_causal_mask"):
        terms.append(f"(rows[:, None] {'>' if b.slip('causal_strict') else '>='} cols[None, :])")
    if not terms:
        return before
    out = "0.0" if b.slip("mask_zero") else KEPT_OUT
    mask = terms[0].strip("()") if len(terms) == 1 else " & ".join(terms)
    return [*before, f"keep = {mask}", f"scores = tl.where(keep, scores, {out})"]


def key_range(b: Build) -> tuple[str, str, str]:
    """Lines before the loop, and the expressions of its first and last key position."""
    if not b.skips:
        return "", "0", "S"
    if b.task.family == "neighbourhood":
        lines = """
top = row_tile * BLOCK_M // width // dilation
bottom = tl.minimum((row_tile + 1) * BLOCK_M, S) // width // dilation
top = tl.maximum(tl.minimum(top, height // dilation - 1 - half) - half, 0) * dilation
bottom = (tl.maximum(bottom, half) + half + 1) * dilation
begin = top * width // BLOCK_N * BLOCK_N
end = tl.minimum(bottom * width, S)
"""
        return lines, "begin", "end"
    last = "row_tile * BLOCK_M" if b.slip("short_range") else "(row_tile + 1) * BLOCK_M"
    return f"end = tl.minimum({last}, S)", "0", "end"


def accumulator(b: Build) -> str:
    return "tl.bfloat16" if b.slip("narrow_accumulator") else "tl.float32"


def narrowed(b: Build, value: str = "") -> str:
    """`value`, rounded where the running statistics are too narrow."""
    if not b.slip("narrow_accumulator"):
        return value
    return f"({value}).to({accumulator(b)})" if value else f".to({accumulator(b)})"


def accumulate(b: Build, *, rescale: bool = True) -> str:
    """acc = acc * alpha + p @ v"""
    old = "acc * alpha[:, None]" if rescale and not b.slip("no_rescale") else "acc"
    if b.slip("narrow_accumulator"):
        return f"acc = {narrowed(b, f'{old} + tl.dot(p.to(v.dtype), v{b.precision})')}"
    return f"acc = tl.dot(p.to(v.dtype), v, {old}{b.precision})"


def normalise(b: Build) -> str:
    if b.slip("no_normalise"):
        return ""
    wide = ".to(tl.float32)" if b.slip("narrow_accumulator") else ""
    return f"acc = acc{wide} / row_sum[:, None]"


def store_out(b: Build) -> str:
    limit = "seq_len" if b.slip("undefined_name") else "S"
    mask = "" if b.slip("unguarded_store") else f", mask=rows[:, None] < {limit}"
    return f"""
out = Out + rows[:, None] * stride_os + dims[None, :] * stride_od
tl.store(out, acc.to(Out.dtype.element_ty){mask})
"""


def stride_arguments(b: Build, *tensors: str) -> str:
    """Host strides of q, k, v or the output, in the kernels' order (batch, head, position, dimension)."""
    key = b.task.inputs[1]
    swapped = f"{key}.stride(0), {key}.stride(2), {key}.stride(1), {key}.stride(3)"
    return ", ".join(swapped if x == key and b.slip("swapped_strides") else f"*{x}.stride()" for x in tensors) + ","


def output(b: Build) -> str:
    q = b.task.inputs[0]
    dtype = ("torch.float32" if b.task.half else "torch.float16") if b.slip("output_dtype") else f"{q}.dtype"
    return f"out = torch.empty((B, H, S, D), device={q}.device, dtype={dtype})"


def launch_options(b: Build, *, blocks: bool = True) -> str:
    """Keyword arguments of a launch; an autotuned kernel takes its sizes from its configuration."""
    g = b.genome
    if b.tuned:
        return "D=D,"
    tiles = f"BLOCK_M={g.block_m}, BLOCK_N={g.block_n}, " if blocks else ""
    return f"D=D, {tiles}num_warps={g.num_warps}, num_stages={g.num_stages},"


LOOP = """
$header
    cols = start + tl.arange(0, BLOCK_N)
    $load_k
    $scores
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    p = $exp(scores - new_max[:, None])
    alpha = $exp(row_max - new_max)
    row_sum = $sum
    $load_v
    $accumulate
    row_max = new_max$narrow
"""

BACKWARDS = """
tiles = tl.cdiv($end - $begin, BLOCK_N)
for tile in range(0, tiles):
    start = $begin + (tiles - 1 - tile) * BLOCK_N
"""


def loop(b: Build, begin: str, end: str, *, tail: bool = True, pairs: bool = True, template: str = LOOP) -> str:
    """The online softmax over keys `begin` to `end`."""
    header = f"for start in range({begin}, {end}, BLOCK_N):"
    if b.genome.order == "reverse" and b.genome.variant == "flash":
        header = fill(BACKWARDS, {"begin": begin, "end": end}).replace(f"{end} - 0,", f"{end},").replace("= 0 + ", "= ")
    return fill(
        template,
        {
            "header": header,
            "load_k": load_k(b, tail),
            "scores": scores(b, tail=tail, pairs=pairs),
            "exp": b.exp,
            "sum": narrowed(b, "row_sum * alpha + tl.sum(p, 1)"),
            "narrow": narrowed(b),
            "load_v": load_v(b, tail),
            "accumulate": accumulate(b),
        },
    )
