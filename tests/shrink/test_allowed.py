"""A config.json can name code, kernels and packages; none of that reaches transformers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prune_cli.errors import RequestError
from prune_cli.shrink.allowed import allowed_config
from tests.shrink.test_huggingface import save_model

HOSTILE = {
    "code": {"auto_map": {"AutoModel": "mine.Mine"}},
    "code in a part": {"text_config": {"auto_map": {"AutoConfig": "mine.Mine"}}},
    "kernel": {"attn_implementation": "someone/kernel"},
    "kernel, as transformers saves it": {"_attn_implementation": "someone/kernel"},
    "kernel of a part": {"attn_implementation": {"text_config": "someone/kernel"}},
    "kernel that is a word": {"attn_implementation": "kernel"},
    "kernel in a list": {"attn_implementation": ["eager"]},
    "experts": {"experts_implementation": "someone/experts"},
    "quantiser": {"quantization_config": {"quant_method": "mine"}},
    "place": {"hidden_act": "someone/act"},
    "address": {"hidden_act": "https:x"},
    "list": {"layer_types": ["full_attention", "../x"]},
    "unknown": {"engine": "mine"},
    "unknown, deep": {"engine": {"of": ["mine"]}},
    "backbone": {"backbone": "resnet50"},
    "timm": {"use_timm_backbone": True},
    "timm, deep": {"backbone_config": {"model_type": "timm_backbone"}},
}
KNOWN = {"hidden_act", "layer_types", "text_config", "backbone_config", "hidden_size"}


@pytest.mark.parametrize("config", HOSTILE.values(), ids=HOSTILE)
def test_what_could_name_code_is_refused_by_name(config: dict[str, Any]) -> None:
    """Wherever in the config it stands."""
    with pytest.raises(RequestError, match=next(iter(config)).strip("_")):
        allowed_config({"hidden_size": 8, **config}, KNOWN)


def test_numbers_and_plain_words_pass() -> None:
    """Where a model came from and what its classes are called is nobody's business."""
    numbers = {"hidden_size": 8, "factors": [1.5, None, True], "rope_scaling": {"type": "linear"}}
    words = {"hidden_act": "gelu_pytorch_tanh", "architectures": ["BertModel"]}
    labels = {"id2label": {"0": "cat/dog"}, "quantization_config": None}
    past = {"_name_or_path": "someone/model", "attn_implementation": "sdpa"}

    found = allowed_config({**numbers, **words, **labels, **past}, KNOWN)

    assert found == {**numbers, **words, **labels}


@pytest.mark.parametrize("config", [HOSTILE["code"], HOSTILE["kernel"], HOSTILE["quantiser"]])
def test_no_code_of_a_folder_or_of_others_is_run(config: dict[str, Any], tmp_path: Path) -> None:
    """The command says what is wrong; nothing was imported that is not asked for by us."""
    save_model(tmp_path / "whole", "bert")
    path = tmp_path / "whole" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    (tmp_path / "whole" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    command = [sys.executable, "-m", "prune_cli", "shrink", tmp_path / "whole", "-a", "0.25"]

    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)

    assert done.returncode == 4, done.stderr
    assert next(iter(config)) in done.stderr
    assert not (tmp_path / "ran").exists()
