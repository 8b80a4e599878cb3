"""The compile report: what is read of a compiler's text, its table, and what it refuses."""

import csv
import re
import types
from importlib.util import find_spec
from pathlib import Path

from common import flop

import forked
import jax
import pytest
from compilation import programs, reading, targets

from selfens_jax import models

ROOT = Path(__file__).parents[1]
# A loop over blocks in which two kernels run once, one four times and one in a loop of its own.
PROGRAM = """\
HloModule jit_on_device

%fused (p: f32[4,2]) -> f32[4,2] {
  %p = f32[4,2]{1,0} parameter(0)
  ROOT %inside = f32[4,2]{1,0} multiply(%p, %p)
}

%inner_body (a: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %a = (s32[], f32[4,2]{1,0}) parameter(0)
  %v = f32[4,2]{1,0} get-tuple-element(%a), index=1
  ROOT %deep = f32[4,2]{1,0:T(8,128)} fusion(%v), kind=kLoop, calls=%fused, @100
}

%inner_condition (a: (s32[], f32[4,2])) -> pred[] {
  %a = (s32[], f32[4,2]{1,0}) parameter(0)
  %four = s32[] constant(4)
  %i = s32[] get-tuple-element(%a), index=0
  ROOT %less = pred[] compare(%i, %four), direction=LT
}

%body (b: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %b = (s32[], f32[4,2]{1,0}) parameter(0)
  %w = f32[4,2]{1,0} get-tuple-element(%b), index=1
  %one = bf16[4,2]{1,0} fusion(%w), kind=kLoop, calls=%fused, @1000
  %two = (f32[4]{0}, u8[10]{0}) custom-call(%one, %w), custom_call_target="conv"
  %all = f32[4]{0} all-reduce(%x), replica_groups={}, to_apply=%add
  %loop = (s32[], f32[4,2]{1,0}) while(%b), condition=%inner_condition, body=%inner_body
  ROOT %t = (s32[], f32[4,2]{1,0}) tuple(%i, %w)
}

%condition (b: (s32[], f32[4,2])) -> pred[] {
  %b = (s32[], f32[4,2]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%b), index=0
  ROOT %more = pred[] compare(%n, %n), direction=LT
}

ENTRY %main (x: f32[4,2]) -> f32[4,2] {
  %x = f32[4,2]{1,0} parameter(0)
  %before = f32[4,2]{1,0} fusion(%x), kind=kLoop, calls=%fused, @9
  %outer = (s32[], f32[4,2]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[4,2]{1,0} get-tuple-element(%outer), index=1
}
"""
TEXT = re.sub(r"@(\d+)", r'backend_config={"estimated_cycles":"\1"}', PROGRAM)


def test_figures_are_those_of_one_turn_of_the_outer_loop():
    found = reading.figures(TEXT)
    assert found.kernels == 3 + 4 * (1 + 1)  # the body's own; the inner loop's body and condition
    assert found.collectives == 1
    assert found.megacycles == pytest.approx((1000 + 4 * 100) / 1e6)
    once = (32 + 16) + (16 + 10 + 16 + 32) + 16
    inner = (32 + 32) + (1 + 4 + 4)
    assert found.megabytes == pytest.approx((once + 4 * inner) / 1e6)


def test_a_step_of_training_has_its_share_of_the_whole_program():
    """What comes before the loop, too; six turns, of which each also asks its condition."""
    told = 'body=%body, backend_config={"known_trip_count":{"n":"6"}}'
    found = reading.figures(TEXT.replace("body=%body", told), steps=6)
    turn = reading.figures(TEXT)
    assert found.kernels == turn.kernels + 1
    assert found.megacycles == pytest.approx(turn.megacycles + 9 / 6 / 1e6)
    before, condition = 32 + 32, 1 + 4 + 4
    assert found.megabytes == pytest.approx(turn.megabytes + (before / 6 + condition) / 1e6)
    assert found.collectives == turn.collectives


def test_the_main_loop_is_that_of_the_most_kernels():
    other = """
%zone (b: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %b = (s32[], f32[4,2]{1,0}) parameter(0)
  %one = f32[4,2]{1,0} fusion(%w), kind=kLoop, calls=%fused
  ROOT %t = (s32[], f32[4,2]{1,0}) tuple(%i, %one)
}

ENTRY"""
    loop = (
        "  %last = (s32[], f32[4,2]{1,0}) while(%outer), condition=%condition, body=%zone\n  ROOT"
    )
    entry = TEXT.index("ENTRY")
    text = TEXT[:entry] + TEXT[entry:].replace("ENTRY", other, 1).replace(
        "  ROOT %out", f"{loop} %out"
    )
    assert text.count("body=%zone") == 1
    assert reading.figures(text) == reading.figures(TEXT)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_target_is_described_by_what_compiles_for_it(name, monkeypatch):
    asked = []

    def describe(*words, **options):
        asked.append((words, options))
        return types.SimpleNamespace(devices=("a device",))

    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda _: "installed")
    monkeypatch.setattr(targets.topologies, "get_topology_desc", describe)
    assert targets.devices(name) == ["a device"]
    target = targets.TARGETS[name]
    ((words, options),) = asked
    if target.kind == "tpu":
        assert (words, options) == ((target.topology,), {"platform": "tpu"})
    else:
        of_device = {"target_config": target.topology, "topology": targets.FOUR}
        assert (words, options) == ((targets.FOUR,), {"platform": "cuda", **of_device})


@pytest.mark.parametrize(("what", "draws"), [("certify", 100), ("train", 0), ("attack", 0)])
def test_blocks_are_of_the_draws_that_the_target_has(what, draws, monkeypatch):
    class StopError(Exception):
        pass

    def lower(case, mesh):
        assert (case.draws, mesh.size) == (draws, 2)
        raise StopError

    monkeypatch.setattr(programs.targets, "devices", lambda _: jax.local_devices()[:4])
    for name in ("_certification", "_training", "_attack"):
        monkeypatch.setattr(programs, name, lower)
    with pytest.raises(StopError):
        programs.compile_case(programs.Case("v5e", what, "lstm_fcn", 128, devices=2))


def test_a_choice_is_no_kernel():
    choice = "  %choice = f32[4]{0} conditional(%i, %w, %w), branch_computations={%add, %add}\n"
    text = TEXT.replace("  %all =", choice + "  %all =", 1)
    assert text != TEXT
    assert reading.figures(text) == reading.figures(TEXT)


def test_cycles_that_the_text_does_not_have_are_none():
    assert reading.figures(TEXT.replace("estimated_cycles", "other")).megacycles is None


def test_turns_that_the_text_tells_count():
    told = 'body=%inner_body, backend_config={"known_trip_count":{"n":"7"}}'
    found = reading.figures(TEXT.replace("body=%inner_body", told))
    assert found.megacycles == pytest.approx((1000 + 7 * 100) / 1e6)


@pytest.mark.parametrize(
    ("what", "passes"),
    [
        ({"what": "certify"}, 100 * 5),
        ({"what": "train", "networks": 3}, 3 * programs.EXAMPLES * 3),
        ({"what": "attack"}, 3 * programs.attacks.EXAMPLES_PER_CALL * programs.ATTACK_DRAWS * 5),
    ],
)
def test_operations_are_those_of_the_forward_passes(what, passes):
    case = programs.Case(target="h100", model="lstm_fcn", length=60, **what)
    one = flop.of_forward_pass(models.create("lstm_fcn", programs.CLASSES), 60)
    assert programs._flops(case, draws=100) == passes * one


def run(*arguments, **environment):
    script = ROOT / "experiments" / "compile_report.py"
    return forked.run(script, arguments, ROOT, timeout=2000, **environment)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--target=v9", "--target: unknown 'v9'; choose from v5e, v6e, h100, a100"),
        ("--what=", "--what is empty"),
        ("--lengths=12.5", "--lengths: '12.5' is no number of time steps from 8 to 100000"),
        ("--num_devices=5", "--num_devices must be from 1 to 4, not 5"),
        ("--what=attack --precision=bfloat16", "--precision: attacks are in float32"),
        ("--networks=5", "--networks: only --what=train has networks side by side"),
        ("--baseline=README.md", "README.md is no table that --output writes"),
    ],
)
def test_what_makes_no_sense_is_refused(flag, said):
    done = run(*flag.split())
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_a_compiler_that_is_missing_is_named():
    kinds = {"tpu": ("v5e", "libtpu"), "gpu": ("h100", "jax_plugins")}
    missing = [(name, kind) for kind, (name, module) in kinds.items() if find_spec(module) is None]
    if not missing:
        pytest.skip("both compilers are installed")
    for name, kind in missing:
        done = run(f"--target={name}")
        assert done.returncode == 1
        assert f"pip install '.[compile-{kind}]'" in done.stderr


def test_every_target_has_a_peak_for_every_precision():
    for target in targets.TARGETS.values():
        assert target.peak["bfloat16"] > target.peak["tensorfloat32"] > target.peak["float32"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "module"), [("v5e", "libtpu"), ("h100", "jax_plugins")])
def test_programs_compile_for_a_device_that_is_not_there(tmp_path, name, module):
    """One program whatever the number of blocks, and no collectives on four devices."""
    if find_spec(module) is None:
        pytest.skip(f"needs the compiler: pip install '.[compile-{targets.TARGETS[name].kind}]'")
    table = tmp_path / "rows.csv"
    words = (f"--target={name}", "--models=lstm_fcn", "--lengths=64")
    for flags in (("--num_devices=4",), ("--what=certify,train,attack", f"--output={table}")):
        done = run(*words, *flags)
        assert done.returncode == 0, done.stderr
    assert "of peak" in done.stdout
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["what"] for row in rows] == list(programs.WHAT)
    assert all(row["collectives"] == "0" and int(row["kernels"]) > 5 for row in rows)
    again = run(*words, f"--baseline={table}")
    assert "x 1.00" in again.stdout
