"""``--adapter.kind peft``: methods of peft on the towers, by name and by file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from helpers.towers import TOWERS, build, prepared, train
from vlkit.adapters.any_peft import PeftOptions
from vlkit.adapters.base import trained_state
from vlkit.adapters.mix import Mix, Trained
from vlkit.adapters.options import adapter_options
from vlkit.engine.checkpoint import load_trained
from vlkit.errors import UserError

# A method for each way to keep its weights: parameters, shared random buffers, a list of parameters, a copied norm.
METHODS = ["dora", "rslora", "ia3", "vera", "oft", "boft", "loha", "lokr", "hra", "fourierft", "randlora", "ln_tuning"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tower", ["vit", "t5"])
def test_trains_saves_and_loads(method: str, tower: str) -> None:
    if (method, tower) == ("ln_tuning", "t5"):
        pytest.skip("T5 has no LayerNorm")
    options, x = PeftOptions(config=method), TOWERS[tower][1]()
    model = build(options, tower)
    base = {name: tensor.clone() for name, tensor in prepared(tower).state_dict().items()}
    with torch.no_grad():
        torch.testing.assert_close(model(x).pooled, prepared(tower)(x), rtol=0, atol=3e-6)
    assert train(model, x, "pooled", steps=2) == set()
    assert all(torch.equal(tensor, base[name]) for name, tensor in prepared(tower).state_dict().items())
    other = build(adapter_options(json.loads(json.dumps(asdict(options)))), tower, seed=7)
    load_trained(other, {name: tensor.clone() for name, tensor in trained_state(model).items()})
    with torch.no_grad():
        found, start = model(x).pooled, prepared(tower)(x)
        torch.testing.assert_close(other(x).pooled, found, rtol=0, atol=1e-6)
    assert (found - start).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["dora", "ia3", "vera", "oft", "ln_tuning"])
def test_mix(method: str) -> None:
    x, model = TOWERS["vit"][1](), build(PeftOptions(config=method), "vit")
    train(model, x, "pooled", steps=2)
    state = {name: tensor.clone() for name, tensor in trained_state(model).items()}
    found = {}
    for alpha in (0.0, 0.5, 1.0):
        other = build(PeftOptions(config=method), "vit", seed=7)
        load_trained(other, Trained(state, Mix(alpha)))
        with torch.no_grad():
            found[alpha] = other(x).pooled
    with torch.no_grad():
        torch.testing.assert_close(found[0.0], prepared("vit")(x), rtol=0, atol=1e-5)
        torch.testing.assert_close(found[1.0], model(x).pooled, rtol=0, atol=1e-6)
    assert (found[0.5] - found[0.0]).abs().max() > 1e-3


def test_mix_of_another_method_is_refused() -> None:
    state = trained_state(build(PeftOptions(config="hra"), "vit"))
    with pytest.raises(UserError, match="not known how to scale"):
        load_trained(build(PeftOptions(config="hra"), "vit"), Trained(state, Mix(0.5)))


def test_a_file_of_peft(tmp_path: Path) -> None:
    """Options and targets come from it, and the saved adapter holds its content."""
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LORA", "r": 3, "target_modules": ["v_proj"], "lora_alpha": 6}))
    options = PeftOptions(config=str(file))
    file.unlink()
    state = trained_state(build(adapter_options(asdict(options)), "vit"))
    assert len(state) == 8 and {min(tensor.shape) for tensor in state.values()} == {3}
    assert all(".v_proj." in name for name in state)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("lorra", "no such file or method of peft; methods: .*dora.*vera"),
        ("missing.json", "missing.json"),
        ("adalora", "ADALORA changes its ranks between steps"),
        ("prompt_tuning", "no such file or method of peft"),
        ("{", "is not JSON"),
        ("{}", "no field peft_type"),
        ("[1]", "no such file or method"),
    ],
)
def test_wrong_configs_are_named(config: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        PeftOptions(config=config)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "LORA", "init_lora_weights": "pissa"}, "its start changes the base's weights"),
        ({"peft_type": "LORA", "target_modules": ["nothing"]}, "LORA on VisionTransformer: .*nothing"),
        ({"peft_type": "LORA", "ranks": 3}, "LORA on VisionTransformer: .*ranks"),
        ({"peft_type": "MISS", "r": 64}, "MISS on VisionTransformer: .*in_features"),
    ],
)
def test_what_peft_refuses_is_one_line(config: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        build(PeftOptions(config=json.dumps(config)), "vit")
    assert "\n" not in str(raised.value)
