"""BERT (Devlin et al. 2018; MiniLM is a smaller one), ViT (Dosovitskiy et al. 2020; DeiT is one) and GPT-2 (Radford et
al. 2019), as their public implementations export them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

MASKED = -10000.0  # what BERT adds to the scores of padding


class Attention(nn.Module):
    """Multi-head self-attention; `fused`: one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, fused: bool, causal: bool = False, length: int = 0) -> None:
        super().__init__()
        self.heads, self.fused, self.causal = heads, fused, causal
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width // n) for n in ([1] if fused else [3] * 3))
        self.out = nn.Linear(width, width)
        if causal:
            self.register_buffer("future", torch.ones(length, length, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv[0](x).split(width, -1) if self.fused else [project(x) for project in self.qkv]
        q, k, v = (p.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for p in parts)
        scores = q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5
        if mask is not None:
            scores = scores + mask
        if self.causal:
            scores = scores.masked_fill(self.future[:length, :length], torch.finfo(scores.dtype).min)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention and feed-forward, each with a residual sum; the norms before them (`pre`) or after."""

    def __init__(
        self, attention: Attention, width: int, hidden: int, eps: float, pre: bool, gelu: str = "none"
    ) -> None:
        super().__init__()
        self.attention, self.pre, self.gelu = attention, pre, partial(functional.gelu, approximate=gelu)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def feed(self, x: Tensor) -> Tensor:
        return self.down(self.gelu(self.up(x)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.pre:
            x = x + self.attention(self.norm1(x), mask)
            return x + self.feed(self.norm2(x))
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.feed(x))


class Bert(nn.Module):
    """Token ids and a mask to the last hidden state and the pooled first token; all tokens are of type 0."""

    def __init__(self, width: int, depth: int, heads: int, hidden: int, vocabulary: int = 30522) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions, self.types = nn.Embedding(512, width), nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, 1e-12)
        self.blocks = nn.ModuleList(
            Block(Attention(width, heads, False), width, hidden, 1e-12, False) for _ in range(depth)
        )
        self.pooler = nn.Linear(width, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        mask = (1.0 - attention_mask[:, None, None, :].to(self.positions.weight.dtype)) * MASKED
        types = self.types(torch.zeros_like(input_ids))
        x = self.norm(self.words(input_ids) + types + self.positions.weight[: input_ids.shape[1]])
        for block in self.blocks:
            x = block(x, mask)
        return x, torch.tanh(self.pooler(x[:, 0]))


def bert(width: int = 768, depth: int = 12, heads: int = 12, hidden: int = 3072) -> nn.Module:
    return Bert(width, depth, heads, hidden)


class Vit(nn.Module):
    """Image to 1000 classes, patches of 16 x 16."""

    def __init__(self, width: int, heads: int, depth: int = 12, size: int = 224, patch: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(Attention(width, heads, True), width, 4 * width, 1e-6, True) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, 1000)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def vit(width: int, heads: int) -> nn.Module:
    return Vit(width, heads)


class Gpt2(nn.Module):
    """Token ids to the logits of every position; the head shares the embedding's weights."""

    def __init__(
        self, width: int = 768, depth: int = 12, heads: int = 12, vocabulary: int = 50257, length: int = 1024
    ) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.blocks = nn.ModuleList(
            Block(Attention(width, heads, True, True, length), width, 4 * width, 1e-5, True, "tanh")
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width, 1e-5), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.words.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids) + self.positions.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def gpt2() -> nn.Module:
    return Gpt2()
