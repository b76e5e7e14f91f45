"""The plan's counts against hand counts, the paper's table and the placements themselves; its answer for every recipe."""

import functools
import importlib
import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import build
from diffusion_jax.errors import UserError
from diffusion_jax.models.layers import ResBlock
from diffusion_jax.plan import chips, estimate, flops, hlo, layout, recipe, report
from diffusion_jax.plan.estimate import Mesh, Program
from diffusion_jax.training.placement import make_placement

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("families", "__init__"))
V5E = chips.CHIPS["v5e"]


@functools.cache
def unchanged(name):
    return recipe.recipe(importlib.import_module(f"configs.{name}").get_config())


def planned(name, variant="", **groups):
    if not (variant or groups):
        return unchanged(name)  # tracing one takes seconds
    config = importlib.import_module(f"configs.{name}").get_config(*([variant] if variant else []))
    for group, fields in groups.items():
        config[group].update(fields)
    return recipe.recipe(config)


def refused(gigabytes):
    text = f"the total memory required for HLO temporaries ({gigabytes:.2f}G) exceeds available HBM (15.75G)"
    return Program(text, 0, 0, 0, 0, 0.0, 0, {}, 1.0)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "diffusion_jax.plan", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "XLA_FLAGS"},
    )


def test_the_planned_network_calls_the_chip_s_own_kernels_and_the_counted_one_none():
    config = planned(
        "scenes", "debug", model={"patch_size": 1, "attention_resolutions": (32,), "condition": "none"}
    ).config
    calls = {}
    for platform in (None, "cpu", "tpu"):
        plan = recipe.recipe(config, platform)
        calls[platform] = "pallas_call" in str(
            jax.make_jaxpr(lambda *a, s=plan.step: s(*a, None))(plan.state, plan.batch)
        )
    assert calls == {None: False, "cpu": False, "tpu": True}
    config.model.attention = "flash"
    assert recipe.recipe(config).config.model.attention == "flash", "counting it changes no field"


# Operations.


def conv(x, kernel, stride):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_gradient_count_as_by_hand(stride):
    x, kernel = jnp.zeros((2, 16, 16, 8)), jnp.zeros((3, 3, 8, 12))
    by_hand = 2 * 2 * (16 // stride) ** 2 * 12 * 9 * 8
    assert flops.count(functools.partial(conv, stride=stride), x, kernel) == by_hand
    both = jax.grad(lambda x, kernel: (conv(x, kernel, stride) ** 2).sum(), (0, 1))
    assert flops.count(both, x, kernel) == 3 * by_hand


def test_products_count_as_by_hand_in_batches_loops_branches_and_remat():
    a, b = jnp.zeros((5, 3, 4)), jnp.zeros((5, 4, 6))
    one = 2 * 5 * 3 * 4 * 6
    assert flops.count(jnp.matmul, a, b) == one
    loop = lambda a, b: jax.lax.scan(lambda c, _: (c + (a @ b).sum(), None), 0.0, None, length=7)[0]  # noqa: E731
    assert flops.count(loop, a, b) == 7 * one
    branch = lambda a, b: jax.lax.cond(a.sum() > 0, lambda: a @ b, lambda: (a @ b) + (a @ b))  # noqa: E731
    assert flops.count(branch, a, b) == 2 * one
    deep = lambda a, b: jnp.sin(jnp.sin(a @ b) @ jnp.ones((6, 6))).sum()  # noqa: E731
    again = flops.count(jax.grad(jax.checkpoint(deep)), a, b) - flops.count(jax.grad(deep), a, b)
    assert again == one + 2 * 5 * 3 * 6 * 6


# Theoretical images per second of a V100 of 120 TFLOP/s, to three or four digits. Source: Dhariwal and Nichol 2021, table 7.
@pytest.mark.parametrize("name, images_per_second", [("adm_64_cond", 182.3), ("adm_128_cond", 65.2)])
def test_adm_has_the_operations_that_its_paper_tells(name, images_per_second):
    assert 120e12 / recipe.image_flops(planned(name)) == pytest.approx(images_per_second, rel=1e-3)


def test_a_step_in_pieces_has_the_operations_of_the_whole_one():
    whole, pieces = planned("scenes", "debug"), planned("scenes", "debug", train={"accumulation": 2})
    assert recipe.step_flops(whole) == recipe.step_flops(pieces)
    # Three forward passes, but for the gradient with respect to the picture, which nobody asks for.
    assert 0.97 < recipe.step_flops(whole) / whole.config.train.batch_size / recipe.image_flops(whole) < 1


# Exchanges.

HLO = """
%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter (input: f32[64]) -> f32[16] {
  %all-reduce.2 = f32[64]{0} all-reduce(%input), replica_groups={{0,1,2,3}}, to_apply=%add, backend_config={"estimated_cycles":"7"}
  ROOT %slice = f32[16]{0} dynamic-slice(%all-reduce.2, %i)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %ag = (bf16[8]{0}, bf16[32]{0}) all-gather-start(%q), replica_groups=[2,4]<=[8], backend_config={"estimated_cycles":"10"}
  %done = bf16[32]{0} all-gather-done(%ag)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %ar = (f32[10]{0}, f32[2,3]{1,0}) all-reduce(%a, %b), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
  %rs = f32[4]{0} reduce-scatter(%c), replica_groups={{0,1},{2,3}}, to_apply=%add
  %w = (s32[], f32[8]) while(%t), condition=%condition, body=%body
  %f = f32[16]{0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter, backend_config={"estimated_cycles":"100"}
  %cp = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(%d), source_target_pairs={{0,1}}
}
"""


def test_exchanges_are_read_with_their_sizes_groups_and_loops():
    found = hlo.collectives(HLO)
    assert found["all-reduce"] == (1, 64, 2 * 64 * 3 / 4)
    assert found["all-gather"] == (5, 5 * 64, 5 * 64 * 3 / 4)
    assert found["reduce-scatter"] == (2, 32 + 256, 32 / 2 + 256 * 3 / 4)
    assert found["collective-permute"] == (1, 24, 24)
    assert "all-to-all" not in found


def test_an_exchange_beside_products_is_written_in_each_of_their_fusions_and_counts_once():
    gather = (
        '%g = bf16[32]{0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="7"}'
    )
    other = gather.replace(', frontend_attributes={chain_id="7"}', "")  # the channel alone is no name: psums share one
    fusions = "".join(f"%piece.{i} (p: bf16[8]) -> bf16[32] {{\n  {gather}\n}}\n\n" for i in range(3))
    calls = "".join(f"  %f{i} = bf16[32]{{0}} fusion(%a), kind=kCustom, calls=%piece.{i}\n" for i in range(3))
    found = hlo.collectives(f"{fusions}ENTRY %main (a: bf16[8]) -> bf16[32] {{\n{calls}  {other}\n}}\n")
    assert found == {"all-gather": (2, 128, 2 * 64 * 3 / 4)}


def test_the_compilers_cycles_are_summed_with_their_loops():
    assert hlo.cycles(HLO) == 5 * 10 + 100


def test_a_pmapped_step_sums_each_gradient_once_and_each_chip_holds_the_whole_state():
    plan = planned("swiss_roll", "debug")
    mesh = estimate.mesh(plan, "pmap", 8)
    program = estimate.compile_step(plan, "pmap", mesh, jax.devices())
    assert set(program.collectives) == {"all-reduce"}
    assert (
        0 <= program.collectives["all-reduce"].bytes - 4 * plan.num_params < 100
    )  # the loss and its quarters beside them
    batch = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in plan.batch.values())
    assert program.arguments == sum(estimate.state_bytes(plan, mesh).values()) + batch // 8


@pytest.mark.parametrize("resample", ["up", "down", None])
def test_a_sharded_block_sends_parameters_and_gradients_alone(resample):
    block = ResBlock(64, adaptive_norm=True, dropout=0.0, norm_groups=32, dtype=jnp.float32, resample=resample)
    batch = {"x": jax.ShapeDtypeStruct((64, 8, 8, 64), jnp.float32), "emb": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
    params = jax.eval_shape(lambda: block.init(jax.random.key(0), jnp.zeros((1, 8, 8, 64)), jnp.zeros((1, 64)), None))

    def step(params, batch, axis_name):
        loss = lambda params: (block.apply(params, batch["x"], batch["emb"], None) ** 2).sum()  # noqa: E731
        return jax.tree.map(jnp.subtract, params, jax.grad(loss)(params)), {}

    found = hlo.collectives(make_placement("sharded").lower_train(step, params, batch).compile().as_text())
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    # Gathered for the way there and for the way back, or summed; the batch is four times as large as the parameters.
    assert all(total.bytes <= 2 * size for total in found.values()), found


def test_a_program_without_text_still_has_its_memory(monkeypatch):
    def fails(compiled):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure: async-update instruction should have 1 operands")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", fails)
    plan = planned("swiss_roll", "debug")
    mesh = estimate.mesh(plan, "pmap", 8)
    program = estimate.compile_step(plan, "pmap", mesh, jax.devices())
    assert program.peak > 0 and program.collectives is None
    told = report.text(report.of(plan, V5E, "pmap", mesh, program, report.Work(1, 1)), plan.config)
    assert "exchanges    unknown" in told and "step         at least" in told


# Memory.


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2), (8, 1, 1)])
def test_the_states_size_is_what_the_placement_makes_it(shape):
    plan = planned("scenes", parallel={"placement": "sharded", "mesh": shape})
    places = build.placement(plan.config).shardings(plan.state)
    sizes = jax.tree.map(lambda x, place: math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize, plan.state, places)
    assert sum(estimate.state_bytes(plan, Mesh(*shape)).values()) == sum(jax.tree.leaves(sizes))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_an_answer(name):
    plan = planned(name)
    whole = estimate.state_bytes(plan, Mesh(1, 1, 1))
    assert whole["parameters"] == whole["EMA"] == 4 * plan.num_params
    better, least = estimate.smallest(plan, 64)
    assert least < 0.75 * sum(whole.values()) or plan.num_params < 1e6  # a toy's arrays are too small to be split
    figures = report.of(plan, V5E, "sharded", better, None, report.Work(0, 0))
    assert figures["fits"] is None
    assert report.text(figures, plan.config)


def test_a_state_that_is_too_large_is_refused_with_the_mesh_that_holds_it():
    plan = planned("glide_paper_base")
    mesh = estimate.mesh(plan, "pmap", 256)
    figures = report.of(plan, V5E, "pmap", mesh, None, report.Work(0, 0))
    assert figures["fits"] is False
    assert "52.96 GiB of 15.75 GiB" in report.text(figures, plan.config)
    better, least = estimate.smallest(plan, 256)
    assert f"config.parallel.mesh={','.join(map(str, better))} leaves" in figures["advice"][0]
    assert least < 0.01 * sum(figures["state"].values())


def test_a_state_too_large_for_all_chips_wants_more_of_them():
    plan = planned("glide_paper_base")
    assert "fills 4 of these" in report.advice(plan, V5E, Mesh(1, 2, 1), None)[-1]


def test_a_program_that_was_refused_is_told_pieces_that_would_fit():
    plan = planned("adm_64_cond")
    told = report.advice(plan, V5E, Mesh(256, 1, 1), refused(30))
    # 4.4 of 15.75 GiB are the state's: 30 / 4 = 7.5 is the first division of 8 images by which 30 fits beside it.
    assert any("accumulation=4: 2 images at a time" in line for line in told)
    assert any("remat" in line for line in told)
    assert any("bfloat16" in line for line in told)
    assert not report.advice(plan, V5E, Mesh(256, 1, 1), None)


def test_the_least_time_is_the_longest_part_and_shares_are_of_the_models_own_operations():
    plan = planned("swiss_roll", "debug")
    exchange = {"all-reduce": hlo.Collective(1, 1e9, 2e9)}
    program = Program("", 0, 0, 0, 1, 8.19e9, 0, exchange, 1.0)
    figures = report.of(plan, V5E, "pmap", Mesh(4, 1, 1), program, report.Work(int(1e12), int(16e12)))
    parts = [16e12 / 4 / 197e12, 0.01, 2e9 / 200e9]
    time = figures["time"]
    np.testing.assert_allclose([time["products"], time["HBM"], time["links"]], parts)
    np.testing.assert_allclose([time["best"], time["worst"]], [max(parts), sum(parts)])
    np.testing.assert_allclose(time["share_best"], 8e12 / 16e12 * parts[0] / max(parts))


# The command.


@pytest.mark.parametrize(
    "topology, said", [("v9:2x2", "v5e"), ("v5e:256", "v5e:16x16"), ("v4:4x4", "v4:4x4x8"), ("v5e:4xfour", "v5e:16x16")]
)
def test_an_unknown_topology_is_told_what_there_is(topology, said):
    with pytest.raises(UserError, match=said):
        chips.parse(topology)


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"\[plan\]"):
        chips.devices("v5e:2x2")


def test_a_batch_that_the_chips_cannot_share_is_refused():
    plan = planned("swiss_roll", "debug")
    with pytest.raises(UserError, match="multiple of 256"):
        estimate.mesh(plan, "pmap", 256)


def test_the_command_tells_both_placements_without_compiling(tmp_path):
    arguments = (
        "--config=configs/glide_paper_base.py",
        "--topology=v5e:16x16",
        "--placement=pmap,sharded",
        "--nocompile",
    )
    out = command(*arguments, f"--json={tmp_path / 'plan.json'}")
    assert out.returncode == 0, out.stderr
    assert "placement pmap (data 256 x fsdp 1 x tensor 1): does NOT fit" in out.stdout
    assert [p["fits"] for p in json.loads((tmp_path / "plan.json").read_text())["placements"]] == [False, None]


def test_the_layout_of_the_memory_is_read_from_a_dump(tmp_path):
    step, small = "module_0000.jit_train_step.cl_1", "module_0001.jit_add.cpu"
    (tmp_path / f"{step}.after_optimizations-memory-usage-report.txt").write_text(
        "Memory Space: default (color=0)\nTotal bytes: 1696 (1.7KiB)\n\nMemory Space: smem (color=2)\nTotal bytes: 512\n"
    )
    (tmp_path / f"{step}.after_optimizations-buffer-assignment.txt").write_text(
        "allocation 0: size 512, page 0, parameter 0, shape |f32[128]| at ShapeIndex {0}, maybe-live-out:\n"
        "allocation 1: size 160, page 0, parameter 0, shape |f32[40]| at ShapeIndex {1}:\n"
        "allocation 2: size 1024, page 0, preallocated-temp:\n"
        "allocation 3: size 99, color 3, page 0, preallocated-temp:\n"
    )
    (tmp_path / f"{step}.after_optimizations.txt").write_text(HLO)
    (tmp_path / f"{small}_after_optimizations.txt").write_text("of another device\n" * 1000)
    program = layout.read(tmp_path, 3.0)
    assert (program.arguments, program.temporaries, program.peak, program.code) == (672, 1024, 1696, None)
    assert program.collectives == hlo.collectives(HLO)
    plan, mesh = planned("swiss_roll", "debug"), Mesh(8, 1, 1)
    told = report.text(report.of(plan, V5E, "pmap", mesh, program, report.Work(1, 1)), plan.config)
    assert "1.66 KiB of 15.75 GiB; laid out in 3 s" in told and "program not written" in told and "HBM unknown" in told


def test_a_layout_of_local_devices_is_refused_in_one_line():
    out = command("--config=configs/swiss_roll.py:debug", "--topology=local", "--memory_only")
    assert out.returncode == 2
    assert out.stderr.startswith("error: --memory_only") and len(out.stderr.splitlines()) == 1


def test_an_unknown_placement_is_refused_in_one_line():
    out = command("--config=configs/swiss_roll.py:debug", "--topology=v5e:2x2", "--placement=shardde")
    assert out.returncode == 2
    assert out.stderr.startswith("error: ") and "sharded" in out.stderr and len(out.stderr.splitlines()) == 1


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="compiles for a TPU: pip install -e '.[plan]'")
def test_the_command_compiles_for_chips_that_are_not_there(tmp_path):
    path = tmp_path / "plan.json"
    out = command("--config=configs/swiss_roll.py:debug", "--topology=v5e:2x2", f"--json={path}")
    assert out.returncode == 0, out.stderr
    (figures,) = json.loads(path.read_text())["placements"]
    assert figures["fits"]
    assert 0 < figures["compiled"]["peak"] < figures["hbm"]
    assert figures["compiled"]["collectives"]["all-reduce"]["calls"] >= 1
    assert figures["time"]["compiler"] > 0
    out = command("--config=configs/swiss_roll.py:debug", "--topology=v5e:2x2", "--memory_only", f"--json={path}")
    assert out.returncode == 0, out.stderr
    (laid_out,) = json.loads(path.read_text())["placements"]
    assert laid_out["compiled"]["collectives"] == figures["compiled"]["collectives"]
    assert laid_out["compiled"]["arguments"] == figures["compiled"]["arguments"]
