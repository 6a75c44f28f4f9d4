"""The encoder of this folder in PyTorch (2.4 or newer) and safetensors, nothing else.

    from torch_encoder import Encoder

    encoder = Encoder.load("FOLDER")
    encoder.encode_video(frames)  # uint8 [b, f, h, w, 3]
    encoder.encode_audio(wave)  # float in [-1, 1] or int16 [b, s]
    encoder.encode_text(ids)  # int [b, t], 0 = padding

Each gives one row of unit norm per item, in the space that modalities share.
config.json has the geometry, below architecture. A text's ids are the tokenizer's:

    ids = sentencepiece.SentencePieceProcessor("FOLDER/tokenizer.model").encode(text)

cut at the text's `length`, or followed by zeros. In a tokenizer.txt the word on line
n, counted from 0, has id n + 2, and unknown words have 1.

    python torch_encoder.py

compares this file with what the exporter computed, on the input of forward.safetensors;
exit code 1 beyond the tolerance in manifest.json.
"""

import hashlib
import json
import math
import pathlib
import sys

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F  # noqa: N812


def rms_norm(width):
    return nn.RMSNorm(width, eps=1e-6)


def layer_norm(width):
    return nn.LayerNorm(width, eps=1e-6)


# ---------------------------------------------------------------- media to tokens


class VideoTokens(nn.Module):
    """uint8 [b, f, h, w, 3] -> tubelets [b, t, c] of pixels in [-1, 1]."""

    def __init__(self, settings):
        super().__init__()
        self.shape = (settings["frames"], *settings["size"], 3)
        self.patch, self.motion = settings["patch"], settings["motion"]

    def forward(self, video):
        (pt, ph, pw), b = self.patch, len(video)
        f, h, w, c = self.shape
        x = video.reshape(b, f // pt, pt, h // ph, ph, w // pw, pw, c)
        x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, pt * ph * pw * c)
        x = x.float() * (2 / 255) - 1
        if not self.motion:
            return x
        # What moves: each pixel less its mean over the clip, at unit RMS.
        x = x.reshape(b, f // pt, -1, pt, ph * pw * c)
        x = x - x.mean((1, 3), keepdim=True)
        power = x.square().mean((1, 2, 3, 4), keepdim=True)
        x = x * torch.rsqrt(power + 0.004**2)
        return x.reshape(b, -1, pt * ph * pw * c)


class WaveTokens(nn.Module):
    """[b, s] -> pieces of the waveform [b, t, c]."""

    def __init__(self, settings):
        super().__init__()
        self.shape, self.patch = (settings["samples"],), settings["patch"]

    def forward(self, wave):
        return wave.reshape(len(wave), -1, self.patch)


class LogMelTokens(nn.Module):
    """[b, s] -> patches of frames and bands of a log-mel spectrogram [b, t, c]."""

    def __init__(self, settings):
        super().__init__()
        self.shape, self.patch = (settings["samples"],), settings["patch"]
        self.window, self.hop = settings["window"], settings["hop"]
        self.floor, self.mean = settings["floor"], settings["mean"]
        self.std = settings["std"]
        self.size = 1 << (self.window - 1).bit_length()
        turn = torch.arange(self.window, dtype=torch.float64) / self.window
        hann = 0.5 - 0.5 * torch.cos(2 * torch.pi * turn)
        hann = (hann * 2 / hann.sum()).float()  # a full-scale sine peaks at 1
        self.register_buffer("hann", hann, persistent=False)
        self.register_buffer("bank", self._bank(settings).float(), persistent=False)

    def _bank(self, settings):
        """Triangles linear in mel, [bins, mels]; the zero frequency is unused."""

        def mel(f):
            return 1127 * torch.log1p(torch.as_tensor(f, dtype=torch.float64) / 700)

        low, high = mel(settings["fmin"]).item(), mel(settings["fmax"]).item()
        edges = torch.linspace(low, high, settings["mels"] + 2, dtype=torch.float64)
        bins = self.size // 2 + 1
        top = settings["rate"] / 2
        points = mel(torch.linspace(0, top, bins, dtype=torch.float64))[:, None]
        rise = (points - edges[:-2]) / (edges[1:-1] - edges[:-2])
        fall = (edges[2:] - points) / (edges[2:] - edges[1:-1])
        bank = torch.minimum(rise, fall).clamp(min=0)
        bank[0] = 0
        return bank

    def forward(self, wave):
        frames = wave.shape[1] // self.hop
        left = (self.window - self.hop) // 2
        right = (frames - 1) * self.hop + self.window - left - wave.shape[1]
        wave = F.pad(wave, (left, max(right, 0)))
        cut = wave.unfold(1, self.window, self.hop)[:, :frames] * self.hann
        bands = torch.fft.rfft(cut, n=self.size).abs() @ self.bank
        x = (torch.log(bands + self.floor) - self.mean) / self.std
        (pf, pm), (b, f, m) = self.patch, x.shape
        x = x.reshape(b, f // pf, pf, m // pm, pm).permute(0, 1, 3, 2, 4)
        return x.reshape(b, -1, pf * pm)


class TextTokens(nn.Module):
    """Ids [b, t], as they are."""

    def __init__(self, settings):
        super().__init__()
        self.shape = (settings["length"],)

    def forward(self, ids):
        return ids.long()


TOKENS = {
    "video": VideoTokens,
    "wave": WaveTokens,
    "log_mel": LogMelTokens,
    "text": TextTokens,
}


# ---------------------------------------------------------------- tokens to features


class RelativePosition(nn.Embedding):
    """A learnt logit per head and bucket of distance (T5): [1, heads, t, t]."""

    def __init__(self, heads, buckets=32, far=64):
        super().__init__(buckets, heads)
        self.half, self.exact, self.far = buckets // 2, buckets // 4, far

    def forward(self, tokens):
        place = torch.arange(tokens, device=self.weight.device)
        distance = place[None, :] - place[:, None]
        size = distance.abs()
        grown = torch.log(size.clamp(min=1).float() / self.exact)
        grown = grown / math.log(self.far / self.exact) * (self.half - self.exact)
        grown = (self.exact + grown.int()).clamp(max=self.half - 1)
        bucket = torch.where(size < self.exact, size, grown)
        bucket = bucket + self.half * (distance > 0)
        return super().forward(bucket).permute(2, 0, 1)[None]


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, width, mlp, heads, t5):
        super().__init__()
        self.heads, self.scale = heads, 1.0 if t5 else (width // heads) ** -0.5
        self.attention_norm = (rms_norm if t5 else layer_norm)(width)
        self.attention = nn.ModuleDict(
            {
                name: nn.Linear(width, width, bias=not t5)
                for name in ("query", "key", "value", "output")
            }
        )
        self.mlp_norm = layer_norm(width)
        self.mlp_in = nn.Linear(width, mlp, bias=not t5)
        self.mlp_out = nn.Linear(mlp, width, bias=not t5)

    def forward(self, x, bias):
        y = self.attention_norm(x)
        q, k, v = (
            self.attention[name](y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        x = x + self.attention["output"](y.transpose(1, 2).flatten(-2))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


class Transformer(nn.Module):
    """[b, t, d] -> [b, t, d]; `valid` [b, t] says which tokens are no padding."""

    def __init__(self, tower):
        super().__init__()
        width, heads, t5 = tower["width"], tower["heads"], tower["form"] == "t5"
        self.depth = tower["layers"]
        for i in range(self.depth):
            self.add_module(f"layer_{i:02d}", Layer(width, tower["mlp"], heads, t5))
        self.norm = (rms_norm if t5 else layer_norm)(width)
        self.relative_position = RelativePosition(heads) if t5 else None

    def forward(self, x, valid):
        bias = torch.where(valid, 0.0, -1e9)[:, None, None, :]
        if self.relative_position is not None:
            bias = bias + self.relative_position(x.shape[1])
        for i in range(self.depth):
            x = self.get_submodule(f"layer_{i:02d}")(x, bias)
        return self.norm(x)


class Position(nn.Module):
    """The sum of one learnt row per axis of the grid, normalised: [t, d]."""

    def __init__(self, axes, grid, width):
        super().__init__()
        self.axes = axes
        for axis, size in zip(axes, grid):
            self.add_module(axis, nn.Embedding(size, width))
        self.norm = layer_norm(width)
        cells = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
        cells = torch.stack([x.flatten() for x in cells])
        self.register_buffer("cells", cells, persistent=False)

    def forward(self):
        rows = [self.get_submodule(a)(c) for a, c in zip(self.axes, self.cells)]
        return self.norm(sum(rows))


class Aggregation(nn.Module):
    """The token in front, whose output is the pooled feature."""

    def __init__(self, width):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return torch.cat([self.token.expand(len(x), 1, -1), x], 1)


class Tower(nn.Module):
    """What a modality has outside its Transformer."""

    def __init__(self, tower):
        super().__init__()
        width, self.shared = tower["width"], tower["shared"]
        self.t5 = tower["form"] == "t5"
        self.tokens = TOKENS[tower["tokenizer"]["kind"]](tower["tokenizer"])
        first = width
        if tower["vocab"]:
            first = tower["word_width"]
            self.word = nn.Embedding(tower["vocab"], first)
        else:
            self.patch = nn.Linear(tower["channels"], width)
        if self.shared:
            self.pre = nn.Linear(first, width)
            self.post = nn.Linear(width, tower["pooled_width"])
        if self.t5:
            self.project = nn.Linear(first, width, bias=False)
        else:
            self.position = Position(tower["axes"], tower["grid"], width)
        self.aggregation = Aggregation(first if self.t5 else width)
        self.words = bool(tower["vocab"])

    def forward(self, media, transformer):
        tokens = self.tokens(media)
        x = self.word(tokens) if self.words else self.patch(tokens)
        if self.t5:
            x = self.project(self.aggregation(x))
        else:
            x = F.gelu(self.pre(x)) if self.shared else x
            x = self.aggregation(x + self.position())
        valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if self.words:
            valid[:, 1:] = tokens != 0
        x = transformer(x, valid)[:, 0]
        return F.gelu(self.post(x)) if self.shared else x


# ---------------------------------------------------------------- features to spaces


class BatchNorm(nn.Module):
    """By the running statistics of training."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))

    def forward(self, x):
        gain = self.weight * torch.rsqrt(self.var + 1e-5)
        return (x - self.mean) * gain + self.bias


class Chain(nn.Module):
    """Linear maps in turn, from one space to another."""

    def __init__(self, chain, width):
        super().__init__()
        self.linears, self.relu = chain["linears"], chain["relu"]
        for i, linear in enumerate(self.linears):
            made = nn.Linear(width, linear["features"], bias=linear["bias"])
            self.add_module(f"dense_{i}", made)
            width = linear["features"]
            if linear["norm"]:
                self.add_module(f"norm_{i}", BatchNorm(width))

    def forward(self, x):
        x = F.relu(x) if self.relu else x
        for i, linear in enumerate(self.linears):
            x = self.get_submodule(f"dense_{i}")(x)
            x = self.get_submodule(f"norm_{i}")(x) if linear["norm"] else x
            x = F.relu(x) if linear["relu"] else x
        return x


class Heads(nn.ModuleDict):
    """The chains of one objective; `forward` gives every space of a modality."""

    def __init__(self, chains, widths):
        super().__init__()
        self.chains = chains
        made = {("", modality): width for modality, width in widths.items()}
        for name, chain in chains.items():
            width = made[chain["source"], chain["modalities"][0]]
            self[name] = Chain(chain, width)
            for modality in chain["modalities"]:
                made[chain["space"], modality] = chain["linears"][-1]["features"]

    def forward(self, modality, pooled):
        found = {"": pooled}
        for name, chain in self.chains.items():
            if modality in chain["modalities"] and chain["source"] in found:
                found[chain["space"]] = self[name](found[chain["source"]])
        return found


class Encoder(nn.Module):
    """All modalities of an export.

    Attributes:
      default_spaces: modality -> the space used when none is named.
    """

    def __init__(self, architecture):
        super().__init__()
        towers = architecture["towers"]
        self.towers = towers
        self.places = architecture["places"]
        self.default_spaces = architecture["default_spaces"]
        self.model = nn.ModuleDict()
        for name, tower in towers.items():
            self.model[name] = Tower(tower)
            if tower["encoder"] not in self.model:
                self.model[tower["encoder"]] = Transformer(tower)
        widths = {name: tower["pooled_width"] for name, tower in towers.items()}
        self.heads = nn.ModuleDict(
            {name: Heads(c, widths) for name, c in architecture["chains"].items()}
        )

    @classmethod
    def load(cls, folder):
        """Reads config.json and model.safetensors, checked by manifest.json."""
        folder = pathlib.Path(folder)
        files = json.loads((folder / "manifest.json").read_text())["files"]
        for name in ("config.json", "model.safetensors"):
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            if found != files[name]["sha256"]:
                raise ValueError(f"{folder / name} differs from what was exported")
        config = json.loads((folder / "config.json").read_text())
        encoder = cls(config["architecture"])
        encoder.load_state_dict(renamed(load_file(folder / "model.safetensors")))
        return encoder.eval()

    def forward(self, modality, media):
        """`pooled` features, and the row of unit norm in every space."""
        tower = self.model[modality]
        if tuple(media.shape[1:]) != tower.tokens.shape:
            raise ValueError(
                f"{modality}: expected [b, {', '.join(map(str, tower.tokens.shape))}], "
                f"found {list(media.shape)}"
            )
        pooled = tower(media, self.model[self.towers[modality]["encoder"]])
        found = {name: heads(modality, pooled) for name, heads in self.heads.items()}
        outputs = {"pooled": pooled}
        for space, (objective, inner) in self.places.items():
            if inner in found[objective]:
                outputs[space] = F.normalize(found[objective][inner], dim=-1)
        return outputs

    def encode_video(self, frames, *, space=None):
        """uint8 RGB [b, f, h, w, 3] -> [b, e]; space "pooled": the features."""
        return self._encode("video", frames, space)

    def encode_audio(self, wave, *, space=None):
        """Mono [b, s], float in [-1, 1] or int16 -> [b, e]."""
        wave = torch.as_tensor(wave)
        scale = 1 if wave.is_floating_point() else 32768
        return self._encode("audio", wave.float() / scale, space)

    def encode_text(self, ids, *, space=None):
        """Ids [b, t], 0 = padding -> [b, e]."""
        return self._encode("text", ids, space)

    @torch.no_grad()
    def _encode(self, modality, media, space):
        device = next(self.parameters()).device
        outputs = self(modality, torch.as_tensor(media).to(device))
        return outputs[space or self.default_spaces[modality]]


def renamed(tensors):
    """Names and layouts of the file -> those of the modules here, in float32."""
    out = {}
    leaves = dict.fromkeys(("kernel", "scale", "table", "embedding"), "weight")
    for name, tensor in tensors.items():
        *path, leaf = name.split("/")
        if path[0] == "heads":
            del path[2]  # params, or state
        layers = [tensor.float()]
        if "layers" in path:  # stacked on the first axis
            layers = list(tensor.float())
        for i, layer in enumerate(layers):
            where = [f"layer_{i:02d}" if part == "layers" else part for part in path]
            value = layer.T.contiguous() if leaf == "kernel" else layer
            out[".".join([*where, leaves.get(leaf, leaf)])] = value
    return out


# ---------------------------------------------------------------- the exporter's check


def fixed_input(modality, shape, vocab):
    """The media that forward.safetensors was computed on."""

    def times(x, factor):
        return x * factor & 0xFFFFFFFF

    count = torch.Size(shape).numel()
    x = times(torch.arange(count, dtype=torch.int64), 0x9E3779B1)
    seed = 1 + ("video", "audio", "text").index(modality)
    x = x ^ (seed * 0x85EBCA6B & 0xFFFFFFFF)
    x = times(x ^ (x >> 16), 0x85EBCA6B)
    x = times(x ^ (x >> 13), 0xC2B2AE35)
    x = (x ^ (x >> 16)).reshape(shape)
    if modality == "video":
        return (x >> 24).to(torch.uint8)
    if modality == "audio":
        return (x.double() / 2**32 - 0.5).float()
    return 1 + x % max(vocab - 1, 1)


def differences(folder):
    """Output -> largest relative distance of a row from the exporter's."""
    encoder = Encoder.load(folder)
    expected = load_file(pathlib.Path(folder) / "forward.safetensors")
    far = {}
    for modality, tower in encoder.towers.items():
        shape = encoder.model[modality].tokens.shape
        rows = len(expected[f"{modality}/pooled"])
        with torch.no_grad():
            media = fixed_input(modality, (rows, *shape), tower["vocab"])
            outputs = encoder(modality, media)
        for space, found in outputs.items():
            want = expected[f"{modality}/{space}"]
            gap = (found - want).norm(dim=-1) / want.norm(dim=-1)
            far[f"{modality}/{space}"] = gap.max().item()
    return far


def check(folder):
    """Prints the distances; an exit with the outputs beyond the tolerance."""
    manifest = json.loads((pathlib.Path(folder) / "manifest.json").read_text())
    tolerance = manifest["forward"]["tolerance"]
    far = differences(folder)
    for output, gap in far.items():
        print(f"{output:24} {gap:.1e}")
    # NaN is beyond: it is not at most anything.
    beyond = [output for output, gap in far.items() if not gap <= tolerance]
    if beyond:
        sys.exit(f"not the exporter's, tolerance {tolerance}: {', '.join(beyond)}")


if __name__ == "__main__":
    check(sys.argv[1] if sys.argv[1:] else pathlib.Path(__file__).resolve().parent)
