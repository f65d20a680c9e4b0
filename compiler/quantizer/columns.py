"""Linear layers as matrix products: their weights as matrices, and the rows of data that meet them.

Every layer is y[p, n] = sum_k x[p, k] w[n, k] for each of its groups, where k counts input channels times taps and p
counts output pixels. A transposed convolution is such a product for each tap alone: k counts input channels only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from onnx import NodeProto
from qcompile.frontend.graph import attribute


@dataclass(frozen=True)
class Columns:
    """The geometry of one layer: `groups` products; `transposed`: input channels before output channels in memory."""

    node: NodeProto
    shape: tuple[int, ...]  # of the weight
    groups: int

    @staticmethod
    def of(node: NodeProto, weight: np.ndarray) -> Columns:
        groups = attribute(node, "group", 1) if node.op_type in ("Conv", "ConvTranspose") else 1
        return Columns(node, weight.shape, groups)

    @property
    def pointwise(self) -> bool:
        """Whether a row is what lies along the data's last axis."""
        return self.node.op_type in ("MatMul", "Gemm")

    @property
    def per_tap(self) -> bool:
        return self.node.op_type == "ConvTranspose"

    @property
    def _inputs_first(self) -> bool:
        node = self.node
        return node.op_type in ("MatMul", "ConvTranspose") or (
            node.op_type == "Gemm" and not attribute(node, "transB", 0)
        )

    @property
    def key(self) -> tuple:
        """Layers with equal keys that read the same tensor meet the same rows."""
        if self.node.op_type != "Conv":
            return (self.node.op_type == "ConvTranspose", self.groups)
        return (
            self.groups,
            self.shape[2:],
            *(str(attribute(self.node, a)) for a in ("strides", "dilations", "pads", "auto_pad")),
        )

    def matrix(self, w: np.ndarray) -> np.ndarray:
        """A weight as [groups, outputs of a group, inputs of a group, taps]."""
        if self._inputs_first:
            g = self.groups
            return w.reshape(g, w.shape[0] // g, w.shape[1], -1).transpose(0, 2, 1, 3)
        return w.reshape(self.groups, w.shape[0] // self.groups, w.shape[1], -1)

    def weight(self, matrix: np.ndarray) -> np.ndarray:
        """`matrix` [groups, outputs, inputs, taps], or with inputs / m, in the weight's layout."""
        g, n, k, _ = matrix.shape
        if self._inputs_first:
            return np.ascontiguousarray(matrix.transpose(0, 2, 1, 3)).reshape(g * k, n, *self.shape[2:])
        return matrix.reshape(g * n, k, *self.shape[2:])

    @property
    def depth(self) -> int:
        """Length of a row."""
        inputs = self.shape[0 if self._inputs_first else 1] // (self.groups if self.per_tap else 1)
        return inputs if self.per_tap else inputs * int(np.prod(self.shape[2:]))

    def channel_means(self, row: np.ndarray) -> np.ndarray:
        """What a row [groups, depth] holds of each input channel of the layer, in the mean over its taps."""
        taps = 1 if self.per_tap else int(np.prod(self.shape[2:]))
        return row.reshape(-1, taps).mean(1)

    @property
    def channel_axis(self) -> int:
        """The axis of the weight that counts output channels."""
        return 1 if self._inputs_first else 0

    @property
    def input_axis(self) -> int:
        """The axis of the weight that counts input channels."""
        return 0 if self._inputs_first else 1

    def rows(self, x: np.ndarray, limit: int, rng: np.random.Generator) -> np.ndarray:
        """[groups, rows, depth]: at most `limit` rows of data `x`, chosen by `rng` (seed it alike to get the same)."""
        if self.node.op_type == "ConvTranspose":
            x = np.moveaxis(x.reshape(x.shape[0], self.groups, -1, *x.shape[2:]), 2, -1)
            x = np.moveaxis(x, 1, 0).reshape(self.groups, -1, self.depth)
            return x[:, _some(x.shape[1], limit, rng)]
        if self.node.op_type != "Conv":
            x = x.reshape(1, -1, x.shape[-1])
            return x[:, _some(x.shape[1], limit, rng)]
        windows = self._windows(x)
        rank = len(self.shape) - 2
        places = windows.shape[:1] + windows.shape[2 : 2 + rank]
        chosen = np.unravel_index(_some(int(np.prod(places)), limit, rng), places)
        picked = windows[(chosen[0], slice(None), *chosen[1:])]  # [rows, channels, taps...]
        return picked.reshape(len(picked), self.groups, -1).transpose(1, 0, 2)

    def _windows(self, x: np.ndarray) -> np.ndarray:
        """[batch, channels, output pixels..., taps...], a view of the padded input."""
        taps = self.shape[2:]
        rank = len(taps)
        strides = attribute(self.node, "strides") or [1] * rank
        dilations = attribute(self.node, "dilations") or [1] * rank
        reach = [(t - 1) * d + 1 for t, d in zip(taps, dilations)]
        pads = attribute(self.node, "pads") or [0] * (2 * rank)
        mode = attribute(self.node, "auto_pad", "NOTSET")
        if mode.startswith("SAME"):
            whole = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(x.shape[2:], strides, reach)]
            less, more = [p // 2 for p in whole], [p - p // 2 for p in whole]
            pads = less + more if mode == "SAME_UPPER" else more + less
        elif mode == "VALID":
            pads = [0] * (2 * rank)
        x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:])])
        windows = sliding_window_view(x, reach, tuple(range(2, 2 + rank)))
        steps = [slice(None)] * 2 + [slice(None, None, s) for s in strides] + [slice(None, None, d) for d in dilations]
        return windows[tuple(steps)]


def _some(count: int, limit: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(count) if count <= limit else np.sort(rng.choice(count, limit, replace=False))
