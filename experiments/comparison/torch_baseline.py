"""The benchmark's other side: the three networks, certification and training in PyTorch.

Written from the papers' descriptions of the architectures. Series are (batch, channels, time)
here, PyTorch's layout. This module imports no JAX.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

# Networks. A submodule is called as its Flax counterpart is, in snake case: the list `conv` holds
# Conv_0, Conv_1, ... That is how `from_flax` finds the weights.


class Conv(nn.Conv1d):
    """Convolution that keeps the length; also takes (B, C, 1, T), which can be channels last."""

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        (kernel,) = self.kernel_size
        even = 1 - kernel % 2
        if input.ndim == 3:
            # What padding="same" does, without its warning: one more zero on the right if even.
            padded = functional.pad(input, (0, 1)) if even else input
            return functional.conv1d(padded, self.weight, self.bias, padding=(kernel - 1) // 2)
        # Padding by hand would copy the input. Padded alike on both sides, the output of an even
        # kernel is one step longer, and its first step goes.
        weight = self.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        y = functional.conv2d(input, weight, self.bias, padding=(0, kernel // 2))
        return y[..., even:]


class BatchNorm(nn.BatchNorm1d):
    """As Flax's with momentum 0.9, but PyTorch's running variance is the unbiased estimate."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-5, momentum=0.1)

    def _check_input_dim(self, input: Tensor) -> None:
        """(B, C, 1, T) is normalised as (B, C, T) is."""


def max_pool_of_three(x: Tensor, stride: int = 1) -> Tensor:
    """Maximum over centred windows of three steps along the last axis."""
    if x.ndim == 3:
        return functional.max_pool1d(x, 3, stride, padding=1)
    # PyTorch's own pooling of (B, C, 1, T) in channels-last layout is several times slower.
    padded = functional.pad(x, (1, 1), value=-torch.inf)
    length = x.shape[-1]
    first, second, third = (padded[..., shift : shift + length : stride] for shift in range(3))
    return torch.maximum(torch.maximum(first, second), third)


def mean_over_time(x: Tensor) -> Tensor:
    """(B, C, T) or (B, C, 1, T) -> (B, C)."""
    return x.mean(dim=tuple(range(2, x.ndim)))


class InceptionModule(nn.Module):
    def __init__(self, channels: int, filters: int = 32) -> None:
        super().__init__()
        self.bottleneck = Conv(channels, filters, 1, bias=False) if channels > 1 else None
        narrow = filters if channels > 1 else channels
        self.conv = nn.ModuleList([Conv(narrow, filters, k, bias=False) for k in (40, 20, 10)])
        self.conv.append(Conv(channels, filters, 1, bias=False))
        self.batch_norm = nn.ModuleList([BatchNorm(4 * filters)])

    def forward(self, x: Tensor) -> Tensor:
        narrow = x if self.bottleneck is None else self.bottleneck(x)
        branches = [conv(narrow) for conv in self.conv[:3]]
        branches.append(self.conv[3](max_pool_of_three(x)))
        return functional.relu_(self.batch_norm[0](torch.cat(branches, dim=1)))


class InceptionTime(nn.Module):
    def __init__(self, num_classes: int, channels: int, length: int) -> None:
        super().__init__()
        sizes = (channels, 128, 128, 128, 128, 128)
        self.inception_module = nn.ModuleList([InceptionModule(size) for size in sizes])
        self.conv = nn.ModuleList([Conv(size, 128, 1, bias=False) for size in (channels, 128)])
        self.batch_norm = nn.ModuleList([BatchNorm(128) for _ in range(2)])
        self.dense = nn.ModuleList([nn.Linear(128, num_classes)])

    def forward(self, x: Tensor) -> Tensor:
        for block in range(2):
            shortcut = self.batch_norm[block](self.conv[block](x))
            for module in self.inception_module[3 * block : 3 * block + 3]:
                x = module(x)
            x = functional.relu_(x + shortcut)
        return self.dense[0](mean_over_time(x))


class LSTMFCN(nn.Module):
    def __init__(self, num_classes: int, channels: int, length: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(length, 64, batch_first=True)
        sizes = ((channels, 128, 8), (128, 256, 5), (256, 128, 3))
        self.conv = nn.ModuleList([Conv(*size) for size in sizes])
        self.batch_norm = nn.ModuleList([BatchNorm(size) for _, size, _ in sizes])
        self.dense = nn.ModuleList([nn.Linear(64 + 128, num_classes)])

    def forward(self, x: Tensor) -> Tensor:
        # Each channel is one step, whose features are all its time steps.
        lstm = self.lstm(x.flatten(2))[0][:, -1]
        lstm = functional.dropout(lstm, 0.8, self.training)
        for conv, batch_norm in zip(self.conv, self.batch_norm, strict=True):
            x = functional.relu_(batch_norm(conv(x)))
        return self.dense[0](torch.cat([lstm, mean_over_time(x)], dim=1))


class AttentionBlock(nn.Module):
    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        wide = 3 * filters
        self.conv = nn.ModuleList([Conv(channels, filters, k) for k in (3, 6, 12)])
        self.batch_norm = nn.ModuleList([BatchNorm(wide)])
        self.dense = nn.ModuleList([nn.Linear(wide, wide // 16), nn.Linear(wide // 16, wide)])

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([conv(x) for conv in self.conv], dim=1)
        y = functional.relu_(self.batch_norm[0](y))
        attention = functional.relu(self.dense[0](mean_over_time(y)))
        attention = torch.sigmoid(self.dense[1](attention))
        return y * attention.reshape(*attention.shape, *[1] * (y.ndim - 2))


class MACNN(nn.Module):
    def __init__(self, num_classes: int, channels: int, length: int) -> None:
        super().__init__()
        inputs = (channels, 192, 192, 384, 384, 768)
        filters = (64, 64, 128, 128, 256, 256)
        self.attention_block = nn.ModuleList(map(AttentionBlock, inputs, filters))
        self.dense = nn.ModuleList([nn.Linear(768, num_classes)])

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.attention_block):
            if number in (2, 4):
                x = max_pool_of_three(x, stride=2)
            x = block(x)
        return self.dense[0](mean_over_time(x))


NAMES = {"inception_time": InceptionTime, "lstm_fcn": LSTMFCN, "macnn": MACNN}


def create(name: str, num_classes: int, channels: int, length: int) -> nn.Module:
    """The network `name`, in eval mode: series (B, C, T) -> logits (B, K)."""
    return NAMES[name](num_classes, channels, length).eval()


def from_flax(
    name: str, variables: dict[str, Any], num_classes: int, channels: int, length: int
) -> nn.Module:
    """The network `name` with the variables of its Flax counterpart: the same logits."""
    net = create(name, num_classes, channels, length)
    for path, module in net.named_modules():
        if isinstance(module, Conv | nn.Linear | BatchNorm | nn.LSTM):
            values = _leaves(path, variables)
            state = module.state_dict() | {key: torch.tensor(v) for key, v in values.items()}
            module.load_state_dict(state)
    return net


def _leaves(path: str, variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """The values of one layer, under PyTorch's names and in its layout."""
    params, stats = variables["params"], variables.get("batch_stats", {})
    if path == "lstm":
        cell = params["OptimizedLSTMCell_0"]
        gates = "ifgo"
        return {
            "weight_ih_l0": np.concatenate([cell[f"i{g}"]["kernel"] for g in gates], axis=1).T,
            "weight_hh_l0": np.concatenate([cell[f"h{g}"]["kernel"] for g in gates], axis=1).T,
            "bias_ih_l0": np.zeros(4 * 64, np.float32),  # Flax has one bias, PyTorch two
            "bias_hh_l0": np.concatenate([cell[f"h{g}"]["bias"] for g in gates]),
        }
    for name in _flax_path(path):
        params, stats = params[name], stats.get(name, {})
    leaves: list[tuple[str, Any]] = [*params.items(), *stats.items()]
    values = {key: np.asarray(value) for key, value in leaves}
    if "kernel" in values:  # (time, in, out) or (in, out)
        values["weight"] = values.pop("kernel").T
    renamed: dict[str, str] = {"scale": "weight", "mean": "running_mean", "var": "running_var"}
    return {renamed.get(key, key): np.ascontiguousarray(value) for key, value in values.items()}


def _flax_path(path: str) -> Iterator[str]:
    """inception_module.2.conv.0 -> InceptionModule_2, Conv_0."""
    words = path.split(".")
    while words:
        name = words.pop(0)
        if words and words[0].isdigit():
            yield "".join(w.capitalize() for w in name.split("_")) + f"_{words.pop(0)}"
        else:
            yield name


# Certification: the votes of one example.


def count_votes_as_published(
    net: nn.Module,
    x: Tensor,
    masks: Tensor,
    sigma: float,
    num_draws: int,
    noise: Tensor | None = None,
) -> Tensor:
    """Votes as the paper's code counts them: batches of 128 draws, one mask after another.

    Nothing turns autograd off, so every forward pass records its graph.

    Args:
      net: maps series (B, C, T) to logits (B, K).
      x: (C, T) one series.
      masks: (m, T).
      sigma: standard deviation of the noise.
      num_draws: n, at least 1.
      noise: (n, C, T) standard normal; drawn if None.

    Returns:
      (K,) counts.
    """
    counts = 0
    for start in range(0, num_draws, 128):
        size = min(128, num_draws - start)
        drawn = _draw(x, size) if noise is None else noise[start : start + size]
        noisy = x + sigma * drawn
        logits = torch.stack([net(mask * noisy) for mask in masks]).mean(dim=0)
        counts = counts + torch.bincount(logits.argmax(dim=1), minlength=logits.shape[1])
    assert isinstance(counts, Tensor)
    return counts


COARSER = ("tensorfloat32", "bfloat16")  # options that round what is multiplied


@dataclasses.dataclass(frozen=True)
class Setup:
    """How PyTorch is asked to run: what `tune` chooses."""

    draws_per_batch: int = 100  # times m masks are the rows of a forward pass
    channels_last: bool = False
    compiled: bool = False
    tensorfloat32: bool = False  # on a GPU; PyTorch's own default has it for convolutions alone
    bfloat16: bool = False

    def __str__(self) -> str:
        return f"{self.draws_per_batch} draws a batch, {self.options}"

    @property
    def options(self) -> str:
        on = [f.name for f in dataclasses.fields(self)[1:] if getattr(self, f.name)]
        return ", ".join(on) or "plain"


def prepare(net: nn.Module, setup: Setup) -> Callable[[Tensor], Tensor]:
    """The network as a function (B, C, T) -> logits (B, K), set up as asked."""
    net = copy.deepcopy(net)

    def forward(x: Tensor) -> Tensor:
        if setup.channels_last:
            x = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=setup.bfloat16):
            return net(x)

    # Freezing takes the weights as constants, which folds BatchNorm into the convolutions.
    options: dict[str, str | int | bool | Callable[..., Any]] = {"freezing": True}
    if setup.compiled:
        forward = torch.compile(forward, dynamic=False, options=options)

    def call(x: Tensor) -> Tensor:
        with products(setup.tensorfloat32):
            return forward(x)

    return call


@contextlib.contextmanager
def products(tensorfloat32: bool) -> Iterator[None]:
    """Inside, a GPU multiplies float32 in TensorFloat-32, or in float32, in its fastest kernels."""
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32 = matmul.allow_tf32 = tensorfloat32
    cudnn.benchmark = True
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


@torch.inference_mode()
def count_votes(
    forward: Callable[[Tensor], Tensor],
    x: Tensor,
    masks: Tensor,
    sigma: float,
    num_draws: int,
    draws_per_batch: int,
    noise: Tensor | None = None,
) -> Tensor:
    """Votes as well as PyTorch can: no autograd, masks folded into a batch of the best size.

    Every batch has the same shape; draws beyond num_draws do not vote.

    Args:
      forward: from `prepare`.
      draws_per_batch: of its setup.
      x, masks, sigma, num_draws, noise: as in `count_votes_as_published`.

    Returns:
      (K,) counts.
    """
    counts = 0
    for start in range(0, num_draws, draws_per_batch):
        size = min(draws_per_batch, num_draws - start)
        drawn = _draw(x, draws_per_batch)
        if noise is not None:
            drawn[:size] = noise[start : start + size]
        rows = masks[:, None, None, :] * (x + sigma * drawn)
        logits = forward(rows.flatten(0, 1)).unflatten(0, (len(masks), -1)).mean(dim=0)
        counts = counts + torch.bincount(logits[:size].argmax(dim=1), minlength=logits.shape[1])
    assert isinstance(counts, Tensor)
    return counts


def _draw(x: Tensor, size: int) -> Tensor:
    return torch.randn(size, *x.shape, device=x.device)


def tune(
    seconds_per_draw: Callable[[Setup], float],
    sizes: tuple[int, ...],
    options: tuple[str, ...] = ("channels_last", "compiled", "bfloat16"),
) -> tuple[dict[str, Setup], list[tuple[Setup, float | str]]]:
    """Tries batch sizes, then each option on top of what has been best; keeps what helps.

    An option that fails (no compiler, no such kernel) is one that does not help. Coarser products
    come last, each on top of what is best in float32.

    Returns:
      The best setup in float32 and in each coarser precision that was faster, and every trial with
      its seconds a draw or the reason why it failed.
    """
    trials: list[tuple[Setup, float | str]] = []
    best, least = Setup(draws_per_batch=sizes[0]), float("inf")

    def attempt(setup: Setup) -> None:
        nonlocal best, least
        try:
            seconds = seconds_per_draw(setup)
        except Exception as error:  # whatever this build of PyTorch lacks
            trials.append((setup, str(error).strip().split("\n")[0] or type(error).__name__))
            return
        trials.append((setup, seconds))
        if seconds < least:
            best, least = setup, seconds

    for size in sizes:
        attempt(Setup(draws_per_batch=size))
    for option in options:
        if option not in COARSER:
            attempt(dataclasses.replace(best, **{option: True}))
    found, in_float32, seconds = {"float32": best}, best, least
    for option in (option for option in options if option in COARSER):
        # From the fastest float32 setup, and from the plain one, whose layout may suit it better.
        best, least = in_float32, seconds
        attempt(dataclasses.replace(in_float32, **{option: True}))
        other = Setup(in_float32.draws_per_batch, not in_float32.channels_last)
        attempt(dataclasses.replace(other, **{option: True}))
        if best != in_float32:
            found[option] = best
    return found, trials


# Training


class Trainer:
    """Algorithm 1 in PyTorch: a step on one batch, as `selfens_jax.training.train_step` does.

    Args:
      mask_pool: (P, T) masks; every series of a batch gets one of them at random. Drawing them
        is thus left out of PyTorch's time.
      class_weights: (K,).
    """

    def __init__(
        self,
        net: nn.Module,
        setup: Setup,
        sigma: float,
        mask_pool: Tensor,
        class_weights: Tensor,
        learning_rate: float = 1e-3,
    ) -> None:
        self.net = copy.deepcopy(net).train()
        self.setup, self.sigma = setup, sigma
        self.mask_pool, self.class_weights = mask_pool, class_weights
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=learning_rate)
        self._loss = torch.compile(self._loss_of) if setup.compiled else self._loss_of

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of Adam on x (B, C, T), y (B,); the loss, still on the device."""
        masks = self.mask_pool[torch.randint(len(self.mask_pool), (len(x),), device=x.device)]
        inputs = masks[:, None, :] * (x + self.sigma * torch.randn_like(x))
        if self.setup.channels_last:
            inputs = inputs.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad(set_to_none=True)
        with products(self.setup.tensorfloat32):
            loss = self._loss(inputs, y)
            loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _loss_of(self, inputs: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.setup.bfloat16):
            logits = self.net(inputs)
        return functional.cross_entropy(logits.float(), y, weight=self.class_weights)


def synchronise(device: str) -> None:
    """Waits for the work given to the device, so that a clock can be read."""
    if device == "cuda":
        torch.cuda.synchronize()
