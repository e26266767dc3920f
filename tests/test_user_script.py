"""A user's typed program runs; that its types hold is for mypy to say (test_quality)."""

from pathlib import Path

from tests import user_script


def test_every_public_function_is_used_as_its_types_say(tmp_path: Path) -> None:
    """It asserts what it expects on the way."""
    user_script.main(tmp_path)

    assert (tmp_path / "small.safetensors").exists()
