"""GPT-2 weights -> an ONNX graph made for decoding.

An exported graph is several times slower than this one, which uses ONNX Runtime's fused operators
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md): MatMulNBits (int8, int4),
GroupQueryAttention on a KV cache that stays in place, SkipLayerNormalization, FastGelu (or what the model has for it),
and the LM head on the wanted positions only.

Inputs of the graph (B sequences, S new tokens each, W wanted positions):
  ids        int64 [B, S]
  positions  int64 [B, S]
  seqlens    int32 [B]      past + S - 1 of each sequence
  total      int32 []       the largest past + S
  wanted     int64 [W]      indices into the B * S tokens
  past_key_i, past_value_i  float32 [B, heads, context, head], the same buffers as present_key_i, present_value_i
Outputs: logits float32 [W, vocabulary], hidden float32 [B * S, width] (what the last norm makes of each token),
present_key_i, present_value_i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from server.catalogue.architecture import Architecture
from server.catalogue.engines import BITS, BLOCK, HEAD_BITS
from server.convert.quantise import quantise

Arrays = dict[str, NDArray[np.generic]]
MODEL_FILE, WEIGHTS_FILE = "model.onnx", "weights.bin"
INLINE_BYTES = 1 << 12
"""Tensors up to this size are stored in the graph itself, larger ones in a file beside it, which the runtime maps."""
PAGE = 4096
"""A tensor in the file begins at a multiple of this, as mapping wants it."""


class Graph:
    """A built model: `proto` refers by name to the large tensors in `weights`."""

    def __init__(self, proto: ModelProto, weights: Arrays) -> None:
        self.proto = proto
        self.weights = weights

    def write(self, folder: Path) -> None:
        """Write model.onnx and weights.bin. From files the runtime takes half the memory that it takes from arrays."""
        with (folder / WEIGHTS_FILE).open("wb") as stream:
            for tensor in self.proto.graph.initializer:
                if tensor.name in self.weights:
                    array = self.weights[tensor.name]
                    stream.write(bytes(-stream.tell() % PAGE))
                    tensor.ClearField("external_data")  # of an attempt before, on a disk that was full
                    place = {"location": WEIGHTS_FILE, "offset": stream.tell(), "length": array.nbytes}
                    for key, value in place.items():
                        tensor.external_data.add(key=key, value=str(value))
                    stream.write(array.data)
        (folder / MODEL_FILE).write_bytes(self.proto.SerializeToString())


class _Builder:
    def __init__(self, arch: Architecture, precision: str) -> None:
        self.arch, self.precision = arch, precision
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.weights: Arrays = {}

    def node(
        self, op: str, inputs: list[str], outputs: list[str], *, contrib: bool = False, **attributes: float
    ) -> str:
        node = helper.make_node(op, inputs, outputs, outputs[0], domain="com.microsoft" if contrib else "")
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self.nodes.append(node)
        return outputs[0]

    def constant(self, name: str, array: NDArray[np.generic]) -> str:
        array = np.ascontiguousarray(array)
        if array.nbytes <= INLINE_BYTES:
            self.initializers.append(numpy_helper.from_array(array, name))
            return name
        tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor.data_location = TensorProto.EXTERNAL
        self.initializers.append(tensor)
        self.weights[name] = array
        return name

    def quantised(self, name: str, matrix: NDArray[np.float32], bits: int) -> tuple[str, str]:
        """Store float32 [outputs, inputs] as blocks; return the names of values and scales."""
        blocks = quantise(matrix, bits)
        return self.constant(f"{name}.q{bits}", blocks.values), self.constant(f"{name}.scales", blocks.scales)

    def product(
        self, x: str, stored: tuple[str, str], shape: tuple[int, ...], bits: int, output: str, bias: str = ""
    ) -> str:
        """Multiply x with a stored quantised matrix of `shape` (outputs, inputs)."""
        inputs = [x, *stored, "", "", bias] if bias else [x, *stored]
        sizes = {"N": shape[0], "K": shape[1], "bits": bits, "block_size": BLOCK}
        return self.node("MatMulNBits", inputs, [output], contrib=True, accuracy_level=4, **sizes)

    def linear(self, name: str, x: str, matrix: NDArray[np.float32], bias: str = "", bits: int | None = None) -> str:
        """Multiply x with the transpose of float32 [outputs, inputs], and add the bias."""
        if self.precision == "fp32":
            product = self.node("MatMul", [x, self.constant(f"{name}.weight", matrix.T)], [f"{name}.out"])
            return self.node("Add", [product, bias], [f"{name}.biased"]) if bias else product
        bits = bits or BITS[self.precision]
        return self.product(x, self.quantised(name, matrix, bits), matrix.shape, bits, f"{name}.out", bias)

    def embedding(self, table: NDArray[np.float32]) -> tuple[str, Callable[[str], str]]:
        """Return the token embedding of `ids`, and a function that adds the LM head tied to it: one copy for both."""
        if self.precision == "fp32":
            name = self.constant("wte", table)
            return self.node("Gather", [name, "ids"], ["tokens"]), lambda x: self.node(
                "Gemm", [x, name], ["logits"], transB=1
            )
        stored = self.quantised("wte", table, HEAD_BITS)
        picked = self.node(
            "Cast", [self.node("Gather", [stored[0], "ids"], ["tokens.q"])], ["tokens.f"], to=TensorProto.FLOAT
        )
        zero = self.constant("zero_point", np.array(1 << (HEAD_BITS - 1), np.float32))
        centred = self.node("Sub", [picked, zero], ["tokens.c"])
        factor = self.node("Gather", [stored[1], "ids"], ["tokens.scales"])
        factor = self.node("Unsqueeze", [factor, self.constant("last_axis", np.array([-1]))], ["tokens.factor"])
        scaled = self.node("Mul", [centred, factor], ["tokens.scaled"])
        tokens = self.node("Reshape", [scaled, self.constant("embedding_shape", np.array([0, 0, -1]))], ["tokens"])
        if table.shape[1] % BLOCK:
            ends = [self.constant(n, np.array([v])) for n, v in (("from", 0), ("to", table.shape[1]), ("axis", 2))]
            tokens = self.node("Slice", [tokens, *ends], ["tokens.cut"])
        return tokens, lambda x: self.product(x, stored, table.shape, HEAD_BITS, "logits")


def _active(b: _Builder, h: str, x: str, matrix: NDArray[np.float32], bias: str) -> str:
    """Add the MLP's first product and its activation. gelu_new has an operator that takes the product's bias, too."""
    if b.arch.activation == "gelu_new":
        return b.node("FastGelu", [b.linear(f"{h}.up", x, matrix), bias], [f"{h}.active"], contrib=True)
    raised, active = b.linear(f"{h}.up", x, matrix, bias), [f"{h}.active"]
    match b.arch.activation:
        case "gelu":
            return b.node("Gelu", [raised], active, contrib=True)
        case "relu":
            return b.node("Relu", [raised], active)
        case "silu":
            return b.node("QuickGelu", [raised], active, contrib=True, alpha=1.0)
        case "quick_gelu":
            return b.node("QuickGelu", [raised], active, contrib=True, alpha=1.702)
        case "tanh":
            return b.node("Tanh", [raised], active)
        case "mish":
            bent = b.node("Tanh", [b.node("Softplus", [raised], [f"{h}.softplus"])], [f"{h}.bent"])
            return b.node("Mul", [raised, bent], active)
        case other:
            raise ValueError(f"no operator for the activation {other!r}")


def build(
    arch: Architecture, weights: Mapping[str, NDArray[np.float32]], precision: str, progress: Callable[[int, int], None]
) -> Graph:
    """Build the graph at `precision` ("fp32", "int8" or "int4"); `weights` gives float32 tensors by GPT-2's own names.

    `progress(done, total)` counts layers.
    """
    b = _Builder(arch, precision)
    total = arch.layers + 2

    def vector(name: str) -> str:
        return b.constant(name, weights[name])

    tokens, head = b.embedding(weights["wte.weight"])
    progress(1, total)
    places = b.node("Gather", [b.constant("wpe", weights["wpe.weight"]), "positions"], ["places"])
    hidden = b.node("Add", [tokens, places], ["embedded"])
    normed = b.node(
        "LayerNormalization",
        [hidden, vector("h.0.ln_1.weight"), vector("h.0.ln_1.bias")],
        ["h.0.normed"],
        axis=-1,
        epsilon=arch.epsilon,
    )
    for i in range(arch.layers):
        h = f"h.{i}"
        qkv = b.linear(f"{h}.qkv", normed, weights[f"{h}.attn.c_attn.weight"].T, vector(f"{h}.attn.c_attn.bias"))
        mixed = b.node(
            "GroupQueryAttention",
            [qkv, "", "", f"past_key_{i}", f"past_value_{i}", "seqlens", "total"],
            [f"{h}.mixed", f"present_key_{i}", f"present_value_{i}"],
            contrib=True,
            num_heads=arch.heads,
            kv_num_heads=arch.heads,
            do_rotary=0,
            scale=arch.score_factor(i),
        )
        projected = b.linear(f"{h}.proj", mixed, weights[f"{h}.attn.c_proj.weight"].T)
        # SkipLayerNormalization adds the projection, its bias and the residual, and gives both the sum and its norm.
        normed = b.node(
            "SkipLayerNormalization",
            [hidden, projected, vector(f"{h}.ln_2.weight"), vector(f"{h}.ln_2.bias"), vector(f"{h}.attn.c_proj.bias")],
            [f"{h}.normed_2", "", "", f"{h}.sum_1"],
            contrib=True,
            epsilon=arch.epsilon,
        )
        hidden = f"{h}.sum_1"
        active = _active(b, h, normed, weights[f"{h}.mlp.c_fc.weight"].T, vector(f"{h}.mlp.c_fc.bias"))
        down = b.linear(f"{h}.down", active, weights[f"{h}.mlp.c_proj.weight"].T)
        last = i + 1 == arch.layers
        norm = "ln_f" if last else f"h.{i + 1}.ln_1"
        normed = b.node(
            "SkipLayerNormalization",
            [hidden, down, vector(f"{norm}.weight"), vector(f"{norm}.bias"), vector(f"{h}.mlp.c_proj.bias")],
            [f"{h}.normed_3", "", "", f"{h}.sum_2"],
            contrib=True,
            epsilon=arch.epsilon,
        )
        hidden = f"{h}.sum_2"
        progress(i + 2, total)
    flat = b.node("Reshape", [normed, b.constant("flat", np.array([-1, arch.width]))], ["hidden"])
    picked = b.node("Gather", [flat, "wanted"], ["wanted_hidden"])
    if "lm_head.weight" in weights:
        b.node("Identity", [b.linear("lm_head", picked, weights["lm_head.weight"], bits=HEAD_BITS)], ["logits"])
    else:
        head(picked)
    progress(total, total)
    return Graph(_model(b), b.weights)


def _model(b: _Builder) -> ModelProto:
    arch = b.arch
    cache: list[str | int] = ["B", arch.heads, arch.context, arch.head]

    def value(name: str, kind: int, shape: list[str | int]) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    inputs = [
        value("ids", TensorProto.INT64, ["B", "S"]),
        value("positions", TensorProto.INT64, ["B", "S"]),
        value("seqlens", TensorProto.INT32, ["B"]),
        value("total", TensorProto.INT32, []),
        value("wanted", TensorProto.INT64, ["W"]),
    ]
    outputs = [
        value("logits", TensorProto.FLOAT, ["W", arch.vocabulary]),
        value("hidden", TensorProto.FLOAT, ["T", arch.width]),
    ]
    for i in range(arch.layers):
        for part in ("key", "value"):
            inputs.append(value(f"past_{part}_{i}", TensorProto.FLOAT, cache))
            outputs.append(value(f"present_{part}_{i}", TensorProto.FLOAT, cache))
    graph = helper.make_graph(b.nodes, "gpt2", inputs, outputs, b.initializers)
    # Opset 17 is the first with LayerNormalization, and came with version 8 of the format.
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="gpt2d")
