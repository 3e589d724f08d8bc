"""What kernels compute, as expressions that a prover can follow: slices, stacks and sums. See test_equality.py."""

import torch


def grouped_fprop(input, weight, bias):
    """A 3x3 convolution of one image in two groups, without padding."""
    (outputs, inputs, _, _), (channels, height, width) = weight.shape, input.shape
    results = []
    for k in range(outputs):
        first = k // (outputs * inputs // channels) * inputs  # channel of the group
        total = bias[k]
        for r in range(3):
            for s in range(3):
                for c in range(inputs):
                    pixels = input[first + c, r : r + height - 2, s : s + width - 2]
                    total = total + pixels * weight[k, c, r, s]
        results.append(total)
    return torch.stack(results)
