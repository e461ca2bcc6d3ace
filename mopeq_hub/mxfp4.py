"""MXFP4, as gpt-oss stores its experts: two tensors, `<name>_blocks` and `<name>_scales`, that are one of 16 bits.

A byte of the blocks holds two numbers of the format E2M1, the lower half first; 32 neighbours along the inputs share a
scale, a power of two whose exponent is stored plus 127 (OCP Microscaling Formats, version 1.0, sections 5.3.3 and
5.4.1). Every such number is a bfloat16 as long as its exponent is one.
"""

import numpy as np

from mopeq_hub.tensors import TensorInfo, damaged

DTYPE = "MXFP4"
_BLOCK = 32
_NUMBERS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_PAIRS = np.stack([_NUMBERS[np.arange(256) & 15], _NUMBERS[np.arange(256) >> 4]], -1)
_PAIR_BITS = (_PAIRS.view(np.uint32) >> 16).astype(np.uint16)
"""The two numbers of each byte as bfloat16."""
_NORMAL = range(3, 251)
"""Stored exponents at which each number is a bfloat16 that is neither too small for its exponent nor too large."""

Pair = tuple[TensorInfo, TensorInfo]
"""Blocks [experts, out, in / 32, 16] and scales [experts, out, in / 32], bytes both."""


def joined(tensors: dict[str, TensorInfo], where: str) -> tuple[dict[str, TensorInfo], dict[str, Pair]]:
    """The tensors of a checkpoint with one [experts, out, in] of the dtype MXFP4 for each pair, and the pairs.

    Raises MopeqError where the shapes of a pair do not belong together.
    """
    pairs: dict[str, Pair] = {}
    for name, blocks in tensors.items():
        scales = tensors.get(f"{name.removesuffix('_blocks')}_scales") if name.endswith("_blocks") else None
        if scales is not None and blocks.dtype == scales.dtype == "U8":
            if len(blocks.shape) != 4 or blocks.shape != (*scales.shape, _BLOCK // 2):
                raise damaged(where, f"{scales.name} of shape {list(scales.shape)} has no scale for each block")
            pairs[name.removesuffix("_blocks")] = blocks, scales
    parts = {part.name for pair in pairs.values() for part in pair}
    whole = {name: info for name, info in tensors.items() if name not in parts}
    for name, (blocks, _) in pairs.items():
        experts, rows, groups, _ = blocks.shape
        whole[name] = blocks._replace(name=name, dtype=DTYPE, shape=(experts, rows, groups * _BLOCK))
    return whole, pairs


def unpacked(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The numbers [out, in], bfloat16 as uint16, of blocks [out, in / 32, 16] and scales [out, in / 32]."""
    rows, groups = scales.shape
    if scales.size and (scales.min() not in _NORMAL or scales.max() not in _NORMAL):
        exact = np.ldexp(_PAIRS[blocks], scales.astype(np.int32)[:, :, None, None] - 127)
        bits = exact.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).reshape(rows, groups * _BLOCK)
    bits = _PAIR_BITS[blocks].reshape(rows, groups, _BLOCK)
    shift = (scales.astype(np.int16) - 127) << 7
    # Zeros have no exponent to add to.
    bits += np.where(bits & 0x7FFF, shift[:, :, None].view(np.uint16), np.uint16(0))
    return bits.reshape(rows, groups * _BLOCK)
