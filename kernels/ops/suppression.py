"""Non-maximum suppression: the boxes of largest score that do not overlap."""

from __future__ import annotations

import numpy as np
from qcompile.kernels.bounds import BoundCall, Interval
from qcompile.kernels.dialect import Type, integer_op

FRACTION = 27  # bits of the overlap: with areas below 2^35, of boxes in 16 bits, products stay within 63


@integer_op(
    "non_max_suppression",
    kind="reduce",
    ranges={"overlap_multiplier": (0, 1 << FRACTION)},
)
class NonMaxSuppression:
    """ONNX's NonMaxSuppression on codes: for each image and class the boxes of largest score, of equal scores the lower
    number first, that overlap none kept before by more than overlap_multiplier / 2^FRACTION of their common area.

    boxes int8|int16 [images, n, 4] of one scale, corners in any order or, with centers=True, (x, y, width, height);
    scores int8|int16 [images, classes, n], of which those up to `limit` beyond their zero point do not count.
    -> int32 [images * classes * most, 3], most <= n: (image, class, box) of those kept, by image and class, in the
    order of their scores; the rows that are left are -1.
    """

    @staticmethod
    def infer(boxes, scores, *, most, overlap_multiplier, limit, centers, boxes_zero_point, scores_zero_point):
        images, classes, _ = scores.shape
        return Type((images * classes * most, 3), "int32")

    @staticmethod
    def evaluate(boxes, scores, *, most, overlap_multiplier, limit, centers, boxes_zero_point, scores_zero_point):
        images, classes, _ = scores.shape
        y1, x1, y2, x2 = corners(boxes.astype(np.int64) - boxes_zero_point, centers)
        area = (y2 - y1) * (x2 - x1)
        found: list[tuple[int, int, int]] = []
        for image in range(images):
            for label in range(classes):
                row = scores[image, label].astype(np.int64) - scores_zero_point
                kept: list[int] = []
                for i in np.argsort(-row, kind="stable"):
                    if row[i] <= limit or len(kept) == most:
                        break
                    a, b = (image, i), (image, kept)
                    high = np.maximum(np.minimum(y2[a], y2[b]) - np.maximum(y1[a], y1[b]), 0)
                    wide = np.maximum(np.minimum(x2[a], x2[b]) - np.maximum(x1[a], x1[b]), 0)
                    common = high * wide
                    joined = area[a] + area[b] - common
                    if not (common * (1 << FRACTION) > joined * overlap_multiplier).any():
                        kept.append(int(i))
                found += [(image, label, i) for i in kept]
        result = np.full((images * classes * most, 3), -1, np.int32)
        result[: len(found)] = np.array(found, np.int32).reshape(-1, 3)
        return result

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        if any(c.type(name).dtype not in ("int8", "uint8", "int16") for name in ("boxes", "scores")):
            raise c.refusal("non_max_suppression takes boxes and scores of 8 or 16 bits")
        return -1, max(*c.type("scores").shape, 1) - 1


def corners(boxes: np.ndarray, centers: bool) -> tuple[np.ndarray, ...]:
    """(low y, low x, high y, high x) [images, n], twice as large where boxes are given by their centres."""
    if centers:
        x, y, width, height = np.moveaxis(boxes, -1, 0)
        width, height = np.maximum(width, 0), np.maximum(height, 0)
        return 2 * y - height, 2 * x - width, 2 * y + height, 2 * x + width
    y1, x1, y2, x2 = np.moveaxis(boxes, -1, 0)
    return np.minimum(y1, y2), np.minimum(x1, x2), np.maximum(y1, y2), np.maximum(x1, x2)
