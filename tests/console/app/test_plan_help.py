"""Help of the form: fixes, presets, memory, paths, the plan file in an editor."""

from __future__ import annotations

import dataclasses
import json

import pytest

from console.fixes import fixes
from console.forms import look_here, read_plan, text_of
from console.readers.form_defaults import PRESETS, suggestions
from console.widgets import plan_view
from console.widgets.path_completion import candidates, complete
from qwen3vl_core.layout.parameters import published
from qwen3vl_core.layout.rules import layout_problems
from qwen3vl_core.options import COMMANDS, FinetuneOptions, from_mapping, options_of
from tests.console.app.driving import LARGE, driven, looked, press, said, until
from tests.console.app.driving import text_of as screen_text

DECLARED = {option.name: option for option in options_of(FinetuneOptions)}


def texts(**values):
    return {name: text_of(o, values.get(name, o.default)) for name, o in DECLARED.items()}


@pytest.mark.parametrize("values", [
    {"micro_batch_size": 4, "packing": True}, {"lr_warmup_iters": 100}, {"min_lr": 1.0}, {"keep_every": 10}, {"sequence_parallel": True},
    {"sample_interval": 5}, {"skip_spikes": True, "spike_factor": 0.0}, {"min_pixels": 9000, "max_pixels": 4000},
    {"freeze": "vision,projector,language"}, {"lora_alpha": 32.0},
])  # fmt: skip
def test_a_broken_rule_between_options_is_fixed_by_its_first_remedy(values):
    plan = read_plan("finetune", texts(load="m", train_data="d", **values))
    problem = plan.problems[0]
    found = fixes(problem, DECLARED)
    assert found, problem
    fixed = read_plan("finetune", texts(load="m", train_data="d", **values) | dict(found[0].changes))
    assert problem.code not in {p.code for p in fixed.problems}, (problem, found[0])


@pytest.mark.parametrize("size, values, gpus", [
    ("8B", {"tp": 3}, 6), ("8B", {"tp": 64}, 64), ("8B", {"pp": 5}, 5), ("8B", {"global_batch_size": 30}, 8), ("8B", {"vp": 2}, 1),
    ("8B", {"pp": 2, "vp": 5, "global_batch_size": 8}, 2), ("8B", {"pp": 4, "pp0_layers": 1}, 4), ("4B", {"ep": 4}, 4),
    ("A3B", {"ep": 7}, 7), ("A3B", {"tp": 2}, 2), ("A3B", {"etp": 7}, 7), ("8B", {"pp0_layers": 4}, 1),
])  # fmt: skip
def test_a_broken_layout_is_fixed_by_its_first_remedy(size, values, gpus):
    options = FinetuneOptions(load="m", train_data="d", nproc=gpus, **values)
    a = published(size)
    problems = list(layout_problems(options, a, gpus))
    assert problems
    for problem in problems:
        found = fixes(problem, DECLARED)
        assert found, problem
        given = {name: text or DECLARED[name].default for name, text in found[0].changes.items()}
        made = from_mapping(FinetuneOptions, given, partial=True)
        fixed = dataclasses.replace(options, **{name: getattr(made, name) for name in given})
        assert problem.code not in {p.code for p in layout_problems(fixed, a, fixed.nproc)}, (problem, str(found[0]))


def test_every_preset_is_valid_and_changes_something():
    for kind, presets in PRESETS.items():
        declared = {o.name: o for o in options_of(COMMANDS[kind])}
        for name, about, values in presets:
            assert about and set(values) <= set(declared), name
            for option, value in values.items():
                declared[option].check(value)
        assert len({name for name, _, _ in presets}) == len(presets)
    for _, _, values in PRESETS["finetune"]:
        assert read_plan("finetune", texts(load="m", train_data="d", **values)).problems == ()


def test_layouts_are_suggested_for_the_gpus_and_can_be_put_into_the_form():
    found = suggestions(FinetuneOptions(size="8B", nproc=8, global_batch_size=64))
    assert len(found) > 3 and found[0]["fits"] and found[0]["seconds"] <= found[1]["seconds"] and found[0]["gpus"] == 8
    for layout in found:
        options = dataclasses.replace(FinetuneOptions(size="8B", nproc=8, global_batch_size=64), **layout["values"])
        assert next(layout_problems(options, published("8B"), 8), None) is None


def test_the_memory_of_a_gpu_is_a_bar_for_each_stage_with_a_legend_even_while_a_path_is_missing():
    verdict = look_here("finetune", FinetuneOptions(size="8B", nproc=8, pp=2, tp=2, global_batch_size=64, train_data="nowhere"))
    assert any("nowhere" in str(problem) for problem in verdict.problems)
    estimate = verdict.verdict.estimate
    text = plan_view.memory(estimate, None, 80, here=False).plain
    lines = text.splitlines()
    assert lines[0].startswith("stage 0 █") and lines[1].startswith("stage 1 █") and "GiB" in lines[0]
    assert all(word in text for word in ("weights", "gradients", "optimizer", "activations", "vision", "fits", "no GPU here"))
    assert max(map(len, lines)) <= 80
    narrow = plan_view.memory(estimate, None, 40, here=True).plain
    assert "s a step" in narrow
    tight = look_here("finetune", FinetuneOptions(size="32B", nproc=1)).verdict
    assert "does not fit" in plan_view.memory(tight.estimate, tight.gpus_needed, 80, here=False).plain


def test_a_plan_without_problems_says_what_would_be_faster_and_the_key_that_applies_it():
    options = FinetuneOptions(size="tiny", packing=True, micro_batch_size=1, seq_length=4096, global_batch_size=8, nproc=1)
    notes = look_here("finetune", options).verdict.notes
    text = plan_view.problem_lines((), "every rule holds", DECLARED, "f7", advice=notes).plain
    assert text.startswith("✓ every rule holds\n· longer packed rows would be about ")
    assert text.endswith("seq-length 8192, global-batch-size 4   f7 applies it")
    assert plan_view.first_fix(notes, DECLARED).changes == {"seq_length": "8192", "global_batch_size": "4"}
    broken = look_here("finetune", dataclasses.replace(options, tp=3)).problems
    assert "faster" not in plan_view.problem_lines(broken, "", DECLARED, "f7", advice=notes).plain


def test_paths_are_completed_as_by_a_shell(tmp_path, monkeypatch):
    for name in ("models", "models-old", "data", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "bad\x1bname").mkdir()
    root = str(tmp_path)
    assert complete(f"{root}/mo") == (f"{root}/models", [f"{root}/models-old/", f"{root}/models/"])
    assert complete(f"{root}/models-")[0] == f"{root}/models-old/"
    assert candidates(f"{root}/mo", folders_only=False)[-1] == f"{root}/model.json"
    assert candidates(f"{root}/.h") == [f"{root}/.hidden/"] and f"{root}/.hidden/" not in candidates(f"{root}/")
    assert not any("\x1b" in path for path in candidates(f"{root}/"))
    monkeypatch.chdir(tmp_path)
    assert complete("da")[0] == "data/" and complete("nothing") == (None, []) and complete("/no/such/folder/x") == (None, [])
    monkeypatch.setenv("HOME", root)
    assert complete("~/da")[0] == "~/data/"


async def at_launch(pilot):
    await press(pilot, "2")
    await until(pilot, lambda: pilot.app.screen.form is not None and pilot.app.screen.plan is not None)
    return pilot.app.screen


def test_a_key_fixes_the_first_problem_and_presets_fill_the_form(store):
    async def scene(pilot):
        app = pilot.app
        screen = await at_launch(pilot)
        screen.form.fill({"size": "8B", "nproc": 8, "tp": 2, "global_batch_size": 30})
        # the last input is checked after a short delay
        await until(pilot, lambda: "use 28 or 32" in " ".join(screen_text(app).split()))
        assert "fix: global-batch-size 32" in screen_text(app)
        await press(pilot, "escape", "f")
        assert screen.form.texts()["global_batch_size"] == "32" and "global-batch-size 32" in said(app)
        await until(pilot, lambda: "Memory of a GPU" in screen_text(app) and "= 8 processes" in screen_text(app))
        text = screen_text(app)
        assert "weights" in text and "8.77 billion" in text
        await press(pilot, "p")
        await until(pilot, lambda: len(app.screen.values) > len(PRESETS["finetune"]))
        await looked(pilot)
        assert "smoke test" in screen_text(app) and "s/step" in screen_text(app) and "fastest first" in screen_text(app)
        assert "--suggest" in app.subcommand
        await press(pilot, "enter")
        assert screen.form.texts()["train_iters"] == "10"
        await press(pilot, "p", "escape")
        assert app.screen is screen

    driven(scene, store.app(), LARGE)


def test_the_fix_of_adapters_without_a_rank_is_a_rank(store):
    async def scene(pilot):
        screen = await at_launch(pilot)
        screen.form.fill({"load": "m", "train_data": "d", "lora_alpha": 32.0})
        await until(pilot, lambda: "needs --lora-rank" in " ".join(screen_text(pilot.app).split()))
        await press(pilot, "escape", "f")
        assert screen.form.texts()["lora_rank"] == "16" and not screen.plan.problems

    driven(scene, store.app(), LARGE)


def test_tab_accepts_a_completion_or_goes_to_the_next_field(store, tmp_path):
    (tmp_path / "checkpoint-one").mkdir()
    (tmp_path / "checkpoint-two").mkdir()

    async def scene(pilot):
        screen = await at_launch(pilot)
        field = screen.form.query_one("#o-load")
        field.focus()
        for key in f"{tmp_path}/ch":
            field.insert_text_at_cursor(key)
        await until(pilot, lambda: field._suggestion.endswith("checkpoint-"))
        await until(pilot, lambda: all(f"checkpoint-{name}/" in screen_text(pilot.app) for name in ("one", "two")))
        assert "tab completes:" in screen_text(pilot.app)
        await press(pilot, "tab")
        assert field.value == f"{tmp_path}/checkpoint-" and field.has_focus
        field.insert_text_at_cursor("tw")
        await until(pilot, lambda: field._suggestion.endswith("checkpoint-two/"))
        await press(pilot, "tab")
        assert screen.form.texts()["load"] == f"{tmp_path}/checkpoint-two/"
        await until(pilot, lambda: not field._suggestion or field._suggestion == field.value)
        await press(pilot, "tab")
        assert not field.has_focus

    driven(scene, store.app(), LARGE)


def test_the_plan_is_edited_as_a_file_and_its_problems_are_shown(store, tmp_path, monkeypatch):
    edits = []

    def edit(app, path):
        edits.append((path, path.read_text()))
        path.write_text(edits[0][1].replace("lr: 1.0e-05", "lr: 3.0e-05") + ("warp_speed: 9\n" if len(edits) == 1 else ""))

    monkeypatch.setattr("console.screens.plan_files.edit", edit)

    async def scene(pilot):
        app = pilot.app
        screen = await at_launch(pilot)
        screen.form.fill({"load": "mine", "train_data": "data"})
        await press(pilot, "escape", "e")
        assert "warp_speed: no such option" in said(app) and "e opens it again" in said(app)
        assert screen.form.texts()["lr"] == "1e-05"
        await press(pilot, "e")
        assert screen.form.texts()["lr"] == "3e-05" and edits[1][0] == edits[0][0] and "warp_speed" in edits[1][1]
        assert not edits[0][0].exists()
        await press(pilot, "s")
        saved = tmp_path / "finetune-plan.yaml"
        assert saved.is_file() and "lr: 3" in saved.read_text() and app.clipboard == f"qwen3vl finetune --plan {saved}"
        await press(pilot, "s")
        assert (tmp_path / "finetune-plan-2.yaml").is_file()
        await press(pilot, "k", "s")
        await until(pilot, lambda: "only a finetune is read from a plan file" in said(app))

    driven(scene, store.app(), LARGE)


def test_a_changed_clone_is_started_and_its_command_remembered(store, tmp_path, monkeypatch):
    monkeypatch.setattr("console.runs.launch.start", lambda run: None)
    (tmp_path / "captions.json").write_text(json.dumps([]))

    async def scene(pilot):
        app = pilot.app
        screen = await at_launch(pilot)
        screen.query_one("Tabs").active = "kind-prepare"
        await until(pilot, lambda: screen.kind == "prepare" and screen.form is not None and screen.plan.kind == "prepare")
        screen.form.fill({"source": str(tmp_path / "captions.json"), "to": str(tmp_path / "data")})
        await until(pilot, lambda: screen.checked is not None)
        await press(pilot, "ctrl+g", "y")
        await until(pilot, lambda: app.current_mode == "monitor")
        words = f"qwen3vl prepare {tmp_path}/captions.json --to {tmp_path}/data --detach --runs {store.root}"
        assert app.subcommand in (words, f"qwen3vl runs logs 1 --follow --runs {store.root}")

    driven(scene, store.app())
