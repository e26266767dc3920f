"""The models that are shrunk: like a ResNet, a ViT, a BERT and a Llama, in a few lines each.

Each is a factory for `--model tests.benchmarks.models:NAME`; EXAMPLES has the inputs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everywhere

EXAMPLES = {
    "resnet": "1x3x112x112",
    "vit": "1x3x128x128",
    "bert": "1x128:int64",
    "llama": "1x64:int64",
}


class _Basic(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.b, self.nb = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.shortcut = nn.Conv2d(inner, outer, 1, stride) if inner != outer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.nb(self.b(F.relu(self.na(self.a(x)))))
        return F.relu(y + self.shortcut(x))


class _ResNet(nn.Module):
    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, widths[0], 7, 2, 3), nn.BatchNorm2d(widths[0])
        layers = []
        for inner, outer in zip(widths[:1] + widths, widths):
            layers += [_Basic(inner, outer, 1 + (inner != outer)), _Basic(outer, outer, 1)]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(widths[-1], 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 3, 2, 1)
        return self.head(self.layers(x).mean((2, 3)))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, *, bias: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=bias) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(2, (self.heads, -1)) for f in (self.q, self.k, self.v))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.o(y.transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    """Norms before (ViT) or behind (BERT) attention and MLP."""

    def __init__(self, width: int, heads: int, *, before: bool) -> None:
        super().__init__()
        self.before = before
        self.attention = _Attention(width, heads, bias=True, causal=False)
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            x = x + self.attention(self.n1(x))
            return x + self.down(F.gelu(self.up(self.n2(x))))
        x = self.n1(x + self.attention(x))
        return self.n2(x + self.down(F.gelu(self.up(x))))


class _ViT(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.positions = nn.Parameter(torch.zeros(1, 64, width))
        self.layers = nn.Sequential(
            *(_Layer(width, width // 64, before=True) for _ in range(layers))
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.layers(x)).mean(1))


class _Bert(nn.Module):
    def __init__(self, width: int, layers: int, words: int) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width), nn.Embedding(128, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(
            *(_Layer(width, width // 64, before=False) for _ in range(layers))
        )
        self.head = nn.Linear(width, words)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        return self.head(self.layers(self.norm(self.words(x) + self.positions(places))))


class _Decoder(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.n1, self.n2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = _Attention(width, max(width // 128, 2), bias=False, causal=True)
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        y = self.n2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class _Llama(nn.Module):
    def __init__(self, width: int, inner: int, layers: int, words: int) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(words, width), nn.RMSNorm(width)
        self.layers = nn.Sequential(*(_Decoder(width, inner) for _ in range(layers)))
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.words(x))))


def resnet(widths: tuple[int, ...] = (64, 128, 256, 512)) -> nn.Module:
    """A ResNet-18, but for the shortcuts' norms."""
    return _ResNet(widths)


def vit(width: int = 384, layers: int = 6) -> nn.Module:
    """Half a ViT-S, for images of 128 by 128."""
    return _ViT(width, layers)


def bert(width: int = 512, layers: int = 4, words: int = 8000) -> nn.Module:
    """A small BERT, its output layer tied to the embedding."""
    return _Bert(width, layers, words)


def llama(width: int = 1024, inner: int = 2816, layers: int = 4, words: int = 8000) -> nn.Module:
    """A Llama without rotary embeddings."""
    return _Llama(width, inner, layers, words)
