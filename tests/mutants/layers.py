"""Layers of `bit` that compute something else than they should."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from bit.layers import GroupNormActivation, StandardizedConv2d, pad_same


class Unbiased(StandardizedConv2d):
    def standardized(self) -> Tensor:
        mean, variance = _moments(self.weight, 1)
        return (self.weight - mean) / (variance + self.eps).sqrt()


class Outside(StandardizedConv2d):
    def standardized(self) -> Tensor:
        mean, variance = _moments(self.weight, 0)
        return (self.weight - mean) / (variance.sqrt() + self.eps)


class Uncentered(StandardizedConv2d):
    def standardized(self) -> Tensor:
        return self.weight / (_moments(self.weight, 0)[1] + self.eps).sqrt()


class Centered(StandardizedConv2d):
    def standardized(self) -> Tensor:
        return self.weight - _moments(self.weight, 0)[0]


class Bordered(StandardizedConv2d):
    mode = "reflect"

    def forward(self, x: Tensor) -> Tensor:
        size = self.kernel_size[0] // 2
        return functional.conv2d(functional.pad(x, (size,) * 4, self.mode), self.standardized(), None, self.stride)


class Replicated(Bordered):
    mode = "replicate"


class Circular(Bordered):
    mode = "circular"


class Same(StandardizedConv2d):
    def forward(self, x: Tensor) -> Tensor:
        padded = pad_same(x, self.kernel_size[0], self.stride[0])
        return functional.conv2d(padded, self.standardized(), None, self.stride)


class Turned(StandardizedConv2d):
    def standardized(self) -> Tensor:
        return super().standardized().flip(2, 3)


class PooledFirst(StandardizedConv2d):
    def forward(self, x: Tensor) -> Tensor:
        x = functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        return functional.conv2d(x, self.standardized())


class UnbiasedNorm(GroupNormActivation):
    def forward(self, x: Tensor) -> Tensor:
        grouped = x.reshape(len(x), self.num_groups, -1)
        variance = grouped.var(2, correction=1, keepdim=True)
        normalized = (grouped - grouped.mean(2, keepdim=True)) / (variance + self.eps).sqrt()
        return self.activation(_affine(self, normalized.reshape(x.shape)))


class ReluFirst(GroupNormActivation):
    def forward(self, x: Tensor) -> Tensor:
        return nn.GroupNorm.forward(self, functional.relu(x))


class Plain(GroupNormActivation):
    def forward(self, x: Tensor) -> Tensor:
        return self.activation(functional.group_norm(x, self.num_groups, eps=self.eps))


class NoNorm(GroupNormActivation):
    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x)


class NoShift(GroupNormActivation):
    def forward(self, x: Tensor) -> Tensor:
        return self.activation(functional.group_norm(x, self.num_groups, self.weight, eps=self.eps))


class OneMore(GroupNormActivation):
    def forward(self, x: Tensor) -> Tensor:
        return self.activation(functional.group_norm(x, self.num_groups, self.weight + 1, self.bias, self.eps))


def _moments(weight: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    axes = (1, 2, 3)
    return weight.mean(axes, keepdim=True), weight.var(axes, correction=correction, keepdim=True)


def _affine(module: nn.GroupNorm, x: Tensor) -> Tensor:
    return x * module.weight[:, None, None] + module.bias[:, None, None]
