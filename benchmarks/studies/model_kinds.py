"""Tokens of every kind of model that vLLM's CPU build runs, under our scheduler's pauses and preemptions:

    python benchmarks/studies/model_kinds.py benchmarks/results/model_kinds.json [KIND ...]

A kind is a tiny configuration with random weights. Its answers to 50 prompts (greedy) from vLLM's own scheduler with
room for all are compared with ours in a KV cache of a few requests, with lengths predicted far too short. Half of the
prompts differ from another in their first token only: where their answers differ, tokens depend on all of the KV.
``stock_equal``, where not all are equal: the same for vLLM's own scheduler in the small cache; then the model's
arithmetic (bfloat16) depends on the batch, and ``near`` counts the answers each of whose tokens is within :data:`NEAR`
of the best when the whole answer is computed anew, in one piece. Every kind is a process of its own; an error is a row.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

PROMPTS: Final = 50
LENGTH: Final = 512
#: Log probability by which a token may be behind the best one; tokens of wrong KV are behind by several.
NEAR: Final = 0.5

BASE: Final[dict[str, Any]] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "float32",
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "attention_bias": False,
}
EXPERTS: Final[dict[str, Any]] = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
MLA: Final[dict[str, Any]] = {
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
}
MAMBA: Final[dict[str, Any]] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 64,
    "mamba_d_state": 32,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 64,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}


def _of(architecture: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": kind, **BASE, **fields}


#: Kind -> config.json.
KINDS: Final[dict[str, dict[str, Any]]] = {
    "Llama": _of("LlamaForCausalLM", "llama"),
    "Qwen3": _of("Qwen3ForCausalLM", "qwen3"),
    "Mixtral": _of("MixtralForCausalLM", "mixtral", **EXPERTS),
    "DeepSeek (MLA)": _of("DeepseekV2ForCausalLM", "deepseek_v2", **MLA, dtype="bfloat16"),
    "gpt-oss": _of(
        "GptOssForCausalLM",
        "gpt_oss",
        **EXPERTS | {"attention_bias": True},
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"],
        swiglu_limit=7.0,
    ),
    "Gemma 3": _of(
        "Gemma3ForCausalLM",
        "gemma3_text",
        num_hidden_layers=6,
        sliding_window=64,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
        query_pre_attn_scalar=64,
        hidden_activation="gelu_pytorch_tanh",
        rope_local_base_freq=10000.0,
    ),
    "Llama 4": _of(
        "Llama4ForCausalLM",
        "llama4_text",
        **EXPERTS | {"num_experts_per_tok": 1},
        num_hidden_layers=4,
        intermediate_size_mlp=128,
        interleave_moe_layer_step=1,
        attention_chunk_size=64,
        no_rope_layers=[1, 1, 1, 0],
        layer_types=["chunked_attention"] * 3 + ["full_attention"],
        use_qk_norm=True,
        attn_temperature_tuning=False,
    ),
    "Mistral with window": _of("MistralForCausalLM", "mistral", sliding_window=64),
    "Qwen3-Next": _of(
        "Qwen3NextForCausalLM",
        "qwen3_next",
        **EXPERTS,
        dtype="bfloat16",
        num_hidden_layers=4,
        layer_types=["linear_attention"] * 3 + ["full_attention"],
        full_attention_interval=4,
        head_dim=256,
        linear_num_value_heads=1,
        linear_num_key_heads=1,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        partial_rotary_factor=0.25,
    ),
    "Granite 4 (Mamba hybrid)": _of(
        "GraniteMoeHybridForCausalLM",
        "granitemoehybrid",
        **EXPERTS,
        **MAMBA,
        num_hidden_layers=4,
        layer_types=["mamba", "mamba", "mamba", "attention"],
        shared_intermediate_size=128,
        embedding_multiplier=1.0,
        logits_scaling=1.0,
        residual_multiplier=1.0,
        attention_multiplier=0.125,
        position_embedding_type="nope",
    ),
    "Nemotron-H (Mamba hybrid)": _of(
        "NemotronHForCausalLM",
        "nemotron_h",
        num_hidden_layers=4,
        hybrid_override_pattern="M-M*",
        mamba_num_heads=4,
        mamba_head_dim=64,
        ssm_state_size=32,
        n_groups=1,
        conv_kernel=4,
        expand=2,
        chunk_size=64,
        use_conv_bias=True,
        use_bias=False,
        mlp_bias=False,
        mlp_hidden_act="relu2",
        mamba_hidden_act="silu",
        layer_norm_epsilon=1e-5,
        residual_in_fp32=False,
        time_step_limit=[0.0, 1e9],
        time_step_min=0.001,
        time_step_max=0.1,
        time_step_floor=1e-4,
    ),
    "Falcon-H1 (Mamba beside attention)": _of(
        "FalconH1ForCausalLM",
        "falcon_h1",
        **MAMBA,
        mamba_d_ssm=256,
        mlp_bias=False,
        projectors_bias=False,
        mamba_rms_norm=False,
        mamba_norm_before_gate=True,
        mamba_use_mlp=True,
        mlp_multipliers=[1.0, 1.0],
        ssm_multipliers=[1.0] * 5,
    ),
    "Jamba (Mamba 1 hybrid)": _of(
        "JambaForCausalLM",
        "jamba",
        **EXPERTS,
        num_hidden_layers=4,
        attn_layer_period=4,
        attn_layer_offset=3,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=16,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_dt_rank=8,
        mamba_conv_bias=True,
        mamba_proj_bias=False,
    ),
    "LLaVA (images)": {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": "float32",
        "text_config": _of("LlamaForCausalLM", "llama", vocab_size=4608),
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 128,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "projection_dim": 128,
        },
        "image_token_index": 4096,
        "image_seq_length": 16,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
    },
}

ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}


def draw_weights(model: Any) -> None:
    """Random weights with which a token depends on all before it; vLLM's own dummies are so small that none does."""
    import torch

    chance = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if not torch.is_floating_point(weight):
            continue
        drawn = torch.randn(weight.shape, generator=chance)
        if name.endswith(".A"):
            drawn = -0.5 - drawn.abs()  # states decay
        elif "norm" in name or name.endswith(".D"):
            drawn = 1.0 + 0.1 * drawn
        elif weight.dim() < 2:
            drawn = 0.1 * drawn
        else:
            # Less where numbers are coarse: there, what is a little off must stay a little off.
            gain = 1.5 if weight.dtype == torch.float32 else 0.8
            drawn = gain / math.sqrt(weight.shape[-1]) * drawn
        weight.data.copy_(drawn)


def has_prefix_caching(kind: str) -> bool:
    """As by default; vLLM's CPU kernel of Mamba 2 fails with it, under vLLM's own scheduler too."""
    return "Mamba" not in kind


def make_folder(kind: str, folder: Path) -> Path:
    """The folder of a kind: its config.json, and what its processor of images needs."""
    config = KINDS[kind]
    if "vision_config" in config:
        from transformers import AutoTokenizer, CLIPImageProcessor, LlavaProcessor

        sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
        from tiny_model import make_tiny_model

        make_tiny_model(folder)
        (folder / "model.safetensors").unlink()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        size = config["vision_config"]["image_size"]
        images = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        LlavaProcessor(
            images,
            tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            image_token="<image>",
            num_additional_image_tokens=1,
        ).save_pretrained(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def prompts(kind: str, count: int = PROMPTS) -> list[dict[str, Any]]:
    """Pairs that differ in their first token only; of a model of images, every one has one."""
    chance = random.Random(7)
    out: list[dict[str, Any]] = []
    for i in range(count // 2):
        ids = [chance.randrange(3, 500) for _ in range(chance.randint(5, 150))]
        for first in (ids[0], 3 + (ids[0] + 1) % 490):
            prompt: dict[str, Any] = {"prompt_token_ids": [first, *ids[1:]]}
            if "vision_config" in KINDS[kind]:
                from PIL import Image

                prompt["prompt_token_ids"].append(4096)
                prompt["multi_modal_data"] = {"image": Image.new("RGB", (56, 56), (37 * i % 256, first % 256, 99))}
            out.append(prompt)
    return out


def generate(
    folder: Path,
    kind: str,
    blocks: int | None,
    paused_share: float | None,
    prefix_caching: bool,
    count: int = PROMPTS,
    judge: list[list[tuple[int, ...]]] | None = None,
) -> tuple[list[Any], Any, int]:
    """Tokens of every answer, the scheduler's counters, and blocks of a request as long as can be.

    ``paused_share``: of our scheduler; None: vLLM's own.

    With ``judge``, lists of answers, nothing is generated: instead of tokens, the near ones of each list are counted.
    """
    import gc

    from vllm import LLM, SamplingParams
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader
    from vllm.model_executor.models import registry

    from ecoserve.lengths import LengthDistribution
    from ecoserve.serving.adapter.kv_layout import KVLayout
    from ecoserve.serving.core import keys

    DummyModelLoader.load_weights = lambda self, model, config: draw_weights(model)  # type: ignore[method-assign]
    # vLLM looks at each model class in a process of its own, which imports all of vLLM once more.
    registry._run_in_subprocess = lambda look: look()
    settings = {"epsilon": 0.5, "paused_share": paused_share, "check_every_step": True}
    name = "adapter.scheduler.EcoServeScheduler" if paused_share is not None else "adapter.counting.CountingScheduler"
    engine = LLM(
        model=str(folder),
        load_format="dummy",
        skip_tokenizer_init="vision_config" not in KINDS[kind],
        enforce_eager=True,
        dtype=KINDS[kind]["dtype"],
        max_model_len=LENGTH,
        max_num_seqs=32,
        max_num_batched_tokens=128,
        distributed_executor_backend="uni",
        num_gpu_blocks_override=blocks or 2000,
        block_size=32,
        enable_prefix_caching=prefix_caching,
        limit_mm_per_prompt={"image": 1} if "vision_config" in KINDS[kind] else None,
        scheduler_cls=f"ecoserve.serving.{name}",
        additional_config={"ecoserve": settings} if paused_share is not None else {},
    )
    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    chance = random.Random(8)
    short = {keys.LENGTHS: LengthDistribution.lognormal(4, 0.1, LENGTH).to_wire()}
    params = [
        SamplingParams(
            max_tokens=chance.randint(30, 120), ignore_eos=True, temperature=0.0, detokenize=False, extra_args=short
        )
        for _ in range(count)
    ]
    asked = prompts(kind, count)
    answers: list[Any] = []
    for judged in judge or ():
        whole = [{**p, "prompt_token_ids": [*p["prompt_token_ids"], *a]} for p, a in zip(asked, judged, strict=True)]
        once = SamplingParams(max_tokens=1, prompt_logprobs=1, temperature=0.0, detokenize=False)
        seen = engine.generate(whole, once, use_tqdm=False)
        answers.append(sum(_near(o, len(a)) for o, a in zip(seen, judged, strict=True)))
    if judge is None:
        outputs = engine.generate(asked, params, use_tqdm=False)
        answers = [tuple(o.outputs[0].token_ids) for o in outputs]
    layout = KVLayout(
        scheduler.vllm_config, scheduler.kv_cache_config, scheduler.kv_cache_manager.coordinator.single_type_managers
    )
    counters, most = scheduler.counters, layout.kv_use.prompt_blocks(LENGTH)
    assert scheduler.free_blocks == scheduler.usable_blocks, "blocks are missing"
    engine.llm_engine.engine_core.shutdown()
    del engine, scheduler
    gc.collect()
    return answers, counters, most


def _near(output: Any, tokens: int) -> bool:
    """Whether none of the last ``tokens`` tokens of a prompt is far behind the best."""
    ids, scores = output.prompt_token_ids[-tokens:], output.prompt_logprobs[-tokens:]
    return all(max(s.logprob for s in at.values()) - at[i].logprob < NEAR for i, at in zip(ids, scores, strict=True))


def compare(kind: str, prefix_caching: bool, folder: Path, count: int = PROMPTS) -> dict[str, Any]:
    """One row of the table."""
    reference, _, most = generate(folder, kind, None, None, prefix_caching, count)
    blocks = max(16, most + most // 10 + 1)
    # What gives way is paused, as far as that goes, and preempted.
    ours, paused, _ = generate(folder, kind, blocks, 1.0, prefix_caching, count)
    also, dropped, _ = generate(folder, kind, blocks, 0.0, prefix_caching, count)

    def equal(answers: list[tuple[int, ...]]) -> int:
        return sum(a == b for a, b in zip(answers, reference, strict=True))

    pairs = list(zip(reference[::2], reference[1::2], strict=True))
    row: dict[str, Any] = {
        "kind": kind,
        "prefix_caching": prefix_caching,
        "dtype": KINDS[kind]["dtype"],
        "ran": True,
        "prompts": count,
        "equal": min(equal(ours), equal(also)),
        "pauses": paused.pauses,
        "preemptions": paused.preemptions + dropped.preemptions,
        "preemptions_by_vllm": sum(c.preemptions - c.shortage_preemptions for c in (paused, dropped)),
        "blocks": blocks,
        "pairs": len(pairs),
        "pairs_that_differ": sum(a[: len(b)] != b[: len(a)] for a, b in pairs),
    }
    if row["equal"] < count:
        stock, counters, _ = generate(folder, kind, blocks, None, prefix_caching, count)
        row |= {"stock_equal": equal(stock), "stock_preemptions": counters.preemptions}
        # Shuffled: what tokens of other KV would count.
        judge = [ours, stock, [a[: len(b)] + b[len(a) :] for a, b in zip(ours[1:] + ours[:1], ours, strict=True)]]
        near, *_ = generate(folder, kind, None, None, False, count, judge)
        row |= dict(zip(("near", "stock_near", "shuffled_near"), near, strict=True))
    return row


def main() -> None:
    out, *kinds = sys.argv[1:]
    if out == "--one":
        with tempfile.TemporaryDirectory() as scratch:
            folder = make_folder(kinds[0], Path(scratch) / "model")
            print("ROW" + json.dumps(compare(kinds[0], has_prefix_caching(kinds[0]), folder)), flush=True)
        return
    before = json.loads(Path(out).read_text()) if Path(out).exists() else []
    known = {row["kind"]: row for row in before}
    for kind in kinds or KINDS:
        run = [sys.executable, __file__, "--one", kind]
        done = subprocess.run(run, env={**ENVIRONMENT, **os.environ}, capture_output=True, text=True, check=False)
        rows = [json.loads(line[3:]) for line in done.stdout.splitlines() if line.startswith("ROW")]
        errors = [line for line in done.stderr.splitlines() if "Error" in line] or ["?"]
        known[kind] = rows[0] if rows else {"kind": kind, "ran": False, "why": errors[-1].strip()[:160]}
        print(known[kind], flush=True)
        Path(out).write_text(json.dumps(list(known.values()), indent=1) + "\n")


if __name__ == "__main__":
    main()
