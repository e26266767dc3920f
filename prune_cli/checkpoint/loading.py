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
        subfolders: globs of the subfolders of a folder whose checkpoints are read as one, the
            name of the subfolder in front of those of tensors ("unet.conv_in.weight"); "." is the
            folder's own.
        copy_all: whether weights of the same model in another form are files to copy too.
    """

    state_dict_keys: tuple[str, ...] = ()
    drop_unwritable: bool = False
    subfolders: tuple[str, ...] = ()
    copy_all: bool = False

    def __post_init__(self) -> None:
        """Read a string where several are meant as one."""
        for name in ("state_dict_keys", "subfolders"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, (value,))
