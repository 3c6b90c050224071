"""Bytes that a step takes, from plain numbers: weights, adapters, optimiser, features, KV cache, activations, logits.

Every term describes what is in memory at the peak. What a layer keeps for its backward pass was read off autograd's saved
tensors for the layers that transformers 5 writes with PEFT's adapters on them; it is linear in tokens but for the mask.

Letters in comments: D width, Q width of all query heads, K of all key heads, I feed-forward width, V vocabulary, r adapter rank.
"""

from dataclasses import dataclass

FLOAT = 4  # bytes of float32: adapters, gradients, moments, norms and logits are always that
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes per weight: 4 bits, a byte of scale per 64, a float32 per 256 scales
LOGITS_BYTES = 1 << 27  # of one array over the vocabulary; as logprobs.LOGITS_BYTES
CHUNK = 64  # tokens of a chunk of linear attention, in transformers' own code for it
LINES = ("runtime", "weights", "adapters", "optimiser", "features", "kv cache", "activations", "logits")


@dataclass(frozen=True)
class Delta:
    """Linear attention (gated delta rule) of a hybrid model: heads, their widths, and the kernel of its convolution."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int


@dataclass(frozen=True)
class Numbers:
    """A model's sizes. Weights are counts, not bytes."""

    width: int
    full_layers: int  # with softmax attention
    delta_layers: int  # with linear attention
    query: int
    keys: int
    heads: int
    ffn: int
    vocabulary: int
    linear_weights: int  # of the language model: those that NF4 quantises
    plain_weights: int  # of the language model: embeddings, norms, convolutions
    head_weights: int  # of the output head where it is not the embedding
    vision_weights: int
    lora_units: int  # inputs + outputs of all adapted layers; times the rank: weights of one adapter
    lora_modules: float  # adapted linear layers per layer of the model
    biggest: int  # weights of the biggest quantised matrix
    head_norms: bool = False  # norms of queries and keys
    gated: bool = False  # attention with an output gate
    deep: int = 0  # deeper layers that get image features of their own
    delta: Delta | None = None

    @property
    def layers(self) -> int:
        """All layers of the language model."""
        return self.full_layers + self.delta_layers


@dataclass(frozen=True)
class Precision:
    """How weights are held and computed with."""

    nf4: bool
    compute: int  # bytes per number: 4 float32, 2 bfloat16
    autocast: bool  # adapters compute in bfloat16 while training (accelerate's mixed precision, on a GPU)
    checkpointing: bool
    rank: int
    moments: float = 8.0  # bytes of optimiser state per trained weight on the device: 8 AdamW, 2 with 8 bits


@dataclass(frozen=True)
class Batch:
    """Rows in memory at once. tokens: of the longest row, prompt and answer; answers: answer tokens per row; visual: image
    tokens per row."""

    rows: int
    tokens: int
    answers: int
    visual: int


def resident(n: Numbers, p: Precision, adapters: float, trained: int, vision: bool = True) -> dict[str, float]:
    """Bytes that are in memory all the time: weights, adapters, and what training adds for `trained` adapters.
    adapters: how many are on the device; vision: whether the vision tower is."""
    one = n.lora_units * p.rank
    plain = n.plain_weights + n.head_weights + (n.vision_weights if vision else 0)
    weights: float = plain * p.compute + n.linear_weights * (NF4 if p.nf4 else p.compute)
    return {"weights": weights, "adapters": adapters * one * FLOAT, "optimiser": trained * one * (FLOAT + p.moments)}


def training(n: Numbers, p: Precision, b: Batch) -> dict[str, float]:
    """Features, activations and logits while one micro-batch goes forward and backward."""
    spots = b.rows * b.tokens
    masked = b.rows > 1
    layers = [(n.full_layers, _full_saved(n, p, b, masked)), (n.delta_layers, _delta_saved(n, p, b.tokens))]
    heaviest = max(size for count, size in layers if count) * spots
    backward = _backward(n, p) * spots + _dequantised(n, p)
    logits = _logits(n, b.rows * b.answers)
    if p.checkpointing:
        saved = float(n.layers * n.width * p.compute * spots)
        moving = heaviest + backward
    else:
        saved = sum(count * size for count, size in layers) * spots
        moving = backward
    cast = n.lora_units * p.rank * p.compute if p.autocast else 0.0
    return {
        "features": _features(n, p, b),
        "activations": saved + cast + _ends(n, p, b) + max(0.0, moving - logits),
        "logits": logits,
    }


def sampling(n: Numbers, p: Precision, b: Batch, answers: int, new: int) -> dict[str, float]:
    """Features, KV cache, activations and logits while rows of b.tokens prompt tokens get `answers` answers of `new` tokens."""
    rows = b.rows * answers
    cache = kv_bytes(n, p, rows, b.tokens + new)
    prefill_cache = kv_bytes(n, p, b.rows, b.tokens)
    forward = _forward(n, p, b) * b.rows * b.tokens + _ends(n, p, b) + _dequantised(n, p)
    # A decoding step makes a longer copy of one layer's keys; choosing a token takes the cumulative sum in float64.
    grown = cache / max(1, 2 * n.full_layers) + _dequantised(n, p)
    chosen = rows * n.vocabulary * (3 * FLOAT + 2 * 8)
    peak = max(prefill_cache + forward, cache + grown, cache + chosen)
    logits = chosen if peak == cache + chosen else 0.0
    held = cache if peak != prefill_cache + forward else prefill_cache
    return {"features": _features(n, p, b), "kv cache": held, "activations": peak - held - logits, "logits": logits}


def scoring(n: Numbers, p: Precision, b: Batch) -> dict[str, float]:
    """Features, activations and logits of a pass without gradients over whole rows."""
    forward = _forward(n, p, b) * b.rows * b.tokens + _dequantised(n, p)
    logits = _logits(n, b.rows * b.answers)
    return {"features": _features(n, p, b), "activations": _ends(n, p, b) + max(0.0, forward - logits), "logits": logits}


def encoding(p: Precision, patches: int, width: int, ffn: int) -> float:
    """Activations while the vision tower encodes `patches` patches at once, without gradients: a layer's two feed-forward arrays
    and attention's six. width and ffn: the tower's."""
    return float(patches * (2 * ffn + 6 * width) * p.compute)


def kv_bytes(n: Numbers, p: Precision, rows: int, tokens: int) -> float:
    """Keys and values of all softmax layers, and the states of the linear ones, which do not grow with tokens."""
    grown = 2.0 * n.full_layers * n.keys * p.compute * rows * tokens
    if n.delta is None:
        return grown
    d = n.delta
    state = d.value_heads * d.key_dim * d.value_dim * FLOAT
    window = (2 * d.key_heads * d.key_dim + d.value_heads * d.value_dim) * d.kernel * p.compute
    return grown + n.delta_layers * rows * (state + window)


def _features(n: Numbers, p: Precision, b: Batch) -> float:
    """Vectors of all clips of a micro-batch, and their copy side by side."""
    return 2.0 * b.rows * b.visual * n.width * (1 + n.deep) * p.compute


def _ends(n: Numbers, p: Precision, b: Batch) -> float:
    """The vectors that go in or come out with their last norm, and the mask of booleans."""
    mask = b.rows * b.tokens**2 if b.rows > 1 else 0.0
    return 2.0 * n.width * p.compute * b.rows * b.tokens + mask


def _dequantised(n: Numbers, p: Precision) -> float:
    return float(n.biggest * p.compute) if p.nf4 else 0.0


def _full_saved(n: Numbers, p: Precision, b: Batch, masked: bool) -> float:
    """Bytes per token that a softmax layer keeps for its backward pass.

    In float32: inputs and outputs of both norms (4 D); queries, keys and values after rotation, repeated to all heads where
    there is a mask, and the result of attention (2 Q + 2 Q); the gate before and after its curve, what it is multiplied with
    and the product (4 I). In bfloat16 norms keep float32, and each adapter a copy of its input.
    """
    repeated = n.query if masked else n.keys
    attention = 2 * n.query + 2 * repeated
    numbers: float = p.compute * (attention + 3 * n.ffn) + FLOAT * (2 * n.width + n.heads + 2)
    if n.head_norms:
        numbers += FLOAT * (n.query + n.keys)
    if n.gated:  # in float32 the norm's input lies in one piece with the gate, and the gated result is the last adapter's input
        numbers += p.compute * n.query * (4 if p.compute == FLOAT else 2)
    numbers += _adapter_inputs(n, p, 3 * n.width + n.query)
    return numbers + (b.tokens * p.compute if masked else 0.0)


def _adapter_inputs(n: Numbers, p: Precision, attention: int) -> float:
    """Bytes per token of what adapters keep: their inputs and the r numbers between their two halves."""
    own = FLOAT if not p.autocast else p.compute
    inner = n.lora_modules * p.rank * own
    if p.compute == FLOAT:
        return FLOAT * (2 * n.width + n.ffn) + inner  # inputs are shared with the norms' outputs and with attention's
    return own * (attention + 2 * n.width + n.ffn) + inner


def _delta_saved(n: Numbers, p: Precision, tokens: int) -> float:
    """Bytes per token that a linear layer keeps: transformers' chunked delta rule, in float32, and the feed-forward part.
    Per value head, over whole chunks, five rows of its matrices, six forms of queries and keys, three of values, a state for
    each; before and after that, two and four. In the model's own format the convolution's input and output, and the gate."""
    d = n.delta
    if d is None:
        return 0.0
    filled = -(-tokens // CHUNK) * CHUNK / max(1, tokens)  # the last chunk is filled up
    chunked = 5 * CHUNK + 6 * d.key_dim + 3 * d.value_dim + 4 + d.key_dim * d.value_dim / CHUNK
    per_head = filled * chunked + 2 * d.key_dim + 4 * d.value_dim + 5
    channels = 2 * d.key_heads * d.key_dim + d.value_heads * d.value_dim
    rule = FLOAT * d.value_heads * per_head + p.compute * (2 * channels + d.value_heads * d.value_dim)
    return rule + p.compute * 3 * n.ffn + FLOAT * (2 * n.width + 2) + _adapter_inputs(n, p, 4 * n.width)


def _forward(n: Numbers, p: Precision, b: Batch) -> float:
    """Bytes per token of a layer's temporaries without gradients: attention with its mask in numbers, or the second half of the
    feed-forward part, where an adapter's result stands beside its scaled copy."""
    attention = p.compute * (3 * n.query + 2 * n.query + n.width) + (b.tokens * p.compute if b.rows > 1 else 0)
    copied = FLOAT * n.width if p.compute < FLOAT else 0  # adapters see float32
    feed = p.compute * 2 * n.ffn + 2 * FLOAT * n.ffn + 2 * p.compute * n.width + copied
    rule = FLOAT * n.delta.value_heads * (3 * CHUNK + 8 * (n.delta.key_dim + n.delta.value_dim)) if n.delta else 0
    return float(max(attention, feed, rule))


def _backward(n: Numbers, p: Precision) -> float:
    """Bytes per token of the gradients that a layer's backward pass holds at its widest: in the feed-forward part or the rule."""
    rule = FLOAT * n.delta.value_heads * 3 * (CHUNK + n.delta.key_dim) if n.delta else 0
    return float(max(p.compute * 2 * (n.ffn + n.width), rule))


def _logits(n: Numbers, positions: int) -> float:
    """Three arrays over the vocabulary for the answer positions of one chunk: raw, masked and normalised, or in the backward
    pass, where they are made again, normalised and two gradients. Chunks are those of `logprobs.logprobs_of`."""
    chunk = min(positions, 2048, max(1, LOGITS_BYTES // (FLOAT * n.vocabulary)))
    return 3.0 * FLOAT * n.vocabulary * chunk
