"""Loading: how a checkpoint is to be opened."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Loading:
    """Which parts of a checkpoint are wanted.

    Attributes:
        state_dict_keys: where the state dicts are nested ("model.ema"); "*" takes every one that
            is found; without any, there has to be exactly one.
        drop_unwritable: whether tensors that cannot be had from bytes (sparse, quantised,
            DTensor) are left out instead of being an error.
    """

    state_dict_keys: tuple[str, ...] = ()
    drop_unwritable: bool = False

    def __post_init__(self) -> None:
        """Read a string where keys are meant as one key."""
        if isinstance(self.state_dict_keys, str):
            object.__setattr__(self, "state_dict_keys", (self.state_dict_keys,))
