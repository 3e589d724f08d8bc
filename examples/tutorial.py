"""Tutorial: put this package's kernels into torchvision's ResNeXt-50 and see that nothing but the time changes.

    python examples/tutorial.py [--images 2] [--size 224] [--picture tutorial.png]

Every `# %%` starts a cell, for editors that know notebooks. The photographs come with scikit-learn; the weights are
random, because none come with a package: what is shown is agreement, not classification.
"""

# %% A network of torchvision, and two photographs
import argparse
import copy
import time
from statistics import median

import matplotlib.pyplot as plt
import torch
import torchvision
from sklearn.datasets import load_sample_images

from resnext_kernels import convert, explain, fuse, load_weights
from resnext_kernels.network import resnext50_32x4d

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--images", type=int, default=2, choices=(1, 2))
parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
parser.add_argument("--rounds", type=int, default=5, help="how often each network is timed")
parser.add_argument("--picture", default="tutorial.png", help="where the feature maps are drawn")
arguments = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)  # a second thread makes times depend on what else the machine does
theirs = torchvision.models.resnext50_32x4d(weights=None)
pixels = torch.stack([torch.tensor(image) for image in load_sample_images().images[: arguments.images]])
size = (arguments.size, arguments.size)
photographs = torch.nn.functional.interpolate(pixels.permute(0, 3, 1, 2) / 255, size, mode="area")
images = ((photographs - 0.45) / 0.225).contiguous(memory_format=torch.channels_last)
with torch.no_grad():  # running statistics of these photographs, as a trained network would have
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    theirs.train()(images)
theirs.eval().to(memory_format=torch.channels_last)

# %% Convert a copy: the grouped convolutions change class, nothing else does
converted = copy.deepcopy(theirs)
report = convert(converted)
print(f"converted {len(report.converted)} of {len(report.converted) + len(report.kept)} convolutions")
print("kept, for example:", *next(iter(report.kept.items())))

# %% Which kernel runs, and why
print(explain("fprop", torch.randn(1, 128, 56, 56), torch.randn(128, 4, 3, 3), padding=1, groups=32))

# %% Agreement: in float32 both are off by rounding, in float64 nothing can hide behind rounding


def run(model):
    """Logits, and the gradient of the first convolution's weight: it has come through every layer."""
    model.zero_grad()
    logits = model(images.to(model.fc.weight.dtype))
    logits.square().sum().backward()
    return logits.detach().double(), model.conv1.weight.grad.double()


expected, expected_gradient = run(copy.deepcopy(theirs).double())
logits, gradient = run(copy.deepcopy(converted).double())
in_double = [float((a - b).abs().max() / b.abs().max()) for a, b in ((logits, expected), (gradient, expected_gradient))]
ours, pytorch = (float((run(model)[0] - expected).abs().max() / expected.abs().max()) for model in (converted, theirs))
print(f"float64: logits differ by {in_double[0]:.1e} of the largest, gradients by {in_double[1]:.1e}")
print(f"float32: the converted network's logits are off by {ours:.1e}, torchvision's by {pytorch:.1e}")
assert max(in_double) < 1e-9, "the converted network does not agree with torchvision's in float64"
assert ours < 2 * pytorch + 1e-6, "the converted network errs more than torchvision's in float32"

# %% The same weights in this package's network, and back
mine = resnext50_32x4d().eval().to(memory_format=torch.channels_last)
print("weights read as", load_weights(mine, theirs.state_dict()))

# %% Speed, interleaved, so that a busy machine disturbs all alike
rivals = {"torchvision": theirs, "converted": converted, "converted and fused": fuse(converted)}
times = {name: [] for name in rivals}
with torch.inference_mode():
    for _ in range(arguments.rounds):
        for name, model in rivals.items():
            start = time.process_time()
            model(images)
            times[name].append(time.process_time() - start)
for name, seconds in times.items():
    ratio = median(times["torchvision"]) / median(seconds)
    print(f"{name}: {median(seconds) * 1e3:.0f} ms of CPU time, {ratio:.2f} times as fast as torchvision's")

# %% Feature maps: the four stages, from a network that returns them
maps = resnext50_32x4d(out_indices=(0, 1, 2, 3)).eval()
load_weights(maps, theirs.state_dict())
with torch.inference_mode():
    stages = maps(images)
figure, axes = plt.subplots(len(images), 5, figsize=(12, 2.6 * len(images)), squeeze=False)
for i, row in enumerate(axes):
    row[0].imshow(photographs[i].permute(1, 2, 0))
    for stage, (axis, output) in enumerate(zip(row[1:], stages, strict=True), start=1):
        axis.imshow(output[i].norm(dim=0), cmap="magma")
        axis.set_title(f"stage {stage}: {output.shape[1]} x {output.shape[2]} x {output.shape[3]}", fontsize=9)
    for axis in row:
        axis.axis("off")
figure.suptitle("Length of the feature vector at each place, random weights")
figure.savefig(arguments.picture, bbox_inches="tight")
print("feature maps drawn in", arguments.picture)
