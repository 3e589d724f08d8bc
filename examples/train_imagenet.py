"""Trains a ResNeXt on folders of images, on one device or, under torchrun, on many; or in a minute on small digits.

    python examples/train_imagenet.py --digits --out /tmp/digits
    torchrun --nproc-per-node 8 examples/train_imagenet.py --data IMAGENET --out RUN --amp bfloat16

--data holds train/CLASS/*.jpg and val/CLASS/*.jpg. The run is written to --out: last.pth (everything that is needed
to go on), best.pth (averaged weights, for `load_weights`), log.csv. Started again with the same arguments it goes on
where it was, after a kill too, and ends with the same weights, bit for bit on one device, as if nothing had
happened: what is drawn at random for an image depends on the seed, the epoch and the image only.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, TensorDataset

from resnext_kernels import export_weights, network

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ARCHITECTURES = ("resnet50", "resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d")


class Repeatable(Dataset):
    """A dataset whose random augmentation depends on seed, epoch and index only, whoever loads the sample."""

    def __init__(self, dataset: Dataset, augment, seed: int) -> None:
        self.dataset, self.augment, self.seed, self.epoch = dataset, augment, seed, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        image, label = self.dataset[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, self.epoch, index)) % 2**63)
            return self.augment(image), label


def imagenet(folder: Path, size: int, seed: int) -> tuple[Repeatable, Dataset, int]:
    """Training and validation images, and the number of classes."""
    from torchvision import datasets, transforms

    finish = [transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
    augment = transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *finish])
    plain = transforms.Compose([transforms.Resize(size * 8 // 7), transforms.CenterCrop(size), *finish])
    train = datasets.ImageFolder(folder / "train")
    return Repeatable(train, augment, seed), datasets.ImageFolder(folder / "val", plain), len(train.classes)


def digits(seed: int) -> tuple[Repeatable, Dataset, int]:
    """scikit-learn's 1797 digits of 8 x 8 pixels, one in six for validation, shifted at random in training."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8).expand(-1, 3, -1, -1) / 8 - 1
    data = TensorDataset(images, torch.tensor(labels))
    validation = range(0, len(data), 6)
    training = [i for i in range(len(data)) if i % 6]

    def shift(image):
        return torch.roll(image, tuple(torch.randint(-1, 2, (2,)).tolist()), (1, 2))

    return Repeatable(Subset(data, training), shift, seed), Subset(data, validation), 10


def make_model(arguments: argparse.Namespace, classes: int) -> nn.Module:
    """The network, from the seed."""
    torch.manual_seed(arguments.seed)
    if arguments.digits:
        return network.ResNeXt((1, 1), 8, 4, num_classes=classes, stem="cifar", zero_init_residual=True)
    return getattr(network, arguments.architecture)(num_classes=classes, zero_init_residual=True)


class Run:
    """A training run: everything that last.pth holds, and how to take a step."""

    def __init__(self, arguments: argparse.Namespace, classes: int, steps: int, device: torch.device) -> None:
        self.arguments, self.device, self.steps = arguments, device, steps
        self.model = make_model(arguments, classes).to(device, memory_format=torch.channels_last)
        decay = [p for p in self.model.parameters() if p.dim() > 1]
        rest = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": decay, "weight_decay": arguments.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=arguments.lr, momentum=0.9, nesterov=True)
        warm = max(1, min(steps // 20, 5000))
        phases = [LinearLR(self.optimizer, 0.01, total_iters=warm), CosineAnnealingLR(self.optimizer, steps - warm)]
        self.schedule = SequentialLR(self.optimizer, phases, [warm])
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(arguments.ema), use_buffers=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=arguments.amp == "float16")
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.1)
        self.step, self.best = 0, -1.0
        self.losses: list[float] = []  # of the steps of this epoch
        self.history: list[dict] = []  # a row for each epoch
        wrapped = nn.parallel.DistributedDataParallel(self.model) if dist.is_initialized() else self.model
        self.forward = torch.compile(wrapped) if arguments.compile else wrapped
        self.parts = ("model", "optimizer", "schedule", "average", "scaler")  # have a state_dict
        self.values = ("step", "best", "losses", "history")

    def autocast(self):
        """Mixed precision, if it is wanted."""
        dtype = getattr(torch, self.arguments.amp or "bfloat16")
        return torch.autocast(self.device.type, dtype, enabled=bool(self.arguments.amp))

    def place(self, images, labels):
        """A batch on the device, channels last."""
        return images.to(self.device, memory_format=torch.channels_last, non_blocking=True), labels.to(self.device)

    def take_step(self, images, labels) -> None:
        """One optimizer step."""
        images, labels = self.place(images, labels)
        self.optimizer.zero_grad()
        with self.autocast():
            loss = self.loss(self.forward(images), labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.average.update_parameters(self.model)
        self.step += 1
        self.losses.append(loss.item())

    @torch.no_grad()
    def accuracy(self, loader: DataLoader) -> float:
        """Share of the validation images that the averaged model gets right, over all processes."""
        self.average.eval()
        counts = torch.zeros(2, device=self.device)
        for batch in loader:
            images, labels = self.place(*batch)
            with self.autocast():
                right = self.average(images).argmax(1) == labels
            counts += torch.stack([right.sum(), torch.tensor(len(labels), device=self.device)])
        if dist.is_initialized():
            dist.all_reduce(counts)
        return (counts[0] / counts[1]).item()

    def save(self, path: Path) -> None:
        """Writes everything, such that a kill leaves the old file or the new one, never half of one."""
        state = {part: getattr(self, part).state_dict() for part in self.parts}
        replace_file(path, {**state, **{name: getattr(self, name) for name in self.values}, "steps": self.steps})

    def load(self, path: Path) -> None:
        """Goes back to what was saved."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["steps"] != self.steps:
            sys.exit(f"{path} belongs to a run of {state['steps']} steps, this one has {self.steps}: use another --out")
        for part in self.parts:
            getattr(self, part).load_state_dict(state[part])
        for name in self.values:
            setattr(self, name, state[name])


def replace_file(path: Path, content: dict) -> None:
    """torch.save, but all or nothing."""
    torch.save(content, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def train(run: Run, train_set: Repeatable, sampler, make_loader, validation: DataLoader, console: Console) -> None:
    """All epochs from where the run is."""
    arguments, first = run.arguments, not dist.is_initialized() or dist.get_rank() == 0
    per_epoch = run.steps // arguments.epochs
    writer = make_writer(arguments.out) if first and arguments.tensorboard else None
    with Progress(console=console, disable=not first, transient=True) as progress:
        task = progress.add_task("steps", total=run.steps, completed=run.step)
        for epoch in range(run.step // per_epoch, arguments.epochs):
            train_set.epoch = epoch
            sampler.set_epoch(epoch)
            order = list(sampler)[run.step % per_epoch * arguments.batch : per_epoch * arguments.batch]
            run.model.train()
            for batch in make_loader(order):
                run.take_step(*batch)
                progress.update(task, completed=run.step)
                if first and run.step % arguments.save_every == 0 and run.step % per_epoch:
                    run.save(arguments.out / "last.pth")
            row = {"epoch": epoch, "loss": sum(run.losses) / per_epoch, "accuracy": run.accuracy(validation)}
            run.losses = []
            run.history.append(row)
            better, run.best = row["accuracy"] > run.best, max(row["accuracy"], run.best)
            if not first:
                continue
            if better:
                replace_file(arguments.out / "best.pth", export_weights(run.average.module, "torchvision"))
            run.save(arguments.out / "last.pth")
            write_log(arguments.out / "log.csv", run.history)
            console.print(f"epoch {epoch}: loss {row['loss']:.3f}, accuracy {row['accuracy']:.1%}")
            if writer:
                writer.add_scalar("loss", row["loss"], run.step)
                writer.add_scalar("accuracy", row["accuracy"], run.step)


def make_writer(out: Path):
    """A TensorBoard writer."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(out)


def write_log(path: Path, rows: list[dict]) -> None:
    """Every epoch so far."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="folder with train/CLASS/* and val/CLASS/*")
    what.add_argument("--digits", action="store_true", help="scikit-learn's digits and a small network instead")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an old run there is continued")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="resnext50_32x4d")
    parser.add_argument("--epochs", type=int, default=None, help="default: 100, or 6 for the digits")
    parser.add_argument("--batch", type=int, default=64, help="images of one process in a step")
    parser.add_argument(
        "--lr",
        type=float,
        default=None,
        help="default: 0.1 for 256 images in a step, in proportion; 0.1 for the digits",
    )
    parser.add_argument("--weight-decay", type=float, default=5e-5)
    parser.add_argument("--ema", type=float, default=None, help="decay of the averaged weights")
    parser.add_argument("--amp", choices=["bfloat16", "float16"], help="mixed precision")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=None, help="processes that load images")
    parser.add_argument("--save-every", type=int, default=500, help="steps between two writes of last.pth")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard's files to --out")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    small = arguments.digits
    defaults = {"epochs": 6 if small else 100, "ema": 0.95 if small else 0.9998, "workers": 0 if small else 8}
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def main() -> None:
    """Sets up devices and data, and trains."""
    arguments = parse()
    rank, world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if arguments.lr is None:
        arguments.lr = 0.1 if arguments.digits else 0.1 * arguments.batch * world / 256
    arguments.out.mkdir(parents=True, exist_ok=True)
    sets = digits(arguments.seed) if arguments.digits else None
    train_set, validation_set, classes = sets or imagenet(arguments.data, arguments.image_size, arguments.seed)
    place = {"num_replicas": world, "rank": dist.get_rank() if dist.is_initialized() else 0}
    sampler = DistributedSampler(train_set, **place, seed=arguments.seed, drop_last=True)
    per_epoch = len(sampler) // arguments.batch
    if per_epoch == 0:
        sys.exit(f"a batch of {arguments.batch} is more than the {len(sampler)} images that a process has")
    common = {"num_workers": arguments.workers, "pin_memory": device.type == "cuda", "batch_size": arguments.batch}
    validation = DataLoader(Subset(validation_set, range(place["rank"], len(validation_set), world)), **common)
    run = Run(arguments, classes, per_epoch * arguments.epochs, device)
    last = arguments.out / "last.pth"
    if last.exists():
        run.load(last)
    train(run, train_set, sampler, lambda order: DataLoader(train_set, sampler=order, **common), validation, Console())
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
