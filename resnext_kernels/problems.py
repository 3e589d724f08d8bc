"""Convolution problems by name: the layers of the ResNeXt networks, and edge cases. Read by tests and benchmarks."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Problem:
    """One grouped 2-D convolution: input (n, c, h, w), weight (k, c / groups, r, s), output (n, k, p, q).

    Pairs are (vertical, horizontal). ``padding`` is zero padding on both sides.
    """

    n: int
    c: int
    h: int
    w: int
    k: int
    kernel_size: tuple[int, int] = (3, 3)
    groups: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)

    @property
    def p(self) -> int:
        """Height of the output."""
        return (self.h + 2 * self.padding[0] - self.dilation[0] * (self.kernel_size[0] - 1) - 1) // self.stride[0] + 1

    @property
    def q(self) -> int:
        """Width of the output."""
        return (self.w + 2 * self.padding[1] - self.dilation[1] * (self.kernel_size[1] - 1) - 1) // self.stride[1] + 1

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return self.n, self.c, self.h, self.w

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(K, C / groups, R, S)."""
        return self.k, self.c // self.groups, *self.kernel_size

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(N, K, P, Q)."""
        return self.n, self.k, self.p, self.q

    @property
    def flops(self) -> int:
        """Floating-point operations of one pass (fprop, dgrad and wgrad need the same number), a product as one.

        Taps that fall on padding are counted too, as is usual.
        """
        taps = self.kernel_size[0] * self.kernel_size[1]
        return 2 * self.n * self.k * self.p * self.q * (self.c // self.groups) * taps

    def bytes(self, element_size: int = 4) -> int:
        """Bytes of input, weight and output: what one pass must move at least."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        weight = self.k * (self.c // self.groups) * taps
        return element_size * (self.n * (self.c * self.h * self.w + self.k * self.p * self.q) + weight)

    def with_batch(self, n: int) -> "Problem":
        """The same layer for ``n`` images."""
        return replace(self, n=n)

    @property
    def name(self) -> str:
        """Short and unique enough for test ids and tables, such as ``n1_c128_56x56_k128_g32_r3x3_s1x1``."""
        pairs = {"r": self.kernel_size, "s": self.stride, "p": self.padding, "d": self.dilation}
        default = {"p": (1, 1), "d": (1, 1)}
        text = [f"{key}{a}x{b}" for key, (a, b) in pairs.items() if default.get(key) != (a, b)]
        return f"n{self.n}_c{self.c}_{self.h}x{self.w}_k{self.k}_g{self.groups}_" + "_".join(text)


def _layer(channels: int, groups: int, side: int, stride: int) -> Problem:
    return Problem(1, channels, side, side, channels, groups=groups, stride=(stride, stride))


def _network(width: int, groups: int) -> tuple[Problem, ...]:
    """The distinct grouped layers of a ResNeXt at 224 x 224; ``width`` is the channel count of the first stage."""
    layers = [_layer(width, groups, 56, 1)]
    for stage, side in enumerate((56, 28, 14), start=1):
        channels = width << stage
        layers += [_layer(channels, groups, side, 2), _layer(channels, groups, side // 2, 1)]
    return tuple(layers)


resnext50_32x4d = _network(128, 32)
"""Distinct grouped layers of ResNeXt-50 (and 101) 32x4d at 224 x 224, one image; group widths 4, 8, 16, 32."""

resnext101_32x8d = _network(256, 32)
"""The same of ResNeXt-101 32x8d; group widths 8, 16, 32, 64."""

resnext101_64x4d = _network(256, 64)
"""The same of ResNeXt-101 64x4d; group widths 4, 8, 16, 32."""

edge_cases = {
    "one_pixel": Problem(2, 16, 1, 1, 16, groups=4),
    "one_pixel_stride_2": Problem(1, 32, 1, 1, 32, groups=4, stride=(2, 2)),
    "two_pixels": Problem(1, 32, 2, 2, 32, groups=2),
    "two_pixels_stride_2": Problem(1, 32, 2, 2, 32, groups=8, stride=(2, 2)),
    "one_row": Problem(1, 32, 1, 9, 32, groups=8),
    "one_column": Problem(2, 32, 9, 1, 32, groups=4),
    "one_column_stride_2": Problem(1, 64, 9, 1, 64, groups=2, stride=(2, 2)),
    "odd_map": Problem(2, 32, 13, 15, 32, groups=8),
    "odd_map_stride_2": Problem(2, 32, 13, 15, 32, groups=8, stride=(2, 2)),
    "even_map_stride_2": Problem(1, 64, 12, 10, 64, groups=4, stride=(2, 2)),
    "tail_columns": Problem(1, 16, 5, 17, 16, groups=2),
    "tail_columns_stride_2": Problem(1, 32, 6, 35, 32, groups=2, stride=(2, 2)),
    "not_square": Problem(1, 48, 4, 23, 48, groups=12),
    "channel_tail": Problem(1, 20, 6, 6, 20, groups=5),
    "half_vector": Problem(2, 24, 7, 7, 24, groups=6),
    "one_group_of_8": Problem(1, 8, 7, 9, 8, groups=1),
    "one_group_of_64": Problem(1, 64, 4, 5, 64, groups=1),
    "three_groups_of_32": Problem(2, 96, 8, 7, 96, groups=3),
    "more_outputs": Problem(1, 16, 6, 7, 32, groups=4),
    "fewer_outputs": Problem(2, 32, 7, 6, 8, groups=4),
    "group_width_14": Problem(1, 56, 7, 7, 56, groups=4),
    "group_width_24": Problem(1, 96, 7, 7, 96, groups=4, stride=(2, 2)),
    "group_width_3": Problem(1, 12, 5, 5, 12, groups=4),
    "dense": Problem(1, 12, 8, 8, 20, groups=1),
    "depthwise": Problem(2, 16, 9, 9, 16, groups=16),
    "depthwise_multiplier": Problem(1, 8, 6, 6, 24, groups=8, stride=(2, 2)),
    "no_padding": Problem(1, 32, 9, 8, 32, groups=8, padding=(0, 0)),
    "no_padding_one_output": Problem(1, 32, 3, 3, 32, groups=8, padding=(0, 0)),
    "no_padding_stride_2": Problem(1, 32, 9, 8, 32, groups=4, stride=(2, 2), padding=(0, 0)),
    "wide_padding": Problem(1, 16, 5, 4, 16, groups=4, padding=(3, 4)),
    "uneven_padding": Problem(1, 16, 6, 7, 16, groups=4, padding=(0, 1)),
    "uneven_stride": Problem(1, 32, 9, 11, 32, groups=8, stride=(2, 1)),
    "stride_3": Problem(1, 16, 10, 11, 16, groups=4, stride=(3, 3)),
    "dilation_2": Problem(1, 32, 9, 10, 32, groups=8, padding=(2, 2), dilation=(2, 2)),
    "uneven_dilation": Problem(1, 16, 9, 12, 16, groups=4, stride=(1, 2), padding=(1, 3), dilation=(1, 3)),
    "kernel_1x1": Problem(2, 32, 5, 6, 32, kernel_size=(1, 1), groups=8, padding=(0, 0)),
    "kernel_5x2": Problem(1, 16, 8, 9, 16, kernel_size=(5, 2), groups=4, padding=(2, 1)),
    "unused_pixels": Problem(1, 16, 4, 4, 16, kernel_size=(1, 1), groups=4, stride=(3, 2), padding=(0, 0)),
    "empty_batch": Problem(0, 32, 5, 5, 32, groups=8),
    "batch_of_3": Problem(3, 64, 10, 9, 64, groups=4),
}
"""Small problems at the borders of what kernels assume: sizes, tails, strides, padding, group shapes."""
