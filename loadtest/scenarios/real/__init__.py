"""The acceptance run on a real kube-apiserver: population, one writer, faults from outside, and the counters' proof."""
