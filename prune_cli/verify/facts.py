"""What verification found: facts."""

from dataclasses import dataclass

MAX_CHANNELS_LISTED = 1000
"""A tensor with more wrong channels than this has the rest of them counted, not listed."""

NOT_ZERO = "a pruned channel is not +0"
NOT_THE_SOURCE = "its bytes are not the source's"


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Something that is not as it should be.

    Attributes:
        fact: what is wrong.
        tensor: the tensor of the output that it is about, if it is about one.
        channel: the channel of it, along the dim that was pruned.
        offset: the first wrong element's first byte, counted from the start of the tensor's file.
    """

    fact: str
    tensor: str | None = None
    channel: int | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """What was compared, and every disagreement that was found.

    Attributes:
        tensors: how many tensors the output has.
        nbytes: how many bytes of tensors it has.
        with_source: whether every byte was compared, or only what the report says.
        disagreements: sorted by tensor and channel; empty if all is well. Of a tensor with more
            than MAX_CHANNELS_LISTED wrong channels the last one says how many more there are.
    """

    tensors: int
    nbytes: int
    with_source: bool
    disagreements: tuple[Disagreement, ...]

    @property
    def is_verified(self) -> bool:
        """Whether there is no disagreement."""
        return not self.disagreements
