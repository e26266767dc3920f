"""Remove channels, heads, experts or layers for good: a smaller and faster model, from the shell, without its weights in memory.

The tour, from the bottom up:

    trace.py        the operations of a model, recorded without weights
    axes.py         what is left of each axis of a tensor
    movement.py     reshapes and joins, followed by doing them on labels
    rules.py        what each operation does to the axes
    routing.py      the same for a router that chooses among experts
    agreement.py    whether a shrunk model does what the whole one does: the guard of every plan
    channels.py     which attributes of a module count channels
    classes.py      which indices of all tensors go together, read off a recording
    fewer_heads.py  nn.MultiheadAttention that can have fewer heads than torch's
    load.py         load_shrunk: a shrunk file back into the model's code
    model.py        the user's model on the meta device, and an example of its inputs
    effect.py       parameters, FLOPs; latency, memory and tokens a second
    export.py       a torch.export program
    allowed.py      what of a config.json reaches transformers
    huggingface.py  models described by a config.json
    request.py      what the planning is asked: a model, and what of it to remove
    subject.py      the model that is shrunk, recorded, and the names of its tensors
    coupling.py     which channels of which layers must go together: classes as plain facts
    proposals.py    which channels are to go: drawn, or zero already
    config.py       which numbers of a config.json stand for them
    planning.py     shrink the model without weights, hold it against the whole one, take back
    step.py         one step of removing units: what it works on, and what comes of it
    equality.py     whether two recordings are of one computation
    copies.py       recordings without copies that depend on sizes
    layers.py       whole layers
    attention.py    where heads are
    heads.py        heads of attention
    experts.py      experts of a mixture
    units.py        several kinds of units, one after the other
    child.py        the same in a child process, within limits of time and memory
    in_memory.py    shrink_module: a live model and its optimizer, in place
    shrink.py       shrink_checkpoint: decide here, then the one pipeline
"""

from importlib.util import find_spec

from prune_cli.errors import UsageError

if find_spec("torch") is None:
    raise UsageError("this needs torch, which is not installed; pip install 'prune-cli[shrink]'")
