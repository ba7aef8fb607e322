"""Training: targets, packing, budgets, a falling loss, and an exact resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from geomag_edge.errors import CheckpointError, InputError
from geomag_edge.model.presets import shipped_checkpoint
from geomag_edge.model.train.__main__ import main
from geomag_edge.model.train.config import Stage, TrainConfig
from geomag_edge.model.train.loop import Place, Trainer
from geomag_edge.model.train.losses.attention import additive
from geomag_edge.model.train.samples import data
from geomag_edge.model.train.samples.pool import PoolPlan, fill_pool, pool_files
from geomag_edge.model.train.samples.targets import answer_text
from geomag_edge.model.train.step import LossWeights
from geomag_edge.views import pooling_matrix, token_positions

EVERYTHING = LossWeights(nouns=0.3, answer=1.0, mask=1.0, align=0.3, visual=0.3, pointer=0.3)
STAGE = Stage(
    "all", 40, EVERYTHING, budgets=data.BudgetRange((4,), (1,), (2,)),
    rate=2e-3, end_rate=2e-3, warmup=2, scenes=1, questions=(1, 1, 2),
)  # fmt: skip


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    assert fill_pool(folder, PoolPlan(first_seed=3, count=2, sizes_px=(256,), per_level=4)) == 2
    return folder


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return TrainConfig(stages=(STAGE,), autocast=False, save_every=1000)


def test_the_configuration_survives_json(config: TrainConfig) -> None:
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_the_shipped_configuration_is_read() -> None:
    import geomag_edge.model.train as package

    shipped = TrainConfig.load(Path(package.__file__).parent / "nano.json")
    assert [s.losses.answer > 0 for s in shipped.stages][-1]


def test_an_unknown_field_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"speed": 3}')
    with pytest.raises(InputError, match="speed"):
        TrainConfig.load(tmp_path / "c.json")


def test_the_rate_warms_up_and_decays() -> None:
    stage = replace(STAGE, steps=100, warmup=10, rate=1.0, end_rate=0.1, decay=50)
    assert stage.rate_at(0) == pytest.approx(0.1)
    assert stage.rate_at(30) == 1.0
    assert stage.rate_at(99) == pytest.approx(0.1 + 0.9 / 50)


def test_budgets_vary() -> None:
    rng = np.random.default_rng(0)
    drawn = [data.BudgetRange().draw(rng) for _ in range(60)]
    assert len({b.crops for b in drawn}) > 2
    assert len({b.global_grid for b in drawn}) > 1
    assert max(b.visual_tokens for b in drawn) <= 330


def test_a_pool_is_filled_once(pool: Path) -> None:
    plan = PoolPlan(first_seed=3, count=2, sizes_px=(256,), per_level=4)
    assert fill_pool(pool, plan) == 0
    assert [path.stem for path in pool_files(pool)] == ["3", "4"]


def test_packed_questions_see_only_themselves(pool: Path, config: TrainConfig) -> None:
    run = Trainer.fresh(config, pool / "run", pool)
    trainee, rng = run.trainee, np.random.default_rng(1)
    visit = data.visit(pool_files(pool)[0], rng, (1, 1, 1))
    boxes = np.stack([visit.box, data.crop_near(visit, 0, rng, (4,), trainee.grid)])[None]
    budget = data.TokenBudget(4, 1, 2)
    embed = run.model.get_input_embeddings()
    coder = trainee.turns.coder
    with torch.no_grad():
        tokens = trainee._encode([visit], boxes).tokens
        packed, hidden, _ = trainee._speak([visit], boxes, tokens, budget)
        visual = []
        for part, part_boxes, grid in (
            (tokens[:1], boxes[0, :1], 4),
            (tokens[1:], boxes[0, 1:], 2),
        ):
            places = torch.from_numpy(token_positions(part_boxes, grid, 256, 256))
            pooling = torch.from_numpy(pooling_matrix(trainee.grid, grid))
            visual.append(run.model.projector(part, pooling, places).flatten(0, 1))
        for i, question in enumerate(visit.questions):
            before, after = coder.around_image(visit.prompts[i])
            ids = [*after, *coder.markup_ids(answer_text(question, boxes[0]))]
            alone = torch.cat([embed(torch.tensor(before)), *visual, embed(torch.tensor(ids))])[
                None
            ]
            mask = torch.ones(1, 1, alone.shape[1], alone.shape[1], dtype=torch.bool).tril()
            wanted = run.model.language_model.model(
                inputs_embeds=alone,
                attention_mask={"full_attention": additive(mask, alone.dtype)},
                use_cache=False,
            ).last_hidden_state[0, -len(ids) :]
            mine = hidden[0][packed.segment[0] == i + 1]
            torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)


def test_the_loss_falls_and_a_resumed_run_goes_on_as_if_never_stopped(
    pool: Path, config: TrainConfig, tmp_path: Path
) -> None:
    run = Trainer.fresh(config, tmp_path, pool)
    run.run(until=12)
    assert np.mean([r["loss"] for r in run.log[-3:]]) < 0.75 * np.mean(
        [r["loss"] for r in run.log[:3]]
    )
    expected = run.one_step(pool_files(pool))["loss"]
    again = Trainer.fresh(config, tmp_path, pool)
    again.restore()
    assert again.step == 12
    assert again.one_step(pool_files(pool))["loss"] == pytest.approx(expected, rel=1e-5)
    assert (tmp_path / "curve.png").stat().st_size > 1000
    from_it = Trainer.from_checkpoint(config, tmp_path / "b", pool, tmp_path / "checkpoint")
    assert from_it.step == 12


def test_threads_that_load_ahead_change_nothing(
    pool: Path, config: TrainConfig, tmp_path: Path
) -> None:
    files = pool_files(pool)
    losses = []
    for place in (Place(), Place(loaders=2)):
        run = Trainer.fresh(config, tmp_path, pool, place)
        losses.append([run.one_step(files)["loss"] for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_muon_takes_the_layers_matrices_and_resumes(
    pool: Path, config: TrainConfig, tmp_path: Path
) -> None:
    config = replace(config, muon=True)
    run = Trainer.fresh(config, tmp_path, pool)
    names = {type(o).__name__: names for o, names in run.optimisers}
    assert sorted(names["AdamW"] + names["Muon"]) == sorted(run.parameters)
    assert all(run.parameters[n].ndim == 2 and "embed" not in n for n in names["Muon"])
    run.run(until=2)
    expected = run.one_step(pool_files(pool))["loss"]
    again = Trainer.fresh(config, tmp_path, pool)
    again.restore()
    assert again.one_step(pool_files(pool))["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert Place.choose("cpu") == Place("cpu", 0)
    if torch.cuda.is_available():
        assert Place.choose("auto").device == "cuda"
    else:
        assert Place.choose("auto").device == "cpu"
        with pytest.raises(InputError, match="no CUDA GPU here"):
            Place.choose("cuda")


@pytest.mark.parametrize("resume", [[], ["--resume", "elsewhere"]])
def test_a_run_that_is_there_is_not_begun_again(
    resume: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").mkdir()
    assert main([str(tmp_path), "--no-render", *resume]) == 2
    assert "--resume alone" in capsys.readouterr().err


def test_a_state_of_another_model_is_refused(
    pool: Path, config: TrainConfig, tmp_path: Path
) -> None:
    run = Trainer.fresh(config, tmp_path, pool)
    run.save()
    again = Trainer.fresh(config, tmp_path, pool)
    again.parameters["model/new"] = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(CheckpointError, match="another model: model/new"):
        again.restore()


def test_the_shipped_checkpoint_is_small_and_loads() -> None:
    from geomag_edge.model.geomag import load_checkpoint

    folder = shipped_checkpoint("nano")
    if folder is None:
        pytest.skip("no trained checkpoint in this tree")
    assert sum(p.stat().st_size for p in folder.glob("*.safetensors")) <= 15.5 * 2**20
    assert not load_checkpoint(folder).config.untrained
    assert json.loads((folder / "train_state.json").read_text())["step"] > 0
