"""Peer in a process of its own, for scripts.bench.peers: reads a line of JSON for each run, answers with a line.

`Engine = (prompts, new tokens) -> (prefill seconds, decode seconds)`: all prompts together, greedy, end of text
ignored. It imports nothing of gpt2d, since each peer may live in an environment of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Prompts = list[list[int]]
Engine = Callable[[Prompts, int], tuple[float, float]]
CONTEXT = 1024
SEQUENCES = 16
"""Most of them together: those of peers.py's SHAPES."""
GGML_ERROR = 4
"""Level of llama.cpp's messages that are printed."""
KEPT: list[object] = []
"""Functions of which C has no more than the address."""


def in_two_parts(timed: Callable[[int], float], new_tokens: int) -> tuple[float, float]:
    """Time what cannot be stopped between prefill and decode: one token, and how much longer more take."""
    prefill = timed(1)
    return prefill, timed(new_tokens) - prefill if new_tokens > 1 else 0.0


def llama(folder: Path, built: Path, precision: str, threads: int) -> Engine:
    import llama_cpp as c

    def say(level: int, text: bytes, _data: object) -> None:
        if level == GGML_ERROR:
            sys.stderr.write(text.decode(errors="replace"))

    log = c.llama_log_callback(say)
    KEPT.append(log)
    c.llama_log_set(log, None)
    c.llama_backend_init()
    print(f"llama.cpp uses {c.llama_print_system_info().decode()}", file=sys.stderr, flush=True)
    kinds = {"q8_0": c.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": c.LLAMA_FTYPE_MOSTLY_Q4_0, "f16": c.LLAMA_FTYPE_MOSTLY_F16}
    plain, file = built / "llama.cpp-f32.gguf", built / f"llama.cpp-{precision}.gguf"
    if not file.exists():
        if not plain.exists():
            write_gguf(folder, plain)
        parameters = c.llama_model_quantize_default_params()
        parameters.ftype = kinds[precision]
        if c.llama_model_quantize(str(plain).encode(), str(file).encode(), ctypes.byref(parameters)):
            raise RuntimeError(f"llama.cpp could not quantise {plain}")
    model = c.llama_model_load_from_file(str(file).encode(), c.llama_model_default_params())
    settings = c.llama_context_default_params()
    settings.n_ctx = SEQUENCES * CONTEXT
    settings.n_batch = 4096
    settings.n_ubatch = 512
    settings.n_seq_max = SEQUENCES
    settings.n_threads = settings.n_threads_batch = threads
    if hasattr(settings, "flash_attn_type"):
        settings.flash_attn_type = 1
    else:
        settings.flash_attn = True
    context = c.llama_init_from_model(model, settings)
    vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    batch = c.llama_batch_init(4096, 0, 1)

    def run(tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        """Return the likeliest token after each that is wanted, of (token, position, sequence, wanted) each."""
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.logits[i] = wanted
            batch.seq_id[i][0] = sequence
        if c.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        found = [
            np.ctypeslib.as_array(c.llama_get_logits_ith(context, i), (vocabulary,))  # [vocabulary]
            for i, t in enumerate(tokens)
            if t[3]
        ]
        return [int(logits.argmax()) for logits in found]

    def engine(prompts: Prompts, new_tokens: int) -> tuple[float, float]:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        began = time.perf_counter()
        tokens = run([(t, p, s, p == len(ids) - 1) for s, ids in enumerate(prompts) for p, t in enumerate(ids)])
        middle, length = time.perf_counter(), len(prompts[0])
        for i in range(new_tokens - 1):
            tokens = run([(t, length + i, s, True) for s, t in enumerate(tokens)])
        return middle - began, time.perf_counter() - middle

    return engine


def write_gguf(folder: Path, file: Path) -> None:
    """Write a model as GGUF; the names are those of llama.cpp's conversion of GPT-2."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    tensors = {
        name.removeprefix("transformer."): t.astype(np.float32)
        for name, t in load_file(folder / "model.safetensors").items()
    }
    writer = gguf.GGUFWriter(file, "gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    words, merges = read_tokenizer(folder)
    words += [f"<unused{i}>" for i in range(len(words), config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(words))
    writer.add_token_merges(merges)
    names = {
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }
    writer.add_tensor("token_embd.weight", tensors["wte.weight"])
    writer.add_tensor("position_embd.weight", tensors["wpe.weight"])
    for i in range(config["n_layer"]):
        for ours, theirs in names.items():
            weight = tensors[f"h.{i}.{ours}.weight"]
            writer.add_tensor(f"blk.{i}.{theirs}.weight", np.ascontiguousarray(weight.T))
            writer.add_tensor(f"blk.{i}.{theirs}.bias", tensors[f"h.{i}.{ours}.bias"])
    for part in ("weight", "bias"):
        writer.add_tensor(f"output_norm.{part}", tensors[f"ln_f.{part}"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_tokenizer(folder: Path) -> tuple[list[str], list[str]]:
    """Return the tokens in the order of their numbers, and the merges, from either of the two forms that GPT-2 has."""
    if (folder / "tokenizer.json").exists():
        model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        numbers, merges = model["vocab"], [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    else:
        numbers = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [line for line in lines if line and not line.startswith("#version")]
    return sorted(numbers, key=numbers.__getitem__), merges


def openvino(_folder: Path, built: Path, precision: str, threads: int) -> Engine:
    import openvino as ov
    import openvino_genai as genai

    options = {"INFERENCE_NUM_THREADS": threads} | ({"INFERENCE_PRECISION_HINT": "f32"} if precision == "fp32" else {})
    pipeline = genai.LLMPipeline(str(built / f"openvino-{precision}"), "CPU", **options)

    def engine(prompts: Prompts, new_tokens: int) -> tuple[float, float]:
        ids = np.array(prompts, np.int64)  # [prompts, tokens]

        def timed(count: int) -> float:
            config = genai.GenerationConfig(
                max_new_tokens=count, min_new_tokens=count, ignore_eos=True, do_sample=False
            )
            began = time.perf_counter()
            pipeline.generate(genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids))), config)
            return time.perf_counter() - began

        return in_two_parts(timed, new_tokens)

    return engine


def ctranslate2(_folder: Path, built: Path, precision: str, threads: int) -> Engine:
    import ctranslate2 as ct

    kind = "int8_float32" if precision == "int8" else "float32"
    generator = ct.Generator(
        str(built / f"ctranslate2-{precision}"), device="cpu", compute_type=kind, inter_threads=1, intra_threads=threads
    )
    words = json.loads((built / f"ctranslate2-{precision}" / "vocabulary.json").read_text())

    def engine(prompts: Prompts, new_tokens: int) -> tuple[float, float]:
        tokens = [[words[t] for t in ids] for ids in prompts]

        def timed(count: int) -> float:
            began = time.perf_counter()
            generator.generate_batch(
                tokens,
                max_length=count,
                min_length=count,
                sampling_topk=1,
                include_prompt_in_result=False,
                end_token=[],
                max_batch_size=0,
            )
            return time.perf_counter() - began

        return in_two_parts(timed, new_tokens)

    return engine


ENGINES = {"llama.cpp": llama, "openvino": openvino, "ctranslate2": ctranslate2}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not an answer
    order = json.loads(sys.argv[1])
    vocabulary = order["vocabulary"]
    began = time.perf_counter()
    engine = ENGINES[order["engine"]](Path(order["folder"]), Path(order["built"]), order["precision"], order["threads"])
    print(json.dumps({"load_s": time.perf_counter() - began}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        prompts = (
            np.random.default_rng(order["seed"])
            .integers(0, vocabulary, (order["batch"], order["prompt_tokens"]))
            .tolist()
        )
        prefill_s, decode_s = engine(prompts, order["new_tokens"])
        print(json.dumps({"prefill_s": prefill_s, "decode_s": decode_s}), file=answers, flush=True)


if __name__ == "__main__":
    main()
