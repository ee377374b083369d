"""What a loss needs beside the SR image, asked of the network: the same under both hosts."""




EXTRA_OUTPUTS = ('log_var', 'frozen_sr')  # what networks return beside the SR image, in their order


def required_outputs_of(loss):
    """Those of `NEEDED` that a loss declares as its `required_outputs`; none of upstream's does."""
    return [name for name in EXTRA_OUTPUTS if name in getattr(loss, 'required_outputs', ())]


def forward_with_outputs(net, lq, needs, given):
    """Runs a network, and asks it for what is needed and not given.

    Args:
        net (Callable): A network of ours, or any where nothing is needed.
        lq (Tensor): `(N, C, H, W)`.
        needs (list[str]): As of `needs_of`.
        given (dict[str, Tensor]): What is there already, such as `log_var` of a data set with maps.

    Returns:
        tuple[Tensor, dict[str, Tensor]]: The SR image, and what is needed by its name; float32, whatever autocast made.
    """
    wanted = [name for name in needs if name not in given]
    output = net(lq, **{f'return_{name}': True for name in wanted})
    sr, *asked = [part.float() for part in (output if wanted else [output])]
    maps = {**given, **dict(zip(wanted, asked))}
    return sr, {name: maps[name] for name in needs}
