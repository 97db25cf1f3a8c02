"""What is loaded, from a folder or from the hub's cache, and what is refused in one line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from src.utils.config import PROJECT_ROOT
from src.utils.config_sections import ModelConfig
from src.utils.errors import UserError
from src.utils.model_files import fingerprint, is_adapter
from src.utils.models import (
    check_adapter_fits,
    check_checkpoint_fits,
    check_layers,
    load_adapter,
    load_model,
    load_tokenizer,
)
from tests.tiny_models import N_LAYERS, put_into_cache, save_adapter, save_model, tiny_model, tokenizer, with_adapter

IDS = torch.tensor([[40, 41, 42, 43]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    save_model(tiny_model(), folder / "base")
    save_model(tiny_model(width=64), folder / "wide")
    save_adapter(with_adapter(tiny_model()), folder / "adapter")
    save_adapter(with_adapter(tiny_model(width=64)), folder / "wide_adapter")
    return {path.name: path for path in folder.iterdir()}


def loaded(folder: Path) -> PreTrainedModel:
    return load_model(str(folder), ModelConfig(base=str(folder)))


def refusal(error: pytest.ExceptionInfo[UserError], *words: str) -> UserError:
    assert "\n" not in error.value.message
    for word in words:
        assert word in error.value.message
    return error.value


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def test_a_folder_loads_as_it_was_saved(folders: dict[str, Path]) -> None:
    model = loaded(folders["base"])
    assert not model.training
    assert model.dtype == torch.float32
    assert torch.equal(logits(model), logits(tiny_model()))
    assert load_tokenizer(str(folders["base"])).encode("So no.") == tokenizer().encode("So no.")


def test_dtype_is_what_was_asked_for(folders: dict[str, Path]) -> None:
    name = str(folders["base"])
    assert load_model(name, ModelConfig(base=name, dtype="bfloat16")).dtype == torch.bfloat16


def test_an_adapter_loads_on_its_base(folders: dict[str, Path]) -> None:
    assert is_adapter(str(folders["adapter"]))
    assert not is_adapter(str(folders["base"]))
    adapted = load_adapter(loaded(folders["base"]), str(folders["adapter"]))
    assert not adapted.training
    assert torch.equal(logits(adapted), logits(with_adapter(tiny_model())))
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), logits(tiny_model()))


@pytest.mark.parametrize(("base", "adapter"), [("wide", "adapter"), ("base", "wide_adapter")])
def test_an_adapter_of_another_width_is_refused(folders: dict[str, Path], base: str, adapter: str) -> None:
    model = loaded(folders[base])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_adapter(model, str(folders[adapter]))
    assert refusal(caught, str(folders[adapter]), "64", "128", "--base-model").exit_code == 1
    assert model.state_dict().keys() == before.keys(), "nothing was put on the model"


def test_an_adapter_of_another_module_or_depth_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["adapter"] / "adapter_model.safetensors")
    for change in (("q_proj", "c_attn"), ("layers.2", "layers.7")):
        other = shutil.copytree(folders["adapter"], tmp_path / change[1])
        save_file({name.replace(*change): t for name, t in tensors.items()}, other / "adapter_model.safetensors")
        with pytest.raises(UserError) as caught:
            load_adapter(loaded(folders["base"]), str(other))
        refusal(caught, str(other), change[1], "--base-model")


def test_one_wrong_shape_among_many_is_found(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["adapter"] / "adapter_model.safetensors")
    name = next(name for name in tensors if "layers.1.mlp.down_proj.lora_B" in name)
    tensors[name] = torch.zeros(31, 4)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError) as caught:
        check_adapter_fits(tiny_model(), tmp_path / "adapter_model.safetensors", "mine")
    refusal(caught, "mine: model.layers.1.mlp.down_proj has 31 outputs, the base model's has 32")


def test_a_damaged_or_pickled_adapter_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(folders["adapter"], tmp_path / "broken")
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(UserError) as caught:
        load_adapter(tiny_model(), str(broken))
    refusal(caught, str(weights))
    pickled = shutil.copytree(folders["adapter"], tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").unlink()
    trap(pickled / "adapter_model.bin", tmp_path / "ran")
    with pytest.raises(UserError) as caught:
        load_adapter(tiny_model(), str(pickled))
    refusal(caught, str(pickled), "safetensors")
    assert not (tmp_path / "ran").exists()


class Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.mark),))


def trap(file: Path, mark: Path) -> None:
    """Pickled weights that leave a mark when they are unpickled."""
    torch.save({"model.embed_tokens.weight": Trap(mark)}, file)


def test_pickled_weights_are_refused_and_run_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["base"], tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    trap(folder / "pytorch_model.bin", tmp_path / "ran")
    with pytest.raises(UserError) as caught:
        loaded(folder)
    refusal(caught, str(folder))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileExistsError):  # the trap works, had anybody opened it
        (tmp_path / "ran").mkdir()
        torch.load(folder / "pytorch_model.bin", weights_only=False)


def test_half_written_weights_are_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["base"], tmp_path / "half")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(UserError) as caught:
        loaded(folder)
    refusal(caught, str(folder))


def test_model_code_of_a_folder_is_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["base"], tmp_path / "custom")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoModelForCausalLM": "code.M", "AutoConfig": "code.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    with pytest.raises(UserError) as caught:
        loaded(folder)
    refusal(caught, str(folder))
    with pytest.raises(UserError):
        check_layers(str(folder), [0])
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_chat_template_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["base"], tmp_path / "plain")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(folder))
    refusal(caught, str(folder), "chat template")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(folder))
    refusal(caught, str(folder))


@pytest.mark.parametrize("layers", [[0, 4], [-1], [99, 1]])
def test_a_layer_that_the_model_lacks_is_a_usage_error(folders: dict[str, Path], layers: list[int]) -> None:
    check_layers(str(folders["base"]), range(N_LAYERS + 1))
    missing = next(layer for layer in layers if not 0 <= layer <= N_LAYERS)
    with pytest.raises(UserError) as caught:
        check_layers(str(folders["base"]), layers)
    assert refusal(caught, f"layer {missing}", "0 to 3").exit_code == 2


def test_a_checkpoint_of_another_width_is_refused(folders: dict[str, Path]) -> None:
    check_checkpoint_fits(str(folders["base"]), str(folders["base"]))
    with pytest.raises(UserError) as caught:
        check_checkpoint_fits(str(folders["base"]), str(folders["wide"]))
    refusal(caught, str(folders["wide"]), "hidden_size", "32", "64")


def test_a_fingerprint_is_of_the_content(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["base"], tmp_path / "copy")
    assert fingerprint(str(copy)) == fingerprint(str(folders["base"])) != fingerprint(str(folders["wide"]))
    (copy / "generation_config.json").write_text("{}")
    assert fingerprint(str(copy)) != fingerprint(str(folders["base"]))


HUB_SESSION = """
import json, sys
import torch
from src.utils.config_sections import ModelConfig
from src.utils.errors import UserError
from src.utils.model_files import fingerprint, is_adapter
from src.utils.models import check_adapter_fits, check_layers, load_adapter, load_model, load_tokenizer

def refused(action):
    try:
        action()
    except UserError as error:
        return error.message

def load(name):
    return load_model(name, ModelConfig(base=name))

ids = torch.tensor([[40, 41, 42, 43]])
check_layers("tiny/base", [0, 3])
model = load("tiny/base")
found = {
    "tokens": load_tokenizer("tiny/base").encode("So no."),
    "are adapters": [is_adapter("tiny/base"), is_adapter("tiny/adapter")],
    "fingerprints": [fingerprint("tiny/base"), fingerprint("tiny/other"), fingerprint("tiny/adapter")],
    "pickled": refused(lambda: load("tiny/pickled")),
    "absent model": refused(lambda: load("tiny/absent")),
    "absent tokenizer": refused(lambda: load_tokenizer("tiny/absent")),
    "absent fingerprint": refused(lambda: fingerprint("tiny/absent")),
    "absent layers": refused(lambda: check_layers("tiny/absent", [0])),
    "absent adapter": refused(lambda: load_adapter(model, "tiny/absent")),
    "no hub name": refused(lambda: fingerprint("no/such/folder")),
}
with torch.inference_mode():
    found["base logits"] = model(ids).logits[0, -1].tolist()
    found["adapter logits"] = load_adapter(model, "tiny/adapter")(ids).logits[0, -1].tolist()
print(json.dumps(found))
"""


@pytest.mark.parametrize("network", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_models_in_the_hubs_cache_are_found_by_name_offline(
    folders: dict[str, Path], tmp_path: Path, network: dict[str, str]
) -> None:
    """As the user says it, and where the hub does not answer: that is found out once, not by trying for each file."""
    home = tmp_path / "home"
    put_into_cache(home, "tiny/base", folders["base"], "a" * 40)
    put_into_cache(home, "tiny/other", folders["base"], "b" * 40)
    put_into_cache(home, "tiny/adapter", folders["adapter"], "c" * 40)
    pickled = shutil.copytree(folders["base"], tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    trap(pickled / "pytorch_model.bin", tmp_path / "ran")
    put_into_cache(home, "tiny/pickled", pickled, "d" * 40)

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {"HF_HOME": str(home), "OMP_NUM_THREADS": "1", **network}
    session = subprocess.run(
        [sys.executable, "-c", HUB_SESSION],
        cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert session.returncode == 0, session.stderr
    assert "Retrying" not in session.stderr
    found = json.loads(session.stdout.splitlines()[-1])
    assert found["tokens"] == tokenizer().encode("So no.")
    assert found["are adapters"] == [False, True]
    assert len(set(found["fingerprints"])) == 3
    assert torch.equal(torch.tensor(found["base logits"]), logits(tiny_model())[0, -1])
    assert torch.equal(torch.tensor(found["adapter logits"]), logits(with_adapter(tiny_model()))[0, -1])
    for what in ("model", "tokenizer", "fingerprint", "layers", "adapter"):
        assert found[f"absent {what}"].startswith("tiny/absent: "), what
        assert "\n" not in found[f"absent {what}"]
    assert found["pickled"].startswith("tiny/pickled: ")
    assert found["no hub name"].startswith("no/such/folder: ")
    assert not (tmp_path / "ran").exists()
