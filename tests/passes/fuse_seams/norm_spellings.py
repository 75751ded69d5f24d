"""Norms as libraries and models spell them, by the kind that a fused op knows them as, and what only looks like one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.nets.structures import C

Spelling = Callable[[Tensor, Tensor, Tensor], Any]  # of the read, a weight and a shift
WRITTEN: dict[Spelling, str] = {}  # to their kind in 16 bits
LIBRARY: dict[Spelling, str] = {}
OTHERS: list[Spelling] = []
F32, EPS = torch.float32, 1e-3


def written(kind: str) -> Callable[[Spelling], Spelling]:
    return functools.partial(_keep, WRITTEN, kind)


def library(kind: str) -> Callable[[Spelling], Spelling]:
    return functools.partial(_keep, LIBRARY, kind)


def _keep(table: dict[Spelling, str], kind: str, spelling: Spelling) -> Spelling:
    table[spelling] = kind
    return spelling


@written("rms_cast")
def llama(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.to(F32)
    variance = h.pow(2).mean(-1, keepdim=True)
    return weight * (h * torch.rsqrt(variance + EPS)).to(u.dtype)


@written("rms_cast")
def t5(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    variance = u.to(F32).pow(2).mean(-1, keepdim=True)
    h = u * torch.rsqrt(variance + EPS)
    return weight * h.to(weight.dtype)


@written("rms")
def gemma(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS) * (1.0 + weight.float())).type_as(u)


@written("rms")
def olmo(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    return (weight * (h * torch.rsqrt(EPS + torch.square(h).mean(dim=2, keepdim=True)))).to(u.dtype)


@written("rms")
def without_weight(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    return (h / torch.sqrt((h * h).mean((-1,), keepdim=True) + EPS)).to(u.dtype)


@written("rms_cast")
def two_casts(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    size = torch.pow(torch.mean(u.float() ** 2, -1, True) + EPS, -0.5)
    return torch.mul(size, u.float()).type(u.dtype) * weight


@written("rms_cast")
def wide_weight(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)
    return (h.to(u.dtype) * weight.float()).to(u.dtype)


@library("rms")
def rms_norm(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return functional.rms_norm(u, (C,), weight, EPS)


@library("rms")
def rms_norm_by_default(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return torch.rms_norm(u, (C,))


@library("rms_cast")
def rms_norm_then_weight(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return functional.rms_norm(u, [C], eps=EPS) * weight


@library("rms")
def wide_rms_norm(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return functional.rms_norm(u.float(), (C,), weight.float(), EPS).to(u.dtype)


@library("rms")
def fused_rms_norm(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return torch.ops.aten._fused_rms_norm(u, [C], weight, EPS)[0]


@library("rms")
def aten_rms_norm(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return torch.ops.aten.rms_norm(u, [C], weight, EPS)


@library("layer")
def layer_norm(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return functional.layer_norm(u, (C,), weight, shift, EPS)


@library("layer")
def layer_norm_by_default(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return torch.layer_norm(u, [C])


@library("layer")
def wide_layer_norm(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return functional.layer_norm(u.to(dtype=F32), (C,), None, None, eps=EPS).to(u.dtype)


@library("layer")
def native_layer_norm(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return torch.ops.aten.native_layer_norm(u, [C], weight, shift, EPS)[0]


@library("layer")
def aten_layer_norm(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return torch.ops.aten.layer_norm(u, [C], weight, shift, EPS)


@OTHERS.append
def centred(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    h = h - h.mean(-1, keepdim=True)
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)).to(u.dtype)


@OTHERS.append
def centred_inside(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    return (h * torch.rsqrt((h - h.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + EPS)).to(u.dtype)


@OTHERS.append
def another_power(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    return (h * torch.rsqrt(h.pow(4).mean(-1, keepdim=True) + EPS)).to(u.dtype)


@OTHERS.append
def another_root(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    return (h * (h.pow(2).mean(-1, keepdim=True) + EPS).pow(-0.25)).to(u.dtype)


@OTHERS.append
def times_the_root(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    return (h * torch.sqrt(h.pow(2).mean(-1, keepdim=True) + EPS)).to(u.dtype)


@OTHERS.append
def of_something_else(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    return (h.sin() * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)).to(u.dtype)


@OTHERS.append
def of_the_weight(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return (weight.float() * torch.rsqrt(u.float().pow(2).mean(-1, keepdim=True) + EPS)).to(u.dtype)


@OTHERS.append
def the_weight_divided(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return (weight.float() / torch.sqrt(u.float().pow(2).mean(-1, keepdim=True) + EPS)).to(u.dtype)


@OTHERS.append
def upside_down(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    return (torch.sqrt(h.pow(2).mean(-1, keepdim=True) + EPS) / h).to(u.dtype)


@OTHERS.append
def a_weight_in_fp64(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return functional.rms_norm(u, (C,), weight.double(), EPS)


@OTHERS.append
def another_axis(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    return (h * torch.rsqrt(h.pow(2).mean(-2, keepdim=True) + EPS)).to(u.dtype)


@OTHERS.append
def two_axes(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return functional.layer_norm(u, u.shape[-2:], None, None, EPS)


@OTHERS.append
def a_sum(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    return (h * torch.rsqrt(h.pow(2).sum(-1, keepdim=True) + EPS)).to(u.dtype)


@OTHERS.append
def eps_is_a_tensor(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + shift[0].float().abs())).to(u.dtype)


@OTHERS.append
def eps_with_a_factor(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    return (h * torch.rsqrt(torch.add(h.pow(2).mean(-1, keepdim=True), EPS, alpha=2))).to(u.dtype)


@OTHERS.append
def no_eps(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True))).to(u.dtype)


@OTHERS.append
def read_elsewhere(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return functional.layer_norm(u, (C,)) * u.sigmoid()


@OTHERS.append
def cast_elsewhere(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    return ((h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)) * h.sigmoid()).to(u.dtype)


@OTHERS.append
def size_elsewhere(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    size = torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)
    return (h * size + size).to(u.dtype)


@OTHERS.append
def mean_overwritten(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.double().float()
    mean = h.pow(2).mean(-1, keepdim=True)
    mean.view(-1).mul_(2)
    return (h * torch.rsqrt(mean + EPS)).to(u.dtype)


@OTHERS.append
def mean_elsewhere(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    out, mean, _ = torch.ops.aten.native_layer_norm(u, [C], weight, shift, EPS)
    return out * mean.to(u.dtype)
