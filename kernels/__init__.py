"""GPU kernels, one folder an op, each beside its reference; and the rule by which they are held equal."""
